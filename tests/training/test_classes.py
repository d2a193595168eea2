"""Photographs whose class is told beside the outline, from the folder to the log."""

import numpy as np
import pytest
from compare_runs import lines
from small_runs import launch, small_arguments, write_case

KINDS = ("mole", "burn")


@pytest.fixture
def folder(tmp_path):
  """12 cases of two kinds; one of a kind that is not known."""
  splits = {f"case{i:02d}": "train" if i < 8 else "val" for i in range(12)}
  for number, name in enumerate(splits):
    write_case(tmp_path, name, number)
  rows = [
    f"{name},{split},{KINDS[i % 2] if i else ''}" for i, (name, split) in enumerate(splits.items())
  ]
  (tmp_path / "splits.csv").write_text("\n".join(("id,split,kind", *rows)) + "\n")
  return tmp_path


def fields(folder, **more):
  return small_arguments(
    data__source="folder",
    data__root=folder,
    data__class_column="kind",
    train__max_steps=4,
    train__image_sizes="(64,)",
    loss__classes__weight=0.5,
    **more,
  )


def test_the_log_says_how_well_classes_are_told_apart(folder):
  workdir = folder / "run"
  done = launch(*fields(folder, model__medlitenet__classes=2), f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  assert "balanced accuracy of the classes" in done.stdout + done.stderr
  rows = lines(workdir)
  assert all(np.isfinite(row["classes_loss"]) for row in rows if row["split"] == "train")
  last = [row for row in rows if row["split"] == "val"][-1]
  assert last["balanced_accuracy"] in (0, 0.25, 0.5, 0.75, 1)  # two cases of each kind
  again = launch("--mode=evaluate", f"--workdir={workdir}", "--config.eval.split=val")
  assert again.returncode == 0, again.stderr


def test_another_number_of_classes_is_refused(folder):
  for classes, named in ((0, "none"), (3, "3")):
    done = launch(*fields(folder, model__medlitenet__classes=classes), f"--workdir={folder}/run")
    assert done.returncode == 2
    assert f"has 2 classes (burn, mole), and the network {named}; set" in done.stderr
