"""Kills short runs at random instants, resumes them, and compares their ends with a straight run's.

    PYTHONPATH=.:tests python tests/slow/kill_runs.py --kills=100 --network=reduced

Runs are forked from this process, which has imported everything but started nothing of JAX, so that
a run costs no more than its own batches. A run that has been killed is started again, and killed
again, until it gets through; then the next run begins.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import small_runs
from small_runs import REDUCED, compiled_as_by_launch, resolved

from medlitenet_jax.modes import train
from medlitenet_jax.system.process import set_up_compiler
from medlitenet_jax.system.stop import Stopped
from medlitenet_jax.training import checkpoint, log
from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.layout import HALF_WRITTEN, REMOVED, whole_steps

STEPS = 12  # of 4 of 13 cases: checkpoints after 3, 6, 9 and 12; another size from batch 7 on
SPEED = {"images_per_second", "waiting_share", "logging_share"}
# Where a run dies: at any time since its start or since its first batch; at any time since a save
# began; before a checkpoint gets its name or just after; among the files of an old one; within a
# line of the log. The last is no kill: it must save and leave by itself.
INSTANTS = ("start", "loop", "loop", "save", "rename", "renamed", "removal", "line", "term")


def die() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def die_at(instant: str, delay: float) -> None:
  """Prepares this process, which is about to train, for its death."""
  original_save, original_write = Checkpoints.save, log.MetricsLog.write

  def save(*args):
    threading.Timer(delay, die).start()
    original_save(*args)

  async def rename(old, new):
    if instant == "renamed":
      os.rename(old, new)
    die()

  def rmtree(path, **_):
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    if Path(path).name == REMOVED and files:
      files[0].unlink()
      die()

  def write(log, **kwargs):
    original_write(log, **kwargs)
    if kwargs["step"] % 5 == 4:
      with log._path.open("r+b") as file:
        file.truncate(log._path.stat().st_size - 1 - int(100 * delay) % 40)
      die()

  if instant == "save":
    Checkpoints.save = save
  elif instant in ("rename", "renamed"):
    from orbax.checkpoint._src.path import atomicity

    step_of = "." + HALF_WRITTEN.split(".")[-1]
    original = atomicity.async_path.rename

    async def rename_step(old, new):
      await (rename if step_of in Path(old).name else original)(old, new)

    atomicity.async_path.rename = rename_step
  elif instant == "removal":
    checkpoint.shutil = type("shutil", (), {"rmtree": staticmethod(rmtree)})
  elif instant == "line":
    log.MetricsLog.write = write


def fork(config, workdir: Path, instant: str = "", delay: float = 0.0):
  """Starts a run in a process of its own.

  Returns:
    Its number, and the end of a pipe that says when its loop begins.
  """
  reading, writing = os.pipe()
  pid = os.fork()
  if pid:
    os.close(writing)
    return pid, reading
  status = 1
  try:
    output = os.open(workdir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    original = log.MetricsLog.__init__

    def begin(*args, **kwargs):
      original(*args, **kwargs)
      os.write(writing, b"!")

    log.MetricsLog.__init__ = begin
    train.draw_curves = lambda *_: None  # takes longer than all batches
    die_at(instant, delay)
    with compiled_as_by_launch():
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
      train.train(config, workdir)
    status = 0
  except Stopped as stopped:
    status = 128 + stopped.signal
  except BaseException:
    traceback.print_exc()
  os._exit(status)


def wait(pid: int) -> int:
  """Its exit status, negative for a signal."""
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end_of(workdir: Path):
  """All that a run ended with: every array, the position in the data, the log without speeds."""
  folder = workdir / "checkpoints" / str(STEPS)
  state = ocp.StandardCheckpointer().restore((folder / "state").absolute())
  arrays = {str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
  data = {file.name: file.read_text() for file in (folder / "data").glob("*.json")}
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return arrays, data, [{k: v for k, v in row.items() if k not in SPEED} for row in rows]


def differences(workdir: Path, straight: Path) -> list[str]:
  """What two runs do not share."""
  (arrays, data, rows), (expected, position, lines) = end_of(workdir), end_of(straight)
  found = [] if arrays.keys() == expected.keys() else ["parts of the state"]
  for name, value in expected.items():
    same = name in arrays and arrays[name].dtype == value.dtype
    if not same or not np.array_equal(arrays[name], value, equal_nan=True):
      found.append(name)
  found += [] if data == position and data else ["position in the data"]
  found += [] if rows == lines else ["metrics.jsonl"]
  left = {path.name for path in (workdir / "checkpoints").iterdir()}
  found += [f"left behind: {name}" for name in left if not name.isdigit()]
  return found


def compare(workdir: Path, straight: Path) -> bool:
  """Compares in a process of its own, which starts JAX."""
  pid = os.fork()
  if pid:
    return wait(pid) == 0
  found = ["comparison failed"]
  try:
    found = differences(workdir, straight)
  except BaseException:
    traceback.print_exc()
  for name in found:
    print(f"{workdir.name}: {name} differs", flush=True)
  os._exit(bool(found))


def main() -> int:
  """Returns 0 if every run ended as the straight one."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--network", choices=("stub", "reduced"), default="stub")
  parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float16")
  asked = parser.parse_args()
  set_up_compiler()
  rng = random.Random(asked.seed)
  scratch = Path(tempfile.mkdtemp(prefix="kill_runs_"))
  small_runs.scratch()  # made before the first fork: all runs use what the first has compiled
  network = REDUCED if asked.network == "reduced" else {}
  config = resolved(**network, precision=asked.precision, train__max_steps=STEPS)

  straight = scratch / "straight"
  for _ in range(2):  # the second finds the programs compiled, and tells how long a run takes
    shutil.rmtree(straight, ignore_errors=True)
    begun = time.monotonic()
    pid, pipe = fork(config, straight)
    os.read(pipe, 1)
    loop = time.monotonic()
    if wait(pid):
      print(straight.with_suffix(".log").read_text(), file=sys.stderr)
      return 1
    startup, duration = loop - begun, time.monotonic() - loop

  deaths: Counter[str] = Counter()
  half_written = stopped = runs = 0
  failed = False
  workdir = scratch / "run1"
  order: list[str] = []
  while deaths.total() < asked.kills or workdir.exists():
    order = order or rng.sample(INSTANTS, len(INSTANTS))
    instant = order.pop() if deaths.total() < asked.kills else "none"
    delay = rng.random()
    pid, pipe = fork(config, workdir, instant, 0.3 * delay)
    if instant in ("loop", "term"):
      os.read(pipe, 1)
      time.sleep(delay * duration)
      os.kill(pid, signal.SIGKILL if instant == "loop" else signal.SIGTERM)
    elif instant == "start":
      time.sleep(delay * (startup + duration))
      os.kill(pid, signal.SIGKILL)
    status = wait(pid)
    os.close(pipe)
    if status == -signal.SIGKILL:
      deaths[instant] += 1
      half_written += any(workdir.glob(f"checkpoints/*{HALF_WRITTEN}*"))
    elif status == 128 + signal.SIGTERM:
      stopped += 1
      if not whole_steps(workdir):
        print(f"{workdir.name}: nothing was saved on SIGTERM", flush=True)
        failed = True
    elif status == 0:
      runs += 1
      failed |= not compare(workdir, straight)
      workdir = scratch / f"run{runs + 1}"
    else:
      print(workdir.with_suffix(".log").read_text(), file=sys.stderr)
      return 1
  print(
    f"{deaths.total()} kills ({', '.join(f'{n} {name}' for name, n in sorted(deaths.items()))}; "
    f"{half_written} left a half-written checkpoint), {stopped} stops by SIGTERM, {runs} runs: "
    + ("some ended differently" if failed else "all ended bit for bit as the straight one")
  )
  if not failed:
    shutil.rmtree(scratch)
  return int(failed)


if __name__ == "__main__":
  sys.exit(main())
