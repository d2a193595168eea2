"""Training: how long a run is, and the loop that learns, validates and saves."""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.cases import Source
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.pipeline import train_batches
from medlitenet_jax.data.sources import CachedCases, create_source
from medlitenet_jax.formats.safetensors import find_weights, read_weights
from medlitenet_jax.inference.networks import create_predict, predict_cases
from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model, model_parts
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.pages.figures import draw_curves
from medlitenet_jax.scores import metrics
from medlitenet_jax.scores.case_scores import plain_scores
from medlitenet_jax.speed.trace import profile_window
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.stop import Stopped, StopRequest, stop_on_signals
from medlitenet_jax.training import log, optim
from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.meter import Meter
from medlitenet_jax.training.skipped import SkippedBatches
from medlitenet_jax.training.state import TrainState, create_state, start_from
from medlitenet_jax.training.step import create_train_step
from medlitenet_jax.training.workdir import note_earlier_cases, open_workdir

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
  """How long a run is, counted in batches (micro-steps).

  Attributes:
    total_steps: of the run.
    epoch_steps: batches an epoch, rounded; the cadence of validation.
    image_sizes: pixels a side, an equal share of the run each.
  """

  total_steps: int
  epoch_steps: int
  image_sizes: tuple[int, ...]

  def image_size_at(self, step: int) -> int:
    """Pixels a side of the batch of a number, counted from 0."""
    phase = step * len(self.image_sizes) // self.total_steps
    return self.image_sizes[min(phase, len(self.image_sizes) - 1)]


def create_plan(train: ConfigDict, num_cases: int) -> Plan:
  """Reads the length of a run from `config.train` and the number of training cases."""
  by_epochs = math.ceil(train.epochs * num_cases / train.batch_size)
  return Plan(
    total_steps=train.max_steps or by_epochs,
    epoch_steps=max(1, round(num_cases / train.batch_size)),
    image_sizes=train.image_sizes,
  )


def create_run_optimizer(
  optimizer: ConfigDict, total_steps: int
) -> tuple[optax.MultiSteps, optax.Schedule]:
  """Builds the optimizer of a run of `total_steps` batches, and its schedule over updates."""
  schedule = optim.create_schedule(
    total_steps // optimizer.accumulation,
    learning_rate=optimizer.learning_rate,
    final_learning_rate=optimizer.final_learning_rate,
    warmup_updates=optimizer.warmup_updates,
  )
  tx = optim.create_optimizer(
    schedule,
    name=optimizer.name,
    weight_decay=optimizer.weight_decay,
    momentum=optimizer.momentum,
    clip_norm=optimizer.clip_norm,
    accumulation=optimizer.accumulation,
  )
  return tx, schedule


def create_train_batches(config: ConfigDict, source: Source, plan: Plan) -> grain.DatasetIterator:
  """Opens the training data of a run at its beginning."""
  return train_batches(
    CachedCases(source, config.data.cache_gib * 2**30),
    seed=config.seed,
    batch_size=config.train.batch_size,
    image_size_at=plan.image_size_at,
    preprocessing=Preprocessing(**config.preprocess),
    policy=AugmentPolicy(**config.augment),
    num_threads=config.data.num_threads,
    prefetch_batches=config.data.prefetch_batches,
    on_device=config.data.augment_on == "device",
    rows=devices.own_rows(config.train.batch_size),
  )


