"""Batches that taught nothing because a number went bad: named, logged and counted in a row."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from medlitenet_jax.system import devices
from medlitenet_jax.training.log import MetricsLog, NullLog

logger = logging.getLogger(__name__)


class _Batch(NamedTuple):
  step: int
  epoch: float
  case_ids: Sequence[str]
  figures: Mapping[str, jax.Array]


class SkippedBatches:
  """Watches the step's count of batches whose loss or gradient was not finite.

  A batch is looked at when the next one has been started, so that the device never waits.

  Attributes:
    too_many: whether as many in a row were skipped as a run puts up with.
  """

  def __init__(self, log: MetricsLog | NullLog, *, skipped: int, limit: int):
    """Starts to watch.

    Args:
      log: receives a line for each.
      skipped: batches skipped so far.
      limit: in a row; 0 for any number.
    """
    self._log = log
    self._skipped = skipped
    self._limit = limit
    self._row: list[_Batch] = []
    self._pending: _Batch | None = None

  @property
  def too_many(self) -> bool:
    """Whether the limit was reached."""
    return bool(self._limit) and len(self._row) >= self._limit

  def add(
    self, *, step: int, epoch: float, case_ids: Sequence[str], figures: Mapping[str, jax.Array]
  ) -> None:
    """Takes a batch that has been started, and looks at the one before.

    Args:
      step: batches seen with it.
      epoch: the same in epochs.
      case_ids: of the batch.
      figures: of the step; "skipped" counts from the run's beginning.
    """
    self.read()
    self._pending = _Batch(step, epoch, case_ids, figures)

  def read(self) -> None:
    """Waits for the last batch and looks at it."""
    batch, self._pending = self._pending, None
    if batch is None:
      return
    skipped = int(batch.figures["skipped"])
    if skipped == self._skipped:
      if not self.too_many:  # which stays so, though the batch after them was good
        self._row = []
      return
    self._skipped = skipped
    case_ids = [name for part in devices.gather(list(batch.case_ids)) for name in part]
    batch = batch._replace(case_ids=case_ids)
    self._row.append(batch)
    figures = {name: float(batch.figures[name]) for name in ("loss", "grad_norm", "skipped")}
    bad = "gradient" if np.isfinite(figures["loss"]) else "loss"
    logger.warning(
      "Batch %d was skipped, its %s is not finite: %s", batch.step, bad, ", ".join(batch.case_ids)
    )
    self._log.write(
      step=batch.step,
      epoch=batch.epoch,
      split="skipped",
      figures=figures,
      case_ids=batch.case_ids,
    )

  def describe(self) -> str:
    """Names the batches of the row and their cases."""
    names = dict.fromkeys(name for batch in self._row for name in batch.case_ids)
    return (
      f"batches {self._row[0].step} to {self._row[-1].step} had a loss or a gradient that is not "
      f"finite and taught nothing; their cases: {', '.join(names)}"
    )
