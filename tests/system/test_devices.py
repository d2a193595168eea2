"""Runs shared by eight devices, and by two processes, against the same run on one device."""

import contextlib
import functools
import json
import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_runs import launch, scratch, small_arguments

from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training import optim
from medlitenet_jax.training.checkpoint import Checkpoints

EIGHT = "--xla_force_host_platform_device_count=8"
STEPS, KEPT = 20, 15
# Of the stub: that each operation can be shared out is tested by itself.
FIELDS = {
  "train.max_steps": STEPS,
  "train.batch_size": 8,
  "train.image_sizes": "(64,)",
  "train.validate_every_epochs": 3,
  "train.validate_min_steps": 1,
  "data.synthetic.num_train": 40,  # an epoch is 5 batches
  "data.synthetic.num_val": 5,
  "eval.batch_size": 5,  # neither shares out equally nor divides the 6 cases of test
}
# Sets a run of one process aside as it is after `KEPT` batches.
PATCH = f"""
import shutil
import jax
from medlitenet_jax.training import optim
from medlitenet_jax.training.checkpoint import Checkpoints
original = Checkpoints.save
def save(self, state, batches, scores):
  original(self, state, batches, scores)
  if int(state.micro_step) == {KEPT} and jax.process_count() == 1:
    self._manager.wait_until_finished()
    workdir = self._manager.directory.parent
    shutil.copytree(workdir, str(workdir) + "-aside")
Checkpoints.save = save
"""


def start(*args, count=1, processes=1):
  """Runs `launch.py` on a number of devices in a number of processes; returns the first's end."""
  flags = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count // processes}"
  )
  command = (*small_arguments(**FIELDS), *args) if "--mode=evaluate" not in args else args
  if processes == 1:
    done = [launch(*command, patch=PATCH, XLA_FLAGS=flags)]
  else:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {"XLA_FLAGS": flags, "JAX_COORDINATOR_ADDRESS": address}

    def one(number):
      who = {"JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(number)}
      return launch("--distributed", *command, patch=PATCH, **environment, **who)

    with ThreadPoolExecutor(processes) as pool:
      done = list(pool.map(one, range(processes)))
  for process in done:
    assert process.returncode == 0, process.stderr
  return done


@functools.cache
def trained(count, processes=1):
  """The workdir of the same run on so many devices; the one set aside lies beside it."""
  workdir = scratch() / f"on-{count}-in-{processes}"
  first, *others = start(f"--workdir={workdir}", count=count, processes=processes)
  assert f"{count} x cpu" in first.stdout + first.stderr
  for process in others:
    assert not any(said in process.stdout + process.stderr for said in ("Dice", "INFO", "it/s"))
  return workdir


@functools.cache
def scores(count, processes=1):
  """The run of one device, evaluated on so many."""
  workdir = scratch() / f"evaluated-on-{count}-in-{processes}"
  shutil.copytree(trained(1), workdir)
  start("--mode=evaluate", f"--workdir={workdir}", count=count, processes=processes)
  return workdir / "eval" / "test"


def figures(workdir, split="train"):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [row for row in rows if row["split"] == split]


def assert_same_run(workdir, expected):
  for split, name in (("train", "loss"), ("train", "dice"), ("val", "dice")):
    found, wanted = ([row[name] for row in figures(w, split)] for w in (workdir, expected))
    assert len(found) == len(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5, err_msg=f"{split} {name}")
    print(f"{workdir.name}, {split} {name}: {np.max(np.abs(np.subtract(found, wanted))):.1e}")
  assert [row["step"] for row in figures(workdir)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("count", "processes"), [(8, 1), (2, 2)])
def test_losses_are_those_of_one_device(count, processes):
  losses = [row["loss"] for row in figures(trained(1))]
  assert len(losses) == STEPS and losses[-1] < 0.95 * losses[0]
  assert_same_run(trained(count, processes), trained(1))


@pytest.mark.parametrize(("before", "after", "processes"), [(8, 1, 1), (1, 8, 1), (1, 2, 2)])
def test_run_goes_on_on_another_number_of_devices(before, after, processes, tmp_path):
  aside = trained(before).with_name(trained(before).name + "-aside")
  workdir = shutil.copytree(aside, tmp_path / f"{before}-then-{after}-in-{processes}")
  assert {path.name for path in (workdir / "checkpoints").iterdir()} == {str(KEPT)}
  done = start(f"--workdir={workdir}", count=after, processes=processes)
  assert f"after {KEPT} of {STEPS}" in done[0].stdout + done[0].stderr
  assert_same_run(workdir, trained(1))


def test_checkpoint_of_two_processes_is_one_of_one():
  path = trained(1) / "checkpoints" / str(STEPS) / "state"
  saved = ocp.StandardCheckpointer().restore(path)
  like = {
    "params": optim.unpack(saved["ema_params"], saved["params"]),
    "batch_stats": saved["ema_batch_stats"],
  }
  with contextlib.closing(Checkpoints(trained(2, 2), read_only=True)) as checkpoints:
    assert checkpoints.latest_step == STEPS
    found = checkpoints.restore_ema(STEPS, like)
  assert jax.tree.structure(found) == jax.tree.structure(like)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=5e-4)


