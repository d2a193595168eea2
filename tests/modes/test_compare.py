"""Evaluations side by side: the same cases, paired, with what differs in their protocols."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import stats
from small_runs import compiled_as_by_launch, copy_of_run, launch, network_of, small_config

from medlitenet_jax import config as config_lib
from medlitenet_jax.config import for_evaluation
from medlitenet_jax.modes.compare import compare, read_evaluations
from medlitenet_jax.modes.evaluate import evaluate
from medlitenet_jax.system.errors import InputError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Two folders of one network, scored at two thresholds."""
  folders = []
  for name, threshold in (("plain", 0.5), ("low", 0.3)):
    folder = copy_of_run(tmp_path_factory.mktemp(name)).rename(tmp_path_factory.mktemp("r") / name)
    overrides = {"eval.threshold": threshold}
    config = for_evaluation(config_lib.load(folder), overrides, "cpu", small_config())
    with compiled_as_by_launch():
      evaluate(
        config,
        [network_of(folder, config)],
        folder,
        f"python launch.py --config.eval.threshold={threshold}",
      )
    folders.append(folder)
  return folders


def test_command_writes_tables_pictures_and_a_page(runs, tmp_path):
  done = launch(
    "--mode=compare", *(f"--input={folder}" for folder in runs), f"--output={tmp_path / 'out'}"
  )
  assert done.returncode == 0, done.stderr
  assert "low - plain" in done.stdout
  table = (tmp_path / "out" / "results.md").read_text()
  for name, threshold in (("plain", "0.5"), ("low", "0.3")):
    assert f"| {name} " in table and f"threshold {threshold}" in table
    assert f"`python launch.py --config.eval.threshold={threshold}`" in table
  for figure in ("grid.png", "curves.png"):
    assert cv2.imread(str(tmp_path / "out" / "figures" / figure)).std() > 5
  page = (tmp_path / "out" / "comparison.html").read_text()
  assert "threshold" in page and page.count("<figure") >= 2 and "http:" not in page


def test_paired_tests_are_of_the_cases(runs, tmp_path):
  result = compare(runs, tmp_path)
  columns = {}
  for folder in runs:
    with (folder / "eval" / "test" / "cases.csv").open(newline="") as file:
      rows = sorted(csv.DictReader(file), key=lambda row: row["case_id"])
    columns[folder.name] = np.array([float(row["dice"]) for row in rows])
  (test,) = (t for t in result["tests"] if t["score"] == "dice")
  assert (test["first"], test["second"]) == ("plain", "low")
  assert test["difference"] == pytest.approx(np.mean(columns["low"] - columns["plain"]))
  assert test["p_value"] == stats.wilcoxon(columns["low"] - columns["plain"]).pvalue
  assert test["p_value_holm"] >= test["p_value"]
  (distance,) = (t for t in result["tests"] if t["score"] == "hd95")
  hd95 = np.stack([e.column("hd95") for e in read_evaluations(runs)])
  assert distance["better"] == np.sum(hd95[1] < hd95[0])
  assert result["protocol_differences"] == {"threshold": [0.5, 0.3]}
  assert json.loads((tmp_path / "comparison.json").read_text()) == result
  with (tmp_path / "comparison.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [float(row["dice low"]) for row in rows] == columns["low"].tolist()


def test_cases_that_a_network_was_trained_on_are_named(runs, tmp_path):
  seen = shutil.copytree(runs[0], tmp_path / "seen")
  path = seen / "eval" / "test" / "summary.json"
  summary = json.loads(path.read_text())
  assert summary["protocol"]["cases_trained_on"] == 0
  summary["protocol"]["cases_trained_on"] = 4
  path.write_text(json.dumps(summary))
  result = compare([runs[0], seen], tmp_path / "out")
  assert result["protocol_differences"] == {"cases_trained_on": [0, 4]}
  table = (tmp_path / "out" / "results.md").read_text().splitlines()
  (row,) = (line for line in table if line.startswith("| seen "))
  assert "was trained on 4 of the cases" in row
  assert "was trained on 4 of the cases" in (tmp_path / "out" / "comparison.html").read_text()


def test_one_evaluation_is_a_table_and_is_questioned(runs, tmp_path, caplog):
  result = compare(runs[:1], tmp_path)
  assert "One evaluation alone" in caplog.text
  assert result["tests"] == [] and "| plain " in (tmp_path / "results.md").read_text()


def test_without_the_photographs_there_is_still_a_table(runs, tmp_path):
  folder = shutil.copytree(runs[0] / "eval" / "test", tmp_path / "gone" / "eval" / "test")
  config = json.loads((folder / "config.json").read_text())
  config["data"] |= {"source": "folder", "root": str(tmp_path / "nowhere")}
  (folder / "config.json").write_text(json.dumps(config))
  compare([folder], tmp_path / "out")
  assert (tmp_path / "out" / "results.md").exists()
  assert not (tmp_path / "out" / "figures" / "grid.png").exists()


def test_folders_of_one_name_are_told_apart(runs, tmp_path):
  copies = [shutil.copytree(runs[0], tmp_path / side / "run") for side in ("left", "right")]
  assert [e.name for e in read_evaluations(copies)] == ["left/run", "right/run"]
  with pytest.raises(InputError, match="twice"):
    read_evaluations([copies[0], copies[0]])


def test_a_run_is_compared_from_within(runs, monkeypatch):
  monkeypatch.chdir(runs[0])
  (evaluation,) = read_evaluations([Path(".")])
  assert evaluation.name == "plain"


def test_what_does_not_compare_is_refused(runs, tmp_path):
  with pytest.raises(InputError, match="no evaluation"):
    read_evaluations([tmp_path])
  fewer = shutil.copytree(runs[0], tmp_path / "fewer")
  path = fewer / "eval" / "test" / "cases.csv"
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
  with pytest.raises(InputError, match="other cases"):
    read_evaluations([runs[0], fewer])
  (fewer / "eval" / "test" / "summary.json").write_text("{")
  with pytest.raises(InputError, match="not a whole evaluation"):
    read_evaluations([fewer])
  shutil.copytree(runs[0] / "eval" / "test", fewer / "eval" / "val")
  with pytest.raises(InputError, match="2 evaluations"):
    read_evaluations([fewer])
