"""Measures the training loop: means of the step's figures, images a second, time spent waiting."""

import time
from collections import defaultdict

import jax
import numpy as np


class Meter:
  """Means of the step's figures, and where the time went, since the last `read`.

  Figures stay on the device until they are read. Adding those of a step waits for the step before
  it, so the device always has one step to do, and the host is never more than one step ahead.
  """

  def __init__(self, batch_size: int):
    """Starts the clock.

    Args:
      batch_size: images a batch.
    """
    self._batch_size = batch_size
    self._figures: list[dict[str, jax.Array]] = []
    self._seconds: dict[str, float] = defaultdict(float)
    self.restart()

  def restart(self) -> None:
    """Leaves the time since the last call of any method out, after work that is not training."""
    self._mark = time.perf_counter()

  def spent_on(self, part: str) -> None:
    """Counts the time since the last call of any method as spent on a part of the loop."""
    now = time.perf_counter()
    self._seconds[part] += now - self._mark
    self._mark = now

  def add(self, figures: dict[str, jax.Array]) -> None:
    """Takes the scalar figures of a step that has been started, by name."""
    if self._figures:
      jax.block_until_ready(self._figures[-1])
    self._figures.append(figures)
    self.spent_on("step")

  def read(self) -> dict[str, float]:
    """Waits for the last step, returns the measurements and starts new ones.

    Returns:
      The mean of each figure over the batches where it is finite, NaN if there are none; of
      "skipped", which is a count, the last value. "images_per_second". "waiting_share" and
      "logging_share", the fractions of the time that the loop waited for data and spent on its log;
      the device may have been busy meanwhile.
    """
    columns = jax.device_get(self._figures)
    self.spent_on("step")
    seconds = sum(self._seconds.values())
    means = {name: _finite_mean([row[name] for row in columns]) for name in columns[0]}
    means["skipped"] = float(columns[-1]["skipped"])
    means["images_per_second"] = len(columns) * self._batch_size / seconds
    for part in ("waiting", "logging"):
      means[f"{part}_share"] = self._seconds[part] / seconds
    self._figures, self._seconds = [], defaultdict(float)
    return means


def _finite_mean(values) -> float:
  """Mean of the finite values, NaN if there are none; a skipped batch has others."""
  finite = [value for value in values if np.isfinite(value)]
  return float(np.mean(finite)) if finite else float("nan")
