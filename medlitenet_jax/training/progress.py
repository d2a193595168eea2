"""What a run reports while it trains: means and scores in its log, a progress bar, time to go."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import jax
import optax
from tqdm import tqdm

from medlitenet_jax.speed.timing import compiling_seconds
from medlitenet_jax.system import devices
from medlitenet_jax.training.forecast import Forecast, spoken
from medlitenet_jax.training.log import MetricsLog, NullLog
from medlitenet_jax.training.meter import Meter
from medlitenet_jax.training.run import Plan

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
BALANCED_ACCURACY = (
  "balanced_accuracy"  # of the classes: the mean over them of the share that is right
)
TOLD_AFTER = 2  # batches, after which the log says how long the run is going to take


class Progress:
  """Measures the training loop and reports it; only process 0 shows a bar."""

  def __init__(
    self,
    plan: Plan,
    schedule: optax.Schedule,
    log: MetricsLog | NullLog,
    forecast: Forecast,
    step: int,
    *,
    scored_at: int,
  ):
    """Starts the clock and the bar.

    Args:
      plan: of the run.
      schedule: learning rate by updates done.
      log: receives the lines.
      forecast: of the run; is told what batches and validations take.
      step: batches seen so far.
      scored_at: pixels a side of the images of a validation.
    """
    self._scored_at = scored_at
    self._plan, self._schedule, self._log = plan, schedule, log
    self._meter = Meter(plan.batch_size)
    self._forecast = forecast
    self._step, self._timed, self._told = step, 0, False
    self._mark: float | None = None  # start of the step before, None after other work
    self._means: dict[str, str] = {}
    self._bar = tqdm(
      total=plan.total_steps,
      initial=step,
      unit="batch",
      dynamic_ncols=True,
      bar_format=BAR,
      disable=not devices.is_main_process(),
    )

  def batch_ready(self) -> None:
    """Counts the time until now as waiting for data."""
    self._meter.spent_on("waiting")

  def step_started(self, figures: dict[str, jax.Array]) -> None:
    """Takes the figures of a step that the device is still computing."""
    self._meter.add(figures)  # waits for the step before
    now = time.perf_counter()
    if self._mark is not None:
      self._forecast.batch_took(self._plan.image_size_at(self._step - 1), now - self._mark)
      self._timed += 1
    self._mark = now
    self._step += 1
    left = self._forecast.seconds_left(self._step)
    to_go = {} if left is None else {"left": spoken(left)}
    self._bar.set_postfix({**to_go, **self._means}, refresh=False)
    self._bar.update()
    if left is not None and self._timed >= TOLD_AFTER and not self._told:
      self._told = True
      self._say(f"About {spoken(left)} to go.")

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
    self._means = {
      "loss": f"{means['loss']:.4f}",
      "images_per_s": f"{means['images_per_second']:.1f}",
    }
    self._meter.spent_on("logging")

  def write_scores(self, step: int, scores: Mapping[str, float] | None) -> None:
    """Logs validation scores; None, of a validation that was cut short, writes nothing."""
    if scores is None:
      return
    epoch = self._plan.epoch_at(step)
    self._log.write(step=step, epoch=epoch, split="val", figures=scores)
    line = f"epoch {epoch:.1f}: val Dice {scores['dice']:.4f}, IoU {scores['iou']:.4f}"
    if BALANCED_ACCURACY in scores:
      line += f", balanced accuracy of the classes {scores[BALANCED_ACCURACY]:.4f}"
    if step and self._plan.yet_to_come(self._scored_at, step):
      line += f" (at {self._scored_at} pixels, which come later in training)"
    self._say(line)

  def _say(self, line: str) -> None:
    """Prints a line above the bar."""
    if devices.is_main_process():
      self._bar.write(line)

  @contextlib.contextmanager
  def other_work(self, *, validation: bool = False) -> Iterator[None]:
    """Leaves out of the measurements what is not training.

    Args:
      validation: whether it is a validation and saving, of which there will be more.
    """
    start, compiled = time.perf_counter(), compiling_seconds()
    yield
    if validation:
      compiling = compiling_seconds() - compiled
      self._forecast.validation_took(max(0.0, time.perf_counter() - start - compiling))
    self._meter.restart()
    self._mark = None

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()
