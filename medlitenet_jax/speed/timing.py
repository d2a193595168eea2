"""Times several functions in alternation, for machines whose speed varies."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from medlitenet_jax.system.process import COMPILED

SLOT_SECONDS = 0.1  # shorter calls are repeated within a turn until it takes about this long


def time_interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
  """Times several calls in turn, so that changes in the machine's speed affect all of them equally.

  A call shorter than `SLOT_SECONDS` is repeated up to 20 times within its turn, after an untimed
  call that brings its data back into the caches.

  Args:
    calls: functions by name; each returns the arrays to wait for.
    rounds: number of turns of each, after an untimed first call.

  Returns:
    Seconds per call by name, the median over the turns.
  """

  def seconds(call) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start

  first = {name: seconds(call) for name, call in calls.items()}
  repeats = {name: max(1, min(20, int(SLOT_SECONDS / value))) for name, value in first.items()}
  turns: dict[str, list[float]] = {name: [] for name in calls}
  for _ in tqdm(range(rounds), unit="round", leave=False, dynamic_ncols=True):
    for name, call in calls.items():
      if repeats[name] > 1:
        seconds(call)
      turns[name].append(float(np.mean([seconds(call) for _ in range(repeats[name])])))
  return {name: float(np.median(values)) for name, values in turns.items()}


class _CompilingClock:
  """Adds up the time that this process spends compiling."""

  def __init__(self):
    self.seconds = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._add)

  def _add(self, event: str, duration_secs: float, **_) -> None:
    if event == COMPILED:
      self.seconds += duration_secs


@functools.cache
def _compiling_clock() -> _CompilingClock:
  return _CompilingClock()


def compiling_seconds() -> float:
  """Seconds that this process has spent compiling since the first call; reading a cache counts."""
  return _compiling_clock().seconds
