"""Batches that were skipped because their loss or gradient was not finite: logged and counted."""

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
  """Names and counts the batches that the step skipped.

  A batch is checked only when the next one has been started, so that the device never waits.

  Attributes:
    too_many: whether as many batches in a row were skipped as end a run; it then stays true.
  """

  def __init__(self, log: MetricsLog | NullLog, *, skipped: int, limit: int):
    """Starts with the count of an earlier call.

    Args:
      log: receives a line for each skipped batch.
      skipped: batches skipped so far.
      limit: skipped batches in a row that end a run; 0: no number does.
    """
    self._log = log
    self._skipped = skipped
    self._limit = limit
    self._row: list[_Batch] = []
    self._pending: _Batch | None = None

  @property
  def too_many(self) -> bool:
    """Whether the limit of skipped batches in a row was reached."""
    return bool(self._limit) and len(self._row) >= self._limit

  def add(
    self, *, step: int, epoch: float, case_ids: Sequence[str], figures: Mapping[str, jax.Array]
  ) -> None:
    """Takes a batch whose step has been started, and checks the one before.

    Args:
      step: batches seen, including this one.
      epoch: epochs done.
      case_ids: names of the cases in this process's rows.
      figures: of the step; "skipped" counts from the beginning of the run.
    """
    self.read()
    self._pending = _Batch(step, epoch, case_ids, figures)

  def read(self) -> None:
    """Waits for the step of the last batch and checks it; all processes call it together."""
    batch, self._pending = self._pending, None
    if batch is None:
      return
    skipped = int(batch.figures["skipped"])
    if skipped == self._skipped:
      if not self.too_many:  # it is noticed one batch late, and that batch may be good
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
    """Names the last skipped batches in a row and their cases."""
    names = dict.fromkeys(name for batch in self._row for name in batch.case_ids)
    return (
      f"batches {self._row[0].step} to {self._row[-1].step} had a loss or a gradient that is not "
      f"finite and were skipped; their cases: {', '.join(names)}"
    )
