"""Times things beside each other on a machine whose speed changes."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

SLOT_SECONDS = 0.1


def time_interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
  """Times several calls in turn, so that a change of the machine's speed meets all of them alike.

  A call much shorter than `SLOT_SECONDS` is repeated in its turn, after one that is not counted
  and that brings its data back into the caches.

  Args:
    calls: by name; each returns what has to be waited for.
    rounds: turns of each, after a first call that is not counted.

  Returns:
    Seconds of one call of each, the median over its turns.
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
