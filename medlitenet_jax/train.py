"""Training: the step, which is pure, and the loop around it."""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax import devices, metrics, optim, report
from medlitenet_jax.checkpoint import Checkpoints
from medlitenet_jax.data.augment import AugmentPolicy
from medlitenet_jax.data.clean import Preprocessing
from medlitenet_jax.data.device_augment import unpack_views
from medlitenet_jax.data.pipeline import train_batches
from medlitenet_jax.data.sources import Source, create_source
from medlitenet_jax.errors import InputError
from medlitenet_jax.figures import draw_curves
from medlitenet_jax.inference import create_predict, predict_cases
from medlitenet_jax.losses import segmentation_loss
from medlitenet_jax.meter import Meter
from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.preprocess import normalize
from medlitenet_jax.scoring import plain_scores
from medlitenet_jax.skipped import SkippedBatches
from medlitenet_jax.state import DTYPES, TrainState, create_state, start_from, stream_key
from medlitenet_jax.stop import Stopped, stop_on_signals
from medlitenet_jax.trace import profile_window
from medlitenet_jax.weights import find_weights, read_weights
from medlitenet_jax.workdir import open_workdir

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
    weight_decay=optimizer.weight_decay,
    clip_norm=optimizer.clip_norm,
    accumulation=optimizer.accumulation,
  )
  return tx, schedule


