"""How long the rest of a run takes, from what its batches and validations took so far."""

import math
from collections import defaultdict, deque

from medlitenet_jax.training.run import Plan

RECENT = 100  # batches of a size whose mean is used
FORWARD_SHARE = 1 / 3  # of the time of a step that its forward pass takes, roughly


class Forecast:
  """Predicts the time to the end of a run; compiling what is new is part of it where known.

  A size not seen yet is taken to need time in proportion to its area, and so is a validation.
  """

  def __init__(self, plan: Plan, *, num_validated: int, eval_size: int):
    """Knows nothing yet.

    Args:
      plan: of the run.
      num_validated: cases of a validation.
      eval_size: side of the images in a validation, in pixels.
    """
    self._plan = plan
    self._num_validated, self._eval_size = num_validated, eval_size
    self._batches: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
    self._counts: dict[int, int] = defaultdict(int)
    self._validations: list[float] = []
    self._compiling: dict[int, float] = {}

  def batch_took(self, image_size: int, seconds: float) -> None:
    """Takes the time of a batch, waiting included; the first of a size counts until the next."""
    recent = self._batches[image_size]
    if self._counts[image_size] == 1:
      recent.clear()
    recent.append(seconds)
    self._counts[image_size] += 1

  def validation_took(self, seconds: float) -> None:
    """Takes the time of a validation and of saving after it, without compiling."""
    self._validations.append(seconds)

  def compiling_took(self, image_size: int, seconds: float) -> None:
    """Takes the time of compiling the step for a size."""
    self._compiling[image_size] = seconds

  def batch_seconds(self, image_size: int) -> float | None:
    """Seconds of a batch of images of a size in pixels; None before there was any batch."""
    known = [size for size, recent in self._batches.items() if recent]
    if not known:
      return None
    nearest = min(known, key=lambda size: abs(math.log(size / image_size)))
    recent = self._batches[nearest]
    return sum(recent) / len(recent) * (image_size / nearest) ** 2

  def validation_seconds(self) -> float | None:
    """Seconds of a validation; None before there was any batch."""
    if self._validations:
      return sum(self._validations) / len(self._validations)
    batch = self.batch_seconds(self._eval_size)
    if batch is None:
      return None
    return batch * FORWARD_SHARE * self._num_validated / self._plan.batch_size

  def seconds_left(self, step: int) -> float | None:
    """Seconds to the end of the run after `step` batches; None before there was any batch."""
    validation = self.validation_seconds()
    if validation is None:
      return None
    total = validation * self._plan.validations_left(step)
    compiled = self._compiling or {0: 0.0}
    for size, count in self._plan.batches_left(step).items():
      total += count * (self.batch_seconds(size) or 0.0)
      if size not in self._compiling:
        total += max(compiled.values())
    return total


def spoken(seconds: float) -> str:
  """A duration in words: 40 s, 12 min, 3 h 20 min, 2 days 4 h."""
  minutes = round(seconds / 60)
  if seconds < 100:
    return f"{max(1, round(seconds))} s"
  if minutes < 100:
    return f"{minutes} min"
  hours, minutes = divmod(minutes, 60)
  if hours < 48:
    return f"{hours} h {minutes:02d} min"
  days, hours = divmod(hours, 24)
  return f"{days} days {hours} h"
