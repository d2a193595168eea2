"""Signals: the batch is finished, the state saved; on resuming nothing is lost or done twice."""

import contextlib
import json
import os
import signal
import time

import pytest
from compare_runs import assert_identical, saved_state, without_speed
from small_runs import compiled_as_by_launch, launch, resolved, small_arguments

from medlitenet_jax.inference import validation
from medlitenet_jax.modes.train import train
from medlitenet_jax.system.stop import Stopped
from medlitenet_jax.training import log
from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.layout import whole_steps

# Sends this process signals after batch 4.
SIGNALS = """
import os, signal, time
from medlitenet_jax.training import log
original = log.MetricsLog.write
def write(self, *, step, **kwargs):
  original(self, step=step, **kwargs)
  for number in SENT if step == 4 else ():
    os.kill(os.getpid(), number)
    time.sleep(1)
log.MetricsLog.write = write
"""


@pytest.fixture(autouse=True)
def compiled():
  with compiled_as_by_launch():
    yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("stop") / "straight"
  with compiled_as_by_launch():
    train(resolved(), workdir)
  return workdir


def send(number):
  """Sends this process a signal and waits until it has been seen."""
  os.kill(os.getpid(), number)
  time.sleep(0.3)


def rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return without_speed(json.loads(line) for line in lines)


def scores(workdir):
  with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
    best = checkpoints.best_step
    return best, {step: dict(checkpoints.metrics(step)) for step in whole_steps(workdir)}


def assert_ends_as(workdir, straight):
  train(resolved(), workdir)
  assert_identical(saved_state(workdir, 8), saved_state(straight, 8))
  assert rows(workdir) == rows(straight)
  assert scores(workdir)[0] == scores(straight)[0]


def test_between_validations_the_state_is_saved_without_score(tmp_path, straight, monkeypatch):
  workdir = tmp_path / "run"
  original = log.MetricsLog.write

  def write(self, *, step, **kwargs):
    original(self, step=step, **kwargs)
    if step == 4:
      send(signal.SIGTERM)

  with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGTERM after batch 4 of 8"):
    patch.setattr(log.MetricsLog, "write", write)
    train(resolved(), workdir)
  best, found = scores(workdir)
  assert best == 3 and found[3]["dice"] > 0 and found[4] == {}
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  assert_ends_as(workdir, straight)


def test_a_validation_that_was_cut_short_is_made_up_for(tmp_path, straight, monkeypatch):
  workdir = tmp_path / "run"
  original = validation.plain_scores

  def plain_scores(*args):
    send(signal.SIGINT)
    return original(*args)

  with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGINT after batch 3 of 8"):
    patch.setattr(validation, "plain_scores", plain_scores)
    train(resolved(), workdir)
  assert scores(workdir) == (None, {3: {}})
  assert [row["split"] for row in rows(workdir)] == ["train"] * 3
  # Killed once more, after the scores were logged and before the checkpoint had them.
  with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
    patch.setattr(Checkpoints, "add_metrics", lambda *_: 1 / 0)
    train(resolved(), workdir)
  assert [row["split"] for row in rows(workdir)] == ["train"] * 3 + ["val"]
  assert_ends_as(workdir, straight)


def test_the_launcher_leaves_with_the_status_of_the_signal(tmp_path):
  patch = SIGNALS.replace("SENT", "[signal.SIGTERM]")
  done = launch(*small_arguments(), f"--workdir={tmp_path / 'run'}", patch=patch)
  assert done.returncode == 128 + signal.SIGTERM, done.stderr
  last = done.stderr.splitlines()[-1]
  assert last.startswith("launch.py: stopped by SIGTERM after batch 4 of 8")
  assert "Traceback" not in done.stderr and whole_steps(tmp_path / "run")[-1] == 4


def test_a_second_interrupt_leaves_at_once(tmp_path):
  patch = SIGNALS.replace("SENT", "[signal.SIGINT, signal.SIGINT]")
  done = launch(*small_arguments(), f"--workdir={tmp_path / 'run'}", patch=patch)
  assert done.returncode == 130 and "Ctrl-C exits at once" in done.stdout + done.stderr
  assert 4 not in whole_steps(tmp_path / "run") and "stopped by" not in done.stderr


# The main thread sends itself the signal in a call that does not return.
HANGS = (
  SIGNALS.split("original =")[0]
  + """
from medlitenet_jax.inference import validation
from medlitenet_jax.system import stop
from medlitenet_jax.training import programs
stop.PATIENCE_SECONDS = 1.0
def hang(*_):
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(100)
"""
)


@pytest.mark.parametrize(
  ("where", "line", "saved"),
  [
    ("validation.plain_scores = hang", "after batch 3 of 8; run the same command again", [3]),
    ("programs.Programs.compile = hang", "before it began", []),
  ],
)
def test_where_the_main_thread_hangs_what_was_learned_is_saved(
  tmp_path, straight, where, line, saved
):
  workdir = tmp_path / "run"
  done = launch(*small_arguments(), f"--workdir={workdir}", patch=HANGS + where, timeout=90)
  assert done.returncode == 128 + signal.SIGTERM, done.stderr
  assert done.stderr.splitlines()[-1].startswith(f"launch.py: stopped by SIGTERM {line}")
  assert "Traceback" not in done.stderr and whole_steps(workdir) == saved
  assert_ends_as(workdir, straight)
