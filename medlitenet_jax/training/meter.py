"""What the training loop measures of itself: means of the step's figures, its rate, its delays."""

import time
from collections import defaultdict

import jax
import numpy as np


class Meter:
  """Means of the step's figures, and where the time went, since they were last read.

  Figures stay on the device until they are read, and each step waits only for the one before it:
  the device always has work, and the host never runs far ahead of it.
  """

  def __init__(self, batch_size: int):
    """Starts the clock; `batch_size` is in images."""
    self._batch_size = batch_size
    self._figures: list[dict[str, jax.Array]] = []
    self._seconds: dict[str, float] = defaultdict(float)
    self.restart()

  def restart(self) -> None:
    """Starts the clock anew, after work that is not training."""
    self._mark = time.perf_counter()

  def spent_on(self, part: str) -> None:
    """Puts the time since the last call of any method down to a part of the loop."""
    now = time.perf_counter()
    self._seconds[part] += now - self._mark
    self._mark = now

  def add(self, figures: dict[str, jax.Array]) -> None:
    """Takes the figures of a step that has been started."""
    if self._figures:
      jax.block_until_ready(self._figures[-1])
    self._figures.append(figures)
    self.spent_on("step")

  def read(self) -> dict[str, float]:
    """Waits for the last step, and returns and forgets what was measured.

    Returns:
      Means of the figures, the last of "skipped", which is a count; "images_per_second"; and
      "waiting_share" and "logging_share", the parts of the time in which the loop stood still for
      data and for its log. While it waits the device may still be busy with the step before.
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
  """Mean of what is finite; a skipped batch has figures that are not."""
  finite = [value for value in values if np.isfinite(value)]
  return float(np.mean(finite)) if finite else float("nan")
