"""What Windows and macOS lack is missed by nothing: modules of Unix, calls of Linux."""

import json
import subprocess
import sys

from small_runs import ROOT, SIZES, finished_run, scratch, write_sizes

# Trains, evaluates and predicts in one process, in which those modules and calls are missing.
# array_record and uvloop have no wheels for Windows.
PROGRAM = f"""
import os, pathlib, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from small_runs import compiled_as_by_launch, network_of, resolved
def hide(*names):
  sys.modules.update(dict.fromkeys(names))
hide("fcntl", "resource", "termios", "pwd", "grp", "uvloop")
for name in [name for name in sys.modules if name.split(".")[0] == "filelock"]:
  del sys.modules[name]  # the tests' own use of it has found fcntl
import grain  # which asks for the name of the system, and needs array_record on this one
hide("array_record")
for module, names in (
  (os, ("sched_getaffinity", "sched_setaffinity", "set_blocking", "fork", "getuid", "sysconf")),
  (signal, ("SIGHUP", "SIGKILL", "SIGUSR1", "pthread_kill", "setitimer", "sigwait")),
):
  for name in names:
    if hasattr(module, name):
      delattr(module, name)

from medlitenet_jax.inference.outline import mask_rule
from medlitenet_jax.modes.evaluate import evaluate
from medlitenet_jax.data.photographs import find_photographs
from medlitenet_jax.modes.predict import predict
from medlitenet_jax.modes.train import train
from medlitenet_jax.system import process

folder, photographs = map(pathlib.Path, sys.argv[1:])
config = resolved()
with compiled_as_by_launch():
  train(config, folder / "run")
  networks = [network_of(folder / "run", config)]
  evaluate(config, networks, folder / "run", "")
  paths = find_photographs([photographs], "predict.json")
  predict(config, networks, mask_rule(config.eval, 0.5), paths, folder / "outlined")
assert process.peak_memory() is None
"""


def test_train_evaluate_and_predict_without_what_other_systems_lack(tmp_path):
  finished_run()  # which has compiled the same programs
  photographs = write_sizes(tmp_path / "data") / "images"
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(tmp_path), str(photographs)],
    cwd=scratch(),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  # Without fcntl a folder cannot be locked here, which is said; Windows has a lock of its own.
  assert "cannot be locked" in done.stderr or sys.platform == "win32"
  assert json.loads((tmp_path / "run" / "eval" / "test" / "summary.json").read_text())["cases"] == 6
  assert len(list((tmp_path / "outlined" / "masks").iterdir())) == len(SIZES) + 1