def train_step(
  state: TrainState,
  image: jax.Array,
  mask: jax.Array,
  *,
  model: nn.Module,
  tx: optax.MultiSteps,
  loss_fn: Callable,
  dropout_key: jax.Array,
  ema_decay: Callable,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Learns from one batch.

  Every `accumulation` batches the parameters move and the average follows. A batch whose gradient
  is not finite changes nothing but the two counters and, in float16, the loss scale.

  Args:
    state: before the batch.
    image: [B, S, S, 3] uint8 RGB.
    mask: [B, S, S, 1] ground truth, 0 or 1.
    model: maps normalised images to logits.
    tx: the optimizer.
    loss_fn: (logits, mask) to (loss, parts).
    dropout_key: of the run; folded with the step.
    ema_decay: decay of the average by updates done.

  Returns:
    state: after the batch.
    figures: scalar float32 loss, its parts, Dice of the batch, norm of the gradient, and skipped.
  """

  def objective(params):
    logits, changed = model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      normalize(image),
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.fold_in(dropout_key, state.micro_step)},
    )
    with jax.named_scope("loss"):
      loss, parts = loss_fn(logits, mask)
    return loss, (parts, changed.get("batch_stats", {}), logits)

  loss_scale = state.loss_scale
  if loss_scale is None:
    (loss, aux), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
  else:
    loss_scale, _, (loss, aux), grads = loss_scale.value_and_grad(objective, has_aux=True)(
      state.params
    )
  parts, batch_stats, logits = aux
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

  with jax.named_scope("optimizer"):
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.where(tx.has_updated(opt_state), ema_decay(opt_state.gradient_step), 1.0)
    learned = {
      "params": params,
      "batch_stats": batch_stats,
      "ema_params": optim.update_average(state.ema_params, params, decay),
      "ema_batch_stats": optim.update_average(state.ema_batch_stats, batch_stats, decay),
      "opt_state": opt_state,
    }
    kept = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      learned,
      {name: getattr(state, name) for name in learned},
    )
  counts = metrics.confusion_counts(logits, mask, jnp.ones(mask.shape[0]))
  dice = (2 * counts.tp + 1) / (2 * counts.tp + counts.fp + counts.fn + 1)
  figures = {"loss": loss, **parts, "dice": jnp.mean(dice), "grad_norm": grad_norm}
  new_state = TrainState(
    micro_step=state.micro_step + 1,
    skipped=state.skipped + jnp.logical_not(finite),
    loss_scale=loss_scale,
    **kept,
  )
  return new_state, {**figures, "skipped": new_state.skipped.astype(jnp.float32)}


def create_train_step(
  config: ConfigDict, model: nn.Module, tx: optax.MultiSteps
) -> jax.stages.Wrapped:
  """Compiles the step of a run: (state, batch) to (state, figures), the state given away.

  The batch holds the arrays of `train_batches`, of which every device takes its rows.
  """
  learn = functools.partial(
    train_step,
    model=model,
    tx=tx,
    loss_fn=functools.partial(segmentation_loss, **config.loss),
    dropout_key=stream_key(config.seed, "dropout"),
    ema_decay=functools.partial(
      optim.ema_decay_at, decay=config.optim.ema_decay, warmup=config.optim.ema_warmup
    ),
  )
  policy = AugmentPolicy(**config.augment)

  def step(state: TrainState, batch: Mapping[str, jax.Array]):
    if config.data.augment_on != "device":
      return learn(state, batch["image"], batch["mask"])
    with jax.named_scope("augment"):
      image, mask = unpack_views(batch, policy)
    return learn(state, image, mask)

  whole, shared = devices.replicated(), devices.by_rows()
  return jax.jit(step, donate_argnums=0, in_shardings=(whole, shared), out_shardings=whole)


def create_train_batches(config: ConfigDict, source: Source, plan: Plan) -> grain.DatasetIterator:
  """Opens the training data of a run at its beginning."""
  return train_batches(
    source,
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


def train(config: ConfigDict, workdir: Path, *, force: bool = False) -> None:
  """Trains a network, or goes on where an earlier call stopped.

  The order within the loop is fixed: draw, step, log, validate, save. SIGTERM and Ctrl-C are looked
  at between batches; a validation that they cut short is made up for when the run goes on.

  Args:
    config: resolved.
    workdir: receives `config.json`, `metrics.jsonl`, `checkpoints/`, `figures/` and events.
    force: whether the run may go on with other values of the fields in `config.ODD_FIELDS`.

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
  cases = sources["train"]
  plan = create_plan(config.train, len(cases))

  model = create_model(config.model.to_dict(), DTYPES[config.precision])
  predict, fold = create_predict([(model, config.eval.image_size)]), jax.jit(fold_batch_norm)
  tx, schedule = create_run_optimizer(config.optim, plan.total_steps)
  step_fn = create_train_step(config, model, tx)
  batches = create_train_batches(config, cases, plan)
  initialise = functools.partial(create_state, model, tx, config.seed, config.precision)
  with contextlib.ExitStack() as stack:
    stopped = stack.enter_context(stop_on_signals())
    folder = open_workdir(config, workdir, sources, force=force)
    devices.on_first(lambda: stack.enter_context(folder))
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir)))
    restored = checkpoints.resume(jax.eval_shape(initialise), batches)
    if restored is None:
      state = jax.jit(initialise, out_shardings=devices.replicated())()
      if config.train.start_from:
        learned = read_weights(find_weights(config.train.start_from)).variables
        state = start_from(state, jax.device_put(learned, devices.replicated()))
        logger.info("Starting from %s.", config.train.start_from)
    else:
      state = restored
    start = seen = int(state.micro_step)
    if start > plan.total_steps:
      raise InputError(
        f"{workdir}: has seen {start} batches, more than the {plan.total_steps} asked"
      )
    if start:
      logger.info("Resuming %s after %d of %d batches.", workdir, start, plan.total_steps)
    validated = bool(start and checkpoints.metrics(start))
    first = devices.is_first()
    log = (
      report.MetricsLog(workdir, resume_step=start, validated=validated)
      if first
      else report.NoLog()
    )
    stack.enter_context(contextlib.closing(log))
    bar = stack.enter_context(
      tqdm(
        total=plan.total_steps,
        initial=start,
        unit="batch",
        dynamic_ncols=True,
        disable=not first,
      )
    )
    meter = Meter(config.train.batch_size)
    skips = SkippedBatches(log, skipped=int(state.skipped), limit=config.train.max_skipped_in_a_row)

    def epoch_at(step: int) -> float:
      return step * config.train.batch_size / len(cases)

    def validation_due(step: int) -> bool:
      every = config.train.validate_every_epochs * plan.epoch_steps
      return step == plan.total_steps or step % every == 0

    def stopping(step: int) -> bool:
      """Several processes ask each other, now and then, for they must end at one batch."""
      if jax.process_count() == 1:
        return stopped()
      return step % config.train.log_every_steps == 0 and any(devices.gather(stopped()))

    def validate_at(step: int) -> dict[str, float] | None:
      hurried = stopped if jax.process_count() == 1 else lambda: False
      scores = validate(predict, fold(state.ema_variables), sources["val"], config, hurried)
      if scores is not None:
        log.write(step=step, epoch=epoch_at(step), split="val", figures=scores)
        dice, iou = scores["dice"], scores["iou"]
        if first:
          bar.write(f"epoch {epoch_at(step):.1f}: val Dice {dice:.4f}, IoU {iou:.4f}")
      meter.restart()
      return scores

    def program() -> str:
      return step_fn.lower(state, batch).compile().as_text() or ""

    window = profile_window(
      start_step=config.profile.start_step,
      num_steps=config.profile.num_steps if first else 0,
      folder=workdir / "profile",
      program=program,
    )
    at_step = stack.enter_context(window)
    if start and not validated and validation_due(start):
      scores = validate_at(start)
      if scores is not None:
        checkpoints.add_metrics(start, scores)
    for step in range(start + 1, plan.total_steps + 1):
      if stopping(step - 1) or skips.too_many:
        break
      at_step(step - 1, state)
      batch = next(batches)
      case_ids = batch.pop("case_id")
      batch = devices.share_out(batch)
      meter.spent_on("waiting")
      state, figures = step_fn(state, batch)
      seen = step
      meter.add(figures)
      skips.add(step=step, epoch=epoch_at(step), case_ids=case_ids, figures=figures)
      bar.update()

      if step == plan.total_steps or step % config.train.log_every_steps == 0:
        means = meter.read()
        means["learning_rate"] = float(schedule(step // config.optim.accumulation))
        means["image_size"] = plan.image_size_at(step - 1)
        log.write(step=step, epoch=epoch_at(step), split="train", figures=means)
        bar.set_postfix(
          loss=f"{means['loss']:.4f}", images_per_s=f"{means['images_per_second']:.1f}"
        )
        meter.spent_on("logging")
      if validation_due(step):
        skips.read()  # a checkpoint's batches are in the log before it is saved
        checkpoints.save(state, batches, validate_at(step))
    skips.read()
    if seen and checkpoints.latest_step != seen:
      checkpoints.save(state, batches)
    if skips.too_many:
      raise InputError(
        f"{skips.describe()}; the parameters of before them are saved in {workdir}, and as many as "
        "config.train.max_skipped_in_a_row ended the run"
      )
    unfinished = seen < plan.total_steps or not checkpoints.metrics(seen)
    signal = max(devices.gather(stopped.signal or 0))
    if signal and unfinished:
      raise Stopped(
        signal,
        f"after batch {seen} of {plan.total_steps}; the same command goes on from there",
      )
    best_step = checkpoints.best_step

  def finish() -> None:
    curves = draw_curves(report.read_metrics(workdir), workdir)
    logger.info("Best by validation Dice: after %s batches; curves: %s", best_step, curves)

  devices.on_first(finish)
