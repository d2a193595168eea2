"""The notebooks in examples/ run from beginning to end, and are kept without their outputs.

Their cells are plain Python, so no kernel is needed: they are executed here one after another.
"""

import json

import matplotlib
import matplotlib.pyplot as plt
import pytest
from small_runs import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells_of(path):
  """The cells of a notebook, after a look at what every reader of notebooks needs."""
  notebook = json.loads(path.read_text())
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  ids = [cell["id"] for cell in notebook["cells"]]
  assert len(set(ids)) == len(ids)
  return notebook["cells"]


@pytest.fixture
def pictures(monkeypatch):
  """Number of pictures shown, none of them in a window."""
  matplotlib.use("Agg")
  shown = []
  monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
  yield shown
  plt.close("all")


def test_there_is_a_notebook():
  assert [path.name for path in NOTEBOOKS] == ["outline_a_photograph.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, pictures, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the evaluation that it starts
  names = {"__name__": "__main__"}
  for cell in cells_of(path):
    if cell["cell_type"] == "code":
      place = f"{path.name}, {cell['id']}"
      exec(compile("".join(cell["source"]), place, "exec"), names)  # our own notebook
  printed = capsys.readouterr().out
  assert "confidence: 0." in printed
  assert "area_mm2" in printed
  assert printed.count("synthetic_") == 8
  assert len(pictures) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path):
  for cell in cells_of(path):
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None
