"""What a run reports while it trains: means and scores in its log, and a progress bar."""

from collections.abc import Mapping

import jax
import optax
from tqdm import tqdm

from medlitenet_jax.system import devices
from medlitenet_jax.training.log import MetricsLog, NullLog
from medlitenet_jax.training.meter import Meter
from medlitenet_jax.training.run import Plan


class Progress:
  """Measures the training loop and reports it; only process 0 shows a bar."""

  def __init__(self, plan: Plan, schedule: optax.Schedule, log: MetricsLog | NullLog, step: int):
    """Starts the clock and the bar.

    Args:
      plan: of the run.
      schedule: learning rate by updates done.
      log: receives the lines.
      step: batches seen so far.
    """
    self._plan, self._schedule, self._log = plan, schedule, log
    self._meter = Meter(plan.batch_size)
    self._bar = tqdm(
      total=plan.total_steps,
      initial=step,
      unit="batch",
      dynamic_ncols=True,
      disable=not devices.is_main_process(),
    )

  def batch_ready(self) -> None:
    """Counts the time until now as waiting for data."""
    self._meter.spent_on("waiting")

  def step_started(self, figures: dict[str, jax.Array]) -> None:
    """Takes the figures of a step that the device is still computing."""
    self._meter.add(figures)
    self._bar.update()

  def write_means(self, step: int, *, updates: int) -> None:
    """Logs the means since the last call.

    Args:
      step: batches seen.
      updates: optimizer steps done; skipped batches make none.
    """
    means = self._meter.read()
    means["learning_rate"] = float(self._schedule(updates))
    means["image_size"] = self._plan.image_size_at(step - 1)
    self._log.write(step=step, epoch=self._plan.epoch_at(step), split="train", figures=means)
    self._bar.set_postfix(
      loss=f"{means['loss']:.4f}",
      images_per_s=f"{means['images_per_second']:.1f}",
      refresh=False,
    )
    self._meter.spent_on("logging")

  def write_scores(self, step: int, scores: Mapping[str, float] | None) -> None:
    """Logs validation scores; None, of a validation that was cut short, writes nothing."""
    if scores is None:
      return
    epoch = self._plan.epoch_at(step)
    self._log.write(step=step, epoch=epoch, split="val", figures=scores)
    if devices.is_main_process():
      self._bar.write(f"epoch {epoch:.1f}: val Dice {scores['dice']:.4f}, IoU {scores['iou']:.4f}")

  def restart_clock(self) -> None:
    """Leaves the time since the last call out, which was not spent on training."""
    self._meter.restart()

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()
