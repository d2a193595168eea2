"""Runs `launch.py` in forks of a process that has imported JAX and the package already.

Importing takes a second or two of each command.
"""

import atexit
import contextlib
import functools
import importlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from medlitenet_jax.modes import MODES
from medlitenet_jax.system.process import ALLOCATOR

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = "MEDLITENET_PRELOADED"

POSSIBLE = "forkserver" in multiprocessing.get_all_start_methods()
LOCK = threading.Lock()  # each start looks after all that have ended; two threads would both

if PRELOADED in os.environ:  # the process that is forked; not the tests that import this file
  for _mode in MODES:
    importlib.import_module(f"medlitenet_jax.modes.{_mode}")
  importlib.import_module("stub_network")


@functools.cache
def _context(environment: tuple[tuple[str, str], ...]):
  """A way to start processes that have these environment variables."""
  from multiprocessing import forkserver  # not on Windows

  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([__name__])
  before = dict(os.environ)
  os.environ.clear()
  path = os.pathsep.join(map(str, (Path(__file__).parent, ROOT)))
  os.environ.update(environment, **{PRELOADED: "1", "PYTHONPATH": path})
  os.environ["GLIBC_TUNABLES"] = ALLOCATOR  # without it the command would start Python anew
  try:
    forkserver.ensure_running()
  finally:
    os.environ.clear()
    os.environ.update(before)
  return context


def _command(
  script: str,
  args: list[str],
  patch: str,
  further: Mapping[str, str],
  folder: Path,
  out: str,
  err: str,
) -> None:
  """In the fork: what a shell would start."""
  for path, number in ((out, 1), (err, 2)):
    os.dup2(os.open(path, os.O_WRONLY), number)
  os.chdir(folder)
  del os.environ[PRELOADED], os.environ["PYTHONPATH"]
  os.environ.update(further)
  logging.root.handlers.clear()  # set up where something logs as it is imported
  sys.argv = [script, *args]
  sys.orig_argv = [sys.executable, *sys.argv]
  try:
    exec(patch, {"__name__": "__main__"})
    runpy.run_path(script, run_name="__main__")
  finally:
    atexit._run_exitfuncs()  # which a fork leaves out


def run(
  script: str,
  args: list[str],
  *,
  patch: str,
  folder: Path,
  environment: Mapping[str, str],
  further: Mapping[str, str],
  timeout: float,
) -> subprocess.CompletedProcess:
  """Runs a script of Python as `subprocess.run` does, after some lines of Python.

  Args:
    script: its file.
    args: of its command line.
    patch: what is executed before it, in the same process.
    folder: where it is started.
    environment: the same in every call of a process.
    further: variables that are set in the process that is forked.
    timeout: in seconds.
  """
  with LOCK:  # one of several threads starts the process that is forked
    context = _context(tuple(sorted(environment.items())))
  with contextlib.ExitStack() as stack:
    out, err = (stack.enter_context(tempfile.NamedTemporaryFile("r")) for _ in range(2))
    process = context.Process(
      target=_command, args=(script, args, patch, further, folder, out.name, err.name)
    )
    with LOCK:
      process.start()
    in_time = multiprocessing.connection.wait([process.sentinel], timeout)
    with LOCK:
      if not in_time:
        process.kill()
      process.join()
    if not in_time:
      raise subprocess.TimeoutExpired([script, *args], timeout, out.read(), err.read())
    return subprocess.CompletedProcess([script, *args], process.exitcode, out.read(), err.read())
