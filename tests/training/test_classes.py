"""Photographs whose class is told beside the outline, from the folder to the log."""

import json

import numpy as np
import pytest
from compare_runs import lines
from small_runs import launch, small_arguments, write_case

from medlitenet_jax.inference.validation import create_validate
from medlitenet_jax.scores.metrics import SCORES

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


def fields(folder, variant="classes", weight=0.5, column="kind"):
  return small_arguments(
    data__source="folder",
    data__root=folder,
    data__class_column=column,
    train__max_steps=4,
    train__image_sizes="(64,)",
    loss__classes__weight=weight,
    model__variant=variant,
  )


def test_the_log_says_how_well_classes_are_told_apart(folder):
  workdir = folder / "run"
  done = launch(*fields(folder), f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  assert "balanced accuracy of the classes" in done.stdout + done.stderr
  rows = lines(workdir)
  assert all(np.isfinite(row["classes_loss"]) for row in rows if row["split"] == "train")
  assert "balanced_accuracy" in [row for row in rows if row["split"] == "val"][-1]
  assert json.loads((workdir / "cases.json").read_text())["classes"] == ["burn", "mole"]

  table = (folder / "splits.csv").read_text()
  (folder / "splits.csv").write_text(table.replace("burn", "sunburn"))  # now after mole
  again = launch(*fields(folder), f"--workdir={workdir}")
  assert again.returncode == 2 and "other cases or classes" in again.stderr


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"variant": "base"}, "has 2 classes (burn, mole), but the network has none; set"),
    ({"variant": "three"}, "but the network has 3; set config.model.stub.classes=2"),
    ({"weight": 0}, "classes are learned with all three, so set all or none"),
    ({"column": ""}, "classes are learned with all three, so set all or none"),
  ],
)
def test_what_does_not_go_together_is_refused(folder, given, said):
  done = launch(*fields(folder, **given), f"--workdir={folder}/run")
  assert done.returncode == 2 and said in done.stderr, done.stderr
  assert not (folder / "run").exists()


def test_every_class_counts_the_same_in_balanced_accuracy():
  scores = dict.fromkeys(SCORES, 0.5)
  told = [(0, 1), (0, 1), (0, 0), (1, 0), (2, 1)]  # class, whether it was named
  rows = [{**scores, "class": float(number), "right": float(right)} for number, right in told]
  validate = create_validate(lambda *_: [*rows, scores])  # of one the class is not known
  assert validate({}, bool)["balanced_accuracy"] == pytest.approx((2 / 3 + 0 + 1) / 3)
  assert "balanced_accuracy" not in create_validate(lambda *_: [scores])({}, bool)
