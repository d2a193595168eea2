"""Runs killed at any instant end bit for bit as one that was not."""

import os
import subprocess
import sys

from small_runs import ROOT


def test_killed_runs_end_as_a_straight_one():
  done = subprocess.run(
    [sys.executable, "-W", "ignore", str(ROOT / "tests" / "slow" / "kill_runs.py"), "--kills=8"],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  last = done.stdout.splitlines()[-1]
  assert last.startswith("8 kills (") and "all ended bit for bit" in last
  assert " 0 left a half-written checkpoint" not in last