def validate(
  predict: Callable,
  variables,
  source: Source,
  config: ConfigDict,
  stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
  """Mean scores of a network on a source by which checkpoints are selected.

  They are those of a plain evaluation: no test-time augmentation, no clean-up, threshold one half.

  Args:
    predict: of `create_predict`.
    variables: of the network, folded.
    source: the cases.
    config: resolved; `eval`, `data` and `preprocess` are used.
    stopped: asked after each case; once it is true, the rest is left out.

  Returns:
    The mean over cases of each name in `metrics.SCORES`; None if cases were left out.
  """
  maps = functools.partial(predict, [variables])
  cases = predict_cases(maps, source, [config.eval.image_size], config)
  own: list[tuple[int, dict[str, float]]] = []
  for case, probs, _ in cases:
    if stopped():
      return None
    own.append((case.index, plain_scores(probs, case.mask)))
  rows = devices.gather_cases(own)
  return {name: float(np.mean([row[name] for row in rows])) for name in metrics.SCORES}


class _Loop:
  """A run on its way. The order within it is fixed: draw, step, log, validate, save."""

  def __init__(self, config: ConfigDict, workdir: Path, sources: Mapping[str, Source]):
    """Prepares all that does not need the workdir, which is not touched before `run`."""
    self._config, self._workdir, self._sources = config, workdir, sources
    self._plan = create_plan(config.train, len(sources["train"]))
    model = create_model(config.model.to_dict(), DTYPES[config.precision])
    tx, self._schedule = create_run_optimizer(config.optim, self._plan.total_steps)
    self._step_fn = create_train_step(config, model, tx)
    self._predict = create_predict([(model, config.eval.image_size)])
    folds = inspect_model(model, config.eval.image_size).folds
    self._fold = jax.jit(functools.partial(fold_batch_norm, folds=folds))
    self._batches = create_train_batches(config, sources["train"], self._plan)
    self._initialise = functools.partial(
      create_state,
      model,
      tx,
      seed=config.seed,
      precision=config.precision,
      image_size=min(self._plan.image_sizes),
    )

  @property
  def total_steps(self) -> int:
    """Batches that the run will have seen in the end."""
    return self._plan.total_steps

  def _first_state(self) -> TrainState:
    """The network as the newest checkpoint has it, as trained elsewhere, or at random."""
    restored = self._checkpoints.resume(jax.eval_shape(self._initialise), self._batches)
    if restored is not None:
      seen, asked = int(restored.micro_step), self._plan.total_steps
      logger.info("Resuming %s after %d of %d batches.", self._workdir, seen, asked)
      return restored
    state = jax.jit(self._initialise, out_shardings=devices.replicated())()
    name = self._config.train.start_from
    if not name:
      return state
    weights = read_weights(find_weights(name))
    state = start_from(state, jax.device_put(weights.variables, devices.replicated()))
    devices.on_first(lambda: note_earlier_cases(self._workdir, weights.seen))
    logger.info("Starting from %s.", name)
    return state

  def run(self, checkpoints: Checkpoints, stopped: StopRequest) -> None:
    """Trains to the end of the plan, to a signal, or to too many batches that taught nothing.

    Raises:
      InputError: if there is no such checkpoint or weights file to begin with, or at those batches.
      Stopped: at the signal.
    """
    self._checkpoints, self._stopped = checkpoints, stopped
    self._state = self._first_state()
    self._seen = int(self._state.micro_step)
    validated = bool(self._seen and self._checkpoints.metrics(self._seen))
    with contextlib.ExitStack() as stack:
      self._log = stack.enter_context(self._open_log(validated))
      self._bar = stack.enter_context(self._open_bar())
      self._meter = Meter(self._config.train.batch_size)
      self._skips = SkippedBatches(
        self._log,
        skipped=int(self._state.skipped),
        limit=self._config.train.max_skipped_in_a_row,
      )
      trace_at = stack.enter_context(self._profile())
      if self._seen and not validated and self._validation_due():
        scores = self._validate()
        if scores is not None:
          self._checkpoints.add_metrics(self._seen, scores)
        self._meter.restart()
      while self._seen < self._plan.total_steps and not self._ending():
        trace_at(self._seen, self._state)
        self._learn()
        if self._due(self._config.train.log_every_steps):
          self._write_means()
        if self._validation_due():
          self._skips.read()  # in the log before the scores
          with self._kept_if_it_fails():
            scores = self._validate()
          self._save(scores)
          self._meter.restart()
      self._save()
      self._raise_if_cut_short()

  def _save(self, scores: Mapping[str, float] | None = None) -> None:
    """Saves what was learned, unless that is done; its batches are in the log before."""
    self._skips.read()
    if self._seen and self._checkpoints.latest_step != self._seen:
      self._checkpoints.save(self._state, self._batches, scores)

  @contextlib.contextmanager
  def _kept_if_it_fails(self) -> Iterator[None]:
    """Saves what was learned where reading or scoring fails, of a damaged file or for memory."""
    try:
      yield
    except Exception:
      if jax.process_count() == 1:  # others would not join in
        self._save()
      raise

  def _learn(self) -> None:
    with self._kept_if_it_fails():
      self._batch = next(self._batches)
    case_ids = self._batch.pop("case_id")
    self._batch = devices.share_out(self._batch)
    self._meter.spent_on("waiting")
    self._state, figures = self._step_fn(self._state, self._batch)
    self._seen += 1
    self._meter.add(figures)
    self._skips.add(step=self._seen, epoch=self._epoch, case_ids=case_ids, figures=figures)
    self._bar.update()

  def _write_means(self) -> None:
    means = self._meter.read()
    updates = int(self._state.opt_state.gradient_step)  # skipped batches make none
    means["learning_rate"] = float(self._schedule(updates))
    means["image_size"] = self._plan.image_size_at(self._seen - 1)
    self._log.write(step=self._seen, epoch=self._epoch, split="train", figures=means)
    self._bar.set_postfix(
      loss=f"{means['loss']:.4f}",
      images_per_s=f"{means['images_per_second']:.1f}",
      refresh=False,
    )
    self._meter.spent_on("logging")

  def _validate(self) -> dict[str, float] | None:
    """Scores the averaged network and logs them; None if a signal cut that short."""
    hurried = self._stopped if jax.process_count() == 1 else lambda: False
    variables = self._fold(self._state.ema_variables)
    scores = validate(self._predict, variables, self._sources["val"], self._config, hurried)
    if scores is not None:
      self._log.write(step=self._seen, epoch=self._epoch, split="val", figures=scores)
      if devices.is_first():
        dice, iou = scores["dice"], scores["iou"]
        self._bar.write(f"epoch {self._epoch:.1f}: val Dice {dice:.4f}, IoU {iou:.4f}")
    return scores

  @property
  def _epoch(self) -> float:
    return self._seen * self._config.train.batch_size / len(self._sources["train"])

  def _due(self, every: int) -> bool:
    return self._seen == self._plan.total_steps or self._seen % every == 0

  def _validation_due(self) -> bool:
    return self._due(self._config.train.validate_every_epochs * self._plan.epoch_steps)

  def _ending(self) -> bool:
    """Several processes ask each other, now and then, for they must end at one batch."""
    if self._skips.too_many:
      return True
    if jax.process_count() == 1:
      return self._stopped()
    asking = self._seen % self._config.train.log_every_steps == 0
    return asking and any(devices.gather(self._stopped()))

  def _raise_if_cut_short(self) -> None:
    if self._skips.too_many:
      raise InputError(
        f"{self._skips.describe()}; the state, without them, is saved in {self._workdir}, and as "
        "many as config.train.max_skipped_in_a_row end a run"
      )
    total = self._plan.total_steps
    unfinished = self._seen < total or not self._checkpoints.metrics(self._seen)
    signal = max(devices.gather(self._stopped.signal or 0))
    if signal and unfinished:
      raise Stopped(
        signal,
        f"after batch {self._seen} of {total}; the same command goes on from there",
      )

  def _open_log(self, validated: bool) -> contextlib.AbstractContextManager:
    if not devices.is_first():
      return contextlib.closing(log.NoLog())
    return contextlib.closing(
      log.MetricsLog(self._workdir, resume_step=self._seen, validated=validated)
    )

  def _open_bar(self) -> tqdm:
    return tqdm(
      total=self._plan.total_steps,
      initial=self._seen,
      unit="batch",
      dynamic_ncols=True,
      disable=not devices.is_first(),
    )

  def _profile(self) -> contextlib.AbstractContextManager[Callable]:
    return profile_window(
      start_step=self._config.profile.start_step,
      num_steps=self._config.profile.num_steps if devices.is_first() else 0,
      folder=self._workdir / "profile",
      parts=model_parts(self._config.model.to_dict(), self._config.eval.image_size),
      program=lambda: self._step_fn.lower(self._state, self._batch).compile().as_text() or "",
    )


def train(config: ConfigDict, workdir: Path, *, force: bool = False) -> None:
  """Trains a network, or goes on where an earlier call stopped.

  SIGTERM and Ctrl-C are looked at between batches; a validation that they cut short is made up for
  when the run goes on.

  Args:
    config: resolved.
    workdir: receives `config.json`, `metrics.jsonl`, `checkpoints/`, `figures/` and events.
    force: whether the run may go on with other values of the fields that are `config.FORCE_ONLY`.

  Raises:
    InputError: if the data or the workdir cannot be used, nothing being overwritten; or if too many
      batches in a row were not finite, the state being saved.
    Stopped: if a signal ended the run early, the state being saved.
  """
  if config.ensemble.members:
    raise InputError("config.ensemble.members: an ensemble is not trained; train its members")
  devices.check_shares("train.batch_size", config.train.batch_size)
  sources = {
    name: create_source(config.data, name, config.seed, to_score=name == "val")
    for name in ("train", "val")
  }
  loop = _Loop(config, workdir, sources)
  with contextlib.ExitStack() as stack:
    stopped = stack.enter_context(stop_on_signals())
    steps = loop.total_steps
    folder = open_workdir(config, workdir, sources, total_steps=steps, force=force)
    devices.on_first(lambda: stack.enter_context(folder))
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir)))
    loop.run(checkpoints, stopped)
    best_step = checkpoints.best_step

  def finish() -> None:
    curves = draw_curves(log.read_metrics(workdir), workdir)
    logger.info("Best by validation Dice: after %s batches; curves: %s", best_step, curves)

  devices.on_first(finish)
