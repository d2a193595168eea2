"""The folder of a run: one run at a time, what may change within it, what a killed start leaves."""

import json
import os
import socket
import subprocess
import sys

import pytest
from small_runs import contents, resolved

from medlitenet_jax import config as config_lib
from medlitenet_jax.config import FORCE_ONLY, field_of, flatten
from medlitenet_jax.data.sources import SyntheticSource
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.lock import LOCK_FILE
from medlitenet_jax.training.workdir import note_earlier_cases, open_workdir, read_cases

SOURCES = {
  split: SyntheticSource(seed=0, first=first, count=2, image_size=32)
  for split, first in (("train", 0), ("val", 2))
}


def opened(workdir, *, force=False, total_steps=8, **fields):
  config = resolved(**fields)
  return open_workdir(config, workdir, SOURCES, total_steps=total_steps, force=force)


def started(tmp_path):
  """A run with a checkpoint after batch 3."""
  workdir = tmp_path / "run"
  with opened(workdir):
    (workdir / "checkpoints" / "3").mkdir(parents=True)
  return workdir


def test_two_runs_cannot_share_a_folder(tmp_path):
  workdir = tmp_path / "run"
  with opened(workdir):
    before = contents(workdir)
    holder = f"process {os.getpid()} on {socket.gethostname()} is training in it"
    with pytest.raises(InputError, match=holder), opened(workdir, seed=1):
      pass
    assert contents(workdir) == before
  assert (workdir / LOCK_FILE).read_text() == ""
  with opened(workdir):
    pass


def test_a_lock_left_by_a_dead_process_is_ignored(tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  code = (
    "import sys, time; from pathlib import Path\n"
    "from medlitenet_jax.system.lock import lock_folder\n"
    "with lock_folder(Path(sys.argv[1]), 'is training in it', '--workdir'):\n"
    "  print('held', flush=True); time.sleep(100)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code, str(workdir)], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout is not None and process.stdout.readline() == "held\n"
  with pytest.raises(InputError, match=f"process {process.pid} on"), opened(workdir):
    pass
  process.kill()
  process.wait()
  assert str(process.pid) in (workdir / LOCK_FILE).read_text()
  with opened(workdir):
    pass


def test_a_start_that_was_killed_at_once_is_started_again(tmp_path):
  for name in (LOCK_FILE, "config.json.tmp"):
    (tmp_path / name).write_text("{")
  with opened(tmp_path):
    assert config_lib.load(tmp_path).seed == 0


def test_every_changed_field_is_named_and_a_meaningless_change_refused(tmp_path):
  workdir = started(tmp_path)
  before = contents(workdir)
  changes = {"optim__learning_rate": 0.25, "seed": 7, "model__variant": "wide"}
  for force in (False, True):
    with pytest.raises(InputError) as error, opened(workdir, force=force, **changes):
      pass
    text = str(error.value)
    for part in ("learning_rate=0.25 (was 0.005)", "seed=7 (was 0)", "width=12 (was 8)"):
      assert f"{part}" in text
    assert "config.model.stub.width, config.model.variant, config.seed cannot change" in text
    assert contents(workdir) == before


def test_a_change_that_needs_force_keeps_the_old_recipe(tmp_path):
  workdir = started(tmp_path)
  fields = {"optim__learning_rate": 0.25, "loss__dice__weight": 0.75}
  with pytest.raises(InputError, match="--force") as error, opened(workdir, **fields):
    pass
  assert "config.loss.dice.weight=0.75 (was 0.5)" in str(error.value)
  with opened(workdir, force=True, **fields):
    assert config_lib.load(workdir).optim.learning_rate == 0.25
  with opened(workdir, **fields):
    pass
  with opened(workdir, force=True, optim__learning_rate=0.125):  # with no checkpoint in between
    pass
  former = json.loads((workdir / "config.until_3.json").read_text())
  assert former["optim"]["learning_rate"] == 0.005


def test_before_the_first_checkpoint_anything_may_change(tmp_path):
  workdir = tmp_path / "run"
  with opened(workdir):
    # What a run leaves that was killed while it saved for the first time.
    (workdir / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
  with opened(workdir, seed=7):
    assert config_lib.load(workdir).seed == 7


def test_the_size_that_follows_the_last_one_of_training_is_told_how_to_stay(tmp_path):
  workdir = started(tmp_path)
  sizes = {"train__image_sizes": (64, 128)}
  keeps = r"--config\.eval\.image_size=96"
  with pytest.raises(InputError, match=keeps), opened(workdir, force=True, **sizes):
    pass
  with opened(workdir, force=True, **sizes, eval__image_size=96):
    assert config_lib.load(workdir).train.image_sizes == (64, 128)


def test_fields_that_force_may_change_leave_the_state_and_the_cases_alone():
  names = [field for field, _ in flatten(resolved())]
  forced = {name for name in names if field_of(name).resume == FORCE_ONLY}
  assert {"optim.learning_rate", "loss.dice.weight", "model.stub.dropout"} <= forced
  for field in ("seed", "precision", "optim.accumulation", "train.batch_size", "eval.image_size"):
    assert field not in forced
  assert not [name for name in forced if name.startswith(("preprocess.", "data.synthetic"))]


def test_what_the_first_weights_had_seen_counts_as_trained_on(tmp_path):
  workdir = tmp_path / "run"
  own = {split: SOURCES[split].case_ids for split in SOURCES}
  with opened(workdir):
    assert read_cases(workdir) == own
    earlier = {"train": ["a", own["train"][0]], "val": ["b", own["val"][0]]}
    note_earlier_cases(workdir, earlier)
    (workdir / "checkpoints" / "3").mkdir(parents=True)
  for _ in range(2):
    assert read_cases(workdir) == {"train": [*own["train"], "a", "b"], "val": own["val"]}
    with opened(workdir):  # goes on without those weights at hand
      pass
  note_earlier_cases(workdir, {"train": own["val"], "val": []})
  assert read_cases(workdir) == {"train": [*own["train"], *own["val"]], "val": own["val"]}


def test_another_run_is_named_before_a_longer_one(tmp_path):
  workdir = started(tmp_path)
  before = contents(workdir)
  says = "3 batches, more than the 2 asked"
  with pytest.raises(InputError, match=says), opened(workdir, total_steps=2):
    pass
  with pytest.raises(InputError, match="cannot change"), opened(workdir, total_steps=2, seed=7):
    pass
  assert contents(workdir) == before


def test_a_run_does_not_go_on_with_other_cases(tmp_path):
  workdir = started(tmp_path)
  cases = {"train": ["a"], "val": ["b"], "before": []}
  (workdir / "cases.json").write_text(json.dumps(cases))
  with pytest.raises(InputError, match="other cases"), opened(workdir):
    pass
  del cases["before"]
  for text in ("{", json.dumps(cases)):
    (workdir / "cases.json").write_text(text)
    with pytest.raises(InputError, match="does not name the cases"), opened(workdir):
      pass
