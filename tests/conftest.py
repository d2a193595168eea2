"""What several tests need."""

import sys
import time

import jax
import numpy as np
import pytest
from small_runs import FAST_COMPILATION, scratch

from medlitenet_jax.system.process import set_up_compiler


def pytest_configure():
  """Makes the folder that all workers share before they start; compiles fast, not for speed."""
  scratch()
  set_up_compiler()
  jax.config.update(*FAST_COMPILATION)


# The files that take longest, which the processes of `make test` begin with: one of them at the end
# would leave the other process without work.
LONG = (
  "test_second_network.py",
  "test_network.py",
  "test_launch.py",
  "test_ops.py",
  "test_devices.py",
  "test_kill.py",
  "test_native_size.py",
  "test_fold.py",
  "test_benchmark.py",
  "test_gpu_program.py",
  "test_loop.py",
  "test_full_disk.py",
  "test_stop.py",
  "test_released.py",
  "test_evaluate.py",
  "test_fuzz.py",
)


def pytest_collection_modifyitems(items):
  """Begins with the longest files."""
  place = {name: number for number, name in enumerate(LONG)}
  items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


# These need limits and /proc of Linux; fork, and signals that a process sends to itself.
LINUX, UNIX = ("test_fuzz.py",), ("training/test_kill.py", "system/test_stop.py")
collect_ignore = [
  *(LINUX if sys.platform != "linux" else ()),
  *(UNIX if sys.platform == "win32" else ()),
]


@pytest.fixture
def clock(monkeypatch):
  """Seconds, which stand still unless the test moves them by adding to `now`."""

  class Clock:
    now = 100.0

  monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
  return Clock


@pytest.fixture
def randomise():
  """Replaces every leaf of a tree of parameters or running statistics by random numbers.

  Initialisers leave biases at 0 and scales at 1, where a forgotten or doubled one would not show.
  """

  def replace(tree, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
      name = path[-1].key
      if name in ("scale", "var"):
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
      reach = np.prod(leaf.shape[:-1]) if name == "kernel" else 4
      return (rng.normal(size=leaf.shape) / np.sqrt(reach)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)

  return replace
