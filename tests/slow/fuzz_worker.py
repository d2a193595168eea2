"""Runs fuzzed inputs one after the other and says of each how it ended, in a line of JSON.

PYTHONPATH=.:tests python tests/slow/fuzz_worker.py FIRST COUNT
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import resource
import shutil
import stat
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from fuzz_inputs import KINDS, endings
from small_runs import scratch

HEADROOM = 4 << 30  # bytes of address space beyond what libraries take, so that no input does harm


def peak_mib() -> float:
  """The most memory that this process has held since `forget_peak`."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def forget_peak() -> None:
  """Has the kernel count the peak anew."""
  Path("/proc/self/clear_refs").write_text("5")


def contents(folder: Path) -> dict[str, str]:
  """What lies below a folder; pipes are not opened and links not followed."""
  found = {}
  for path in sorted(folder.rglob("*")):
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode):
      what = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
      what = os.readlink(path) if stat.S_ISLNK(mode) else oct(mode)
    found[str(path.relative_to(folder))] = what
  return found


def run(number: int) -> dict:
  """Makes an input and lets the project at it.

  Returns:
    `wrong`, what was wrong or nothing; seconds; MiB at the peak; how many calls were "refused" and
    how many a "success".
  """
  rng = np.random.default_rng(number)
  shares = np.array(list(KINDS.values())) / sum(KINDS.values())
  kind = list(KINDS)[rng.choice(len(KINDS), p=shares)]
  print(json.dumps({"number": number, "kind": kind.__name__}), flush=True)
  folder = scratch() / f"input_{number}"
  (folder / "in").mkdir(parents=True)
  (folder / "out").mkdir()
  endings.clear()
  quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
  try:
    with quiet[0], quiet[1]:
      act = kind(rng, folder)
      before = contents(folder / "in")
      forget_peak()
      wall, cpu = time.perf_counter(), time.process_time()
      wrong = _wrong(act, folder, before)
  finally:
    shutil.rmtree(folder)
  # The smaller of both: other processes slow the clock, several threads count more than once.
  seconds = min(time.perf_counter() - wall, time.process_time() - cpu)
  return {"number": number, "wrong": wrong, "seconds": seconds, "mib": peak_mib(), **endings}


def _wrong(act, folder: Path, before: dict[str, str]) -> str:
  try:
    act()
  except BaseException:
    return traceback.format_exc()
  if contents(folder / "in") != before:
    return "an input was changed"
  if {path.name for path in folder.iterdir()} != {"in", "out"}:
    return "something was written outside the output folder"
  return ""


def main() -> None:
  """Runs inputs FIRST to FIRST + COUNT."""
  first, count = map(int, sys.argv[1:])
  logging.disable(logging.CRITICAL)
  used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
  resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM,) * 2)
  for number in range(first, first + count):
    print(json.dumps(run(number)), flush=True)


if __name__ == "__main__":
  main()
