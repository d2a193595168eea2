"""The command that trains and scores a recipe over seeds and folds."""

import json

import numpy as np
import pytest
from compare_runs import lines
from small_runs import arguments, launch, small_arguments

from medlitenet_jax.modes.repeat import LOCKS
from medlitenet_jax.scores.statistics import spread
from medlitenet_jax.system.lock import lock_folder

FIELDS = {
  "train__max_steps": 2,
  "train__image_sizes": "(64,)",
  "eval__split": "val",
  "data__synthetic__num_train": 9,
  "data__folds": 2,
}


def repeat(output, *flags, **fields):
  flags = ("--mode=repeat", f"--output={output}", *flags)
  return launch(*flags, *small_arguments(**{**FIELDS, **fields}))


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
  """The folder of two seeds by two folds, and what the call said that ended the last two runs.

  In the first call another process was at one run, and the folder of one held something else.
  """
  output = tmp_path_factory.mktemp("repeat") / "out"
  locks, stray = output / LOCKS / "seed0-fold1", output / "seed1-fold0" / "notes.txt"
  for folder in (locks, stray.parent):
    folder.mkdir(parents=True)
  stray.write_text("not a run")
  with lock_folder(locks, "works at this run", "--output"):
    done = repeat(output, "--seeds=2")
  assert done.returncode == 2 and "1 of 4 runs failed: seed1-fold0; the same" in done.stderr
  assert "seed0-fold1: left out here, " in done.stdout
  assert not (output / "repeat.json").exists() and not (output / "seed0-fold1").exists()
  stray.unlink()
  done = repeat(output, "--seeds=2")
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("training and scoring") == 2
  return output, done.stdout


def scores_of(run):
  return json.loads((run / "eval" / "val" / "summary.json").read_text())


def test_every_seed_is_trained_on_every_fold_and_the_spread_is_theirs(repeated):
  output, said = repeated
  found = json.loads((output / "repeat.json").read_text())
  names = ["seed0-fold0", "seed0-fold1", "seed1-fold0", "seed1-fold1"]
  assert list(found["runs"]) == names and (found["seeds"], found["folds"]) == (2, 2)
  table = np.array([scores_of(output / name)["dice"]["mean"] for name in names]).reshape(2, 2)
  assert len(set(table.ravel())) == 4
  dice = found["scores"]["dice"]
  assert dice["mean"] == pytest.approx(table.mean())
  first, second = table.mean(1)
  assert dice["std_seeds"] == pytest.approx(abs(first - second) / np.sqrt(2))
  first, second = table.mean(0)
  assert dice["std_folds"] == pytest.approx(abs(first - second) / np.sqrt(2))
  assert f"{dice['mean']:.4f}" in said and "flatters" in said
  cases = [json.loads((output / name / "cases.json").read_text()) for name in names]
  assert cases[0]["val"] == cases[2]["val"] and cases[0]["train"] == cases[1]["val"]


def test_a_run_is_what_its_own_command_makes(repeated, tmp_path):
  own = {**FIELDS, "seed": 1, "data__fold": 1}
  assert launch(f"--workdir={tmp_path}/run", *small_arguments(**own)).returncode == 0
  done = launch("--mode=evaluate", f"--workdir={tmp_path}/run", *arguments(eval__split="val"))
  assert done.returncode == 0
  whole, alone = (scores_of(run) for run in (repeated[0] / "seed1-fold1", tmp_path / "run"))
  assert whole["dice"] == alone["dice"] and whole["iou"] == alone["iou"]


def test_another_score_of_finished_runs_needs_no_training(repeated):
  output = repeated[0]
  before = lines(output / "seed0-fold0")
  done = repeat(output, eval__threshold=0.4)
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("training and scoring") == 2
  assert scores_of(output / "seed0-fold0")["protocol"]["threshold"] == 0.4
  assert lines(output / "seed0-fold0") == before


def test_what_cannot_be_repeated_is_one_line(tmp_path):
  for flags, fields, says in (
    ((), {"data__folds": 0}, "there is one run to make"),
    (("--workdir=runs/x",), {}, "into --output; name that"),
    (("--seeds=0",), {}, "--seeds takes a number of seeds from 1 to 1000, not 0"),
    ((), {"data__fold": 1}, "--mode=repeat trains every fold"),
    ((), {"data__synthetic__num_test": 0, "eval__split": "test"}, "num_test"),
    (("--seeds=2",), {"optim__learning_rate": 0.0}, "config.optim.learning_rate"),
  ):
    done = repeat(tmp_path / "out", *flags, **fields)
    assert done.returncode == 2 and says in done.stderr, (says, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_spread_by_definition():
  table = np.array([[0.5, 0.7, 0.6], [0.9, 0.8, 0.4]])
  found = spread(table)
  assert found["mean"] == pytest.approx(0.65)
  assert found["std_seeds"] == pytest.approx(np.std([0.6, 0.7], ddof=1))
  assert found["std_folds"] == pytest.approx(np.std([0.7, 0.75, 0.5], ddof=1))
  assert found["std_runs"] == pytest.approx(np.std(table, ddof=1))
  alone = dict.fromkeys(("std_seeds", "std_folds", "std_runs"))
  assert spread(table[:1, :1]) == {"mean": 0.5, **alone}