@pytest.mark.parametrize(("count", "processes"), [(8, 1), (2, 2)])
def test_evaluation_is_that_of_one_device(count, processes):
  found, expected = scores(count, processes), scores(1)
  assert (found / "cases.csv").read_text() == (expected / "cases.csv").read_text()
  for folder in ("masks", "uncertainty", "disagreement"):
    names = [path.name for path in sorted((expected / folder).iterdir())]
    assert len(names) == 6
    assert [path.name for path in sorted((found / folder).iterdir())] == names
  for name in (f"masks/{path.name}" for path in (expected / "masks").iterdir()):
    assert (found / name).read_bytes() == (expected / name).read_bytes()
  one, other = (json.loads((f / "summary.json").read_text()) for f in (found, expected))
  assert one["dice"] == other["dice"] and one["cases"] == 6
  assert [b["pixels"] for b in one["calibration"]["bins"]] == [
    b["pixels"] for b in other["calibration"]["bins"]
  ]


def test_only_the_first_process_keeps_a_log():
  workdir = trained(2, 2)
  assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
  assert (workdir / "figures" / "curves.png").exists()


def test_batch_that_devices_cannot_share_is_refused(tmp_path):
  done = launch(
    *small_arguments(**FIELDS | {"train.batch_size": 12}),
    f"--workdir={tmp_path / 'run'}",
    XLA_FLAGS=EIGHT,
  )
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
  assert "--config.train.batch_size=16" in done.stderr and "8 devices" in done.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("args", "environment", "said"),
  [
    ((), {}, "JAX_PROCESS_ID"),
    ((), {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}, "JAX_NUM_PROCESSES"),
    (("--mode=predict", "--input=."), {}, "--mode=predict runs in one process"),
  ],
)
def test_processes_that_cannot_find_each_other_are_refused(args, environment, said):
  done = launch("--distributed", *args, **environment)
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
  assert said in done.stderr


def test_one_device_has_every_row():
  if jax.device_count() > 1:
    pytest.skip("more than one device here")
  assert devices.local_rows(6) == range(6) and devices.rows_for(5) == 5
  array = np.arange(12).reshape(6, 2)
  np.testing.assert_array_equal(devices.local_values(devices.shard_batch(array)), array)
  assert devices.gather_cases([(2, "b"), (0, "a")]) == ["a", "b"]


def test_what_the_first_process_cannot_do_ends_the_others(monkeypatch):
  def fail():
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    devices.on_main_process(fail)
  monkeypatch.setattr(devices, "is_main_process", lambda: False)
  monkeypatch.setattr(devices, "gather", lambda value: ["disk full", value])
  with pytest.raises(InputError, match="disk full"):
    devices.on_main_process(fail)


def test_an_error_without_words_is_one_for_the_others_too(monkeypatch):
  def fail():
    raise MemoryError

  said = []
  monkeypatch.setattr(devices, "gather", lambda value: said.append(value) or [value])
  with pytest.raises(MemoryError):
    devices.on_main_process(fail)
  assert said == ["MemoryError"]
