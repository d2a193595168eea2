"""A full disk, a folder that may not be written: one line, status 2, the last checkpoint whole."""

import errno
import sys
from pathlib import Path

import pytest
from compare_runs import assert_identical, saved_state
from matplotlib.figure import Figure
from small_runs import compiled_as_by_launch, contents, launch, resolved, small_arguments

from medlitenet_jax.modes.train import train
from medlitenet_jax.pages.figures import save_figure
from medlitenet_jax.system.files import replace_file
from medlitenet_jax.system.tables import append_csv
from medlitenet_jax.training.layout import whole_steps
from medlitenet_jax.training.log import MetricsLog, read_metrics

# From batch 5 on no file may grow past a size that a log stays under and a checkpoint does not. The
# save after batch 6 has failed when batch 7 is done. This variant has so many arrays that libraries
# would print a traceback for each of many.
NO_ROOM = """
import resource, time
from medlitenet_jax.training import log
original = log.MetricsLog.write
def write(self, *, step, split, **kwargs):
  original(self, step=step, split=split, **kwargs)
  if step == 5:
    resource.setrlimit(resource.RLIMIT_FSIZE, (6144, 6144))
  if step == 7:
    time.sleep(3)
log.MetricsLog.write = write
"""
# Root may write anywhere, unless it gives that up.
NOT_ROOT = """
import ctypes
class Header(ctypes.Structure):
  _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
class Sets(ctypes.Structure):
  _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]
header, sets = Header(0x20080522, 0), (Sets * 2)()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capget(ctypes.byref(header), sets) == 0
for name in ("effective", "permitted"):
  setattr(sets[0], name, getattr(sets[0], name) & ~0b110)
assert libc.capset(ctypes.byref(header), sets) == 0
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and devices of Linux")


@pytest.fixture
def go_on():
  """Trains in this process, where that costs less."""

  def run(workdir, **fields):
    train(resolved(**fields), workdir)
    steps = [row["step"] for row in read_metrics(workdir) if row["split"] == "train"]
    last = fields.get("train__max_steps", 8)
    assert steps == list(range(1, last + 1)) and whole_steps(workdir)[-1] == last

  with compiled_as_by_launch():
    yield run


def refused(*args, patch):
  """The one line that the launcher ends with."""
  done = launch(*args, patch=patch)
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stdout + done.stderr
  last = done.stderr.rstrip().splitlines()[-1]
  assert "launch.py: error: " in last
  return last.split("launch.py: error: ")[1]


@linux
def test_a_checkpoint_without_room_ends_the_run_and_room_lets_it_go_on(tmp_path):
  workdir = tmp_path / "run"
  arguments = small_arguments(model__variant="many")
  line = refused(*arguments, f"--workdir={workdir}", patch=NO_ROOM)
  assert str(workdir / "checkpoints") in line and "cannot be written" in line
  assert "newest whole one is after batch 3" in line and whole_steps(workdir) == [3]
  steps = [row["step"] for row in read_metrics(workdir) if row["split"] == "train"]
  assert steps == list(range(1, 8))  # told at the next batch, not at the next save
  assert launch(*arguments, f"--workdir={workdir}").returncode == 0
  assert launch(*arguments, f"--workdir={tmp_path / 'straight'}").returncode == 0
  assert_identical(saved_state(workdir, 8), saved_state(tmp_path / "straight", 8))


@linux
def test_a_log_without_room_ends_the_run_and_room_lets_it_go_on(tmp_path, go_on, monkeypatch):
  workdir = tmp_path / "run"
  original = MetricsLog.write

  def write(self, *, step, **kwargs):
    if step == 5:
      self._file = Path("/dev/full").open("a", buffering=1)  # noqa: SIM115
    original(self, step=step, **kwargs)

  with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as error:
    patch.setattr(MetricsLog, "write", write)
    go_on(workdir)
  assert error.value.filename == str(workdir / "metrics.jsonl")
  assert whole_steps(workdir) == [3]
  go_on(workdir)


@linux
def test_a_folder_that_may_not_be_written_is_refused(tmp_path, go_on):
  workdir = tmp_path / "run"
  go_on(workdir, train__max_steps=3)
  before = contents(workdir)
  workdir.chmod(0o555)
  (workdir / "lock").chmod(0o444)
  arguments = (*small_arguments(train__max_steps=3), f"--workdir={workdir}")
  try:
    line = refused(*arguments, patch=NOT_ROOT)
  finally:
    workdir.chmod(0o755)
  assert str(workdir) in line and "Permission denied" in line
  assert contents(workdir) == before


@linux
def test_a_table_and_a_picture_without_room_are_named():
  full = Path("/dev/full")
  for write in (lambda: append_csv(full, {"a": 1}), lambda: save_figure(Figure(), full)):
    with pytest.raises(OSError, match="No space left") as error:
      write()
    assert error.value.filename == str(full)


@linux
def test_a_file_that_cannot_be_replaced_stays(tmp_path):
  path = tmp_path / "config.json"
  replace_file(path, "old")
  with (
    pytest.MonkeyPatch.context() as patch,
    pytest.raises(OSError, match="No space left") as error,
  ):

    def write_half(self, content):
      with self.open("wb") as file:
        file.write(content[:1])
      raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(Path, "write_bytes", write_half)
    replace_file(path, "new")
  assert error.value.filename == str(path)
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
