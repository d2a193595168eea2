"""The training loop: draw a batch, take a step, log, validate, save."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict
from tqdm.contrib.logging import logging_redirect_tqdm

from medlitenet_jax.data.cases import Source
from medlitenet_jax.models.registry import model_parts
from medlitenet_jax.speed.trace import profile_window
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.stop import Stopped, StopRequest, stop_on_signals
from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.forecast import Forecast
from medlitenet_jax.training.log import open_log
from medlitenet_jax.training.outlook import (
  create_forecast,
  describe,
  refuse_without_room,
  rehearse,
)
from medlitenet_jax.training.programs import Programs
from medlitenet_jax.training.progress import Progress
from medlitenet_jax.training.run import Plan, Run, create_run, goes_on
from medlitenet_jax.training.skipped import SkippedBatches
from medlitenet_jax.training.state import TrainState, fit, start_from
from medlitenet_jax.training.unsaved import Unsaved
from medlitenet_jax.training.workdir import note_earlier_cases, open_workdir, refuse_unsuitable

logger = logging.getLogger(__name__)

# Scores the averaged network: ({"params", "batch_stats"}, a function that says whether to stop
# early) to the mean of each score over the validation cases, or None if it did stop early.
Validate = Callable[[Mapping[str, Any], Callable[[], bool]], dict[str, float] | None]

# A step that takes longer is not waited for when a signal ends the run; see `Unsaved`.
LONG_STEP_SECONDS = 2.0


class Start(NamedTuple):
  """A trained network that a new run starts from.

  Attributes:
    name: as the user gave it.
    variables: "params" and, where the network has norms, "batch_stats", float32.
    seen: names of the cases that it was trained on ("train") and selected by ("val").
    partly: whether it is another network, of which the run takes what fits, see `state.fit`.
  """

  name: str
  variables: Mapping[str, Any]
  seen: Mapping[str, list[str]]
  partly: bool = False


def train(
  config: ConfigDict,
  workdir: Path,
  *,
  model: nn.Module,
  sources: Mapping[str, Source],
  validate: Validate,
  start: Start | None = None,
  force: bool = False,
  dry_run: bool = False,
) -> int | None:
  """Trains a network, or continues where an earlier call stopped.

  SIGTERM and Ctrl-C take effect between two batches, or after some seconds, with the state saved
  that there was before the batch. If one cuts a validation short, the next call does that
  validation again.

  Args:
    config: resolved; `train.batch_size` is a multiple of the number of devices.
    workdir: receives `config.json`, `metrics.jsonl`, `checkpoints/`, `events/` and `profile/`.
    model: maps normalised [B, S, S, 3] images to {"mask": [B, S, S, 1] logits, ...}.
    sources: the cases of "train" and "val".
    validate: scores the averaged network on "val"; all processes call it together.
    start: network that a new run starts from; None: random parameters. A run that continues from a
      checkpoint ignores it.
    force: whether the run may continue with other values of the fields that are
      `config.FORCE_ONLY`, and start where memory or room on the disk seem to be short.
    dry_run: whether only to say what it would do and need, see `rehearse`; nothing is written.

  Returns:
    Batches seen by the checkpoint with the highest validation Dice; None if there is none.

  Raises:
    InputError: if the workdir cannot be used, in which case nothing in it is changed; if there is
      too little memory or room; or if too many batches in a row were skipped, after the state was
      saved.
    Stopped: if a signal ended the run early, after the state was saved.
  """
  run = create_run(config, model, sources["train"])
  steps = run.plan.total_steps
  refuse_unsuitable(config, workdir, sources, total_steps=steps, force=force)
  programs = Programs(run, sources["train"], force=force)
  refuse_without_room(run, workdir, force=force)
  if dry_run:
    rehearse(run, workdir, sources, programs, validate, _new_state(run, start))
    return None
  with contextlib.ExitStack() as stack:
    stopped = stack.enter_context(stop_on_signals())
    folder = open_workdir(config, workdir, sources, total_steps=steps, force=force)
    devices.on_main_process(lambda: stack.enter_context(folder))
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir)))
    describe(run, sources, step=checkpoints.latest_step or 0)
    state = _first_state(run, workdir, checkpoints, start)
    forecast = create_forecast(run, len(sources["val"]))
    if (step := int(state.micro_step)) < steps:  # before the bar, whose clock it would spoil
      size = run.plan.image_size_at(step)
      programs.compile(size)
      forecast.compiling_took(size, programs.seconds[size])
    _learn(run, workdir, state, checkpoints, programs, forecast, validate, stopped)
    return checkpoints.best_step


def _first_state(
  run: Run, workdir: Path, checkpoints: Checkpoints, start: Start | None
) -> TrainState:
  """The state of the newest checkpoint, or that of a new run, from `start` or at random."""
  restored = checkpoints.resume(jax.eval_shape(run.initialise), run.batches)
  if restored is not None:
    seen, total = int(restored.micro_step), run.plan.total_steps
    logger.info("Resuming %s after %d of %d batches.", workdir, seen, total)
    return restored
  if start is not None:
    devices.on_main_process(lambda: note_earlier_cases(workdir, start.seen))
    logger.info("Starting from %s.", start.name)
  return _new_state(run, start)


def _new_state(run: Run, start: Start | None) -> TrainState:
  """The state before the first batch."""
  state = run.initialise()
  if start is None:
    return state
  variables = start.variables
  if start.partly:
    own = {"params": state.params, "batch_stats": state.batch_stats}
    variables, new = fit(variables, own)
    modules = sorted({name.split("/")[1] for name in new})
    count = len(jax.tree.leaves(own))
    rest = f"; at random start some or all of: {', '.join(modules)}" if new else ""
    logger.info("%d of %d arrays fit%s.", count - len(new), count, rest)
  return start_from(state, jax.device_put(variables, devices.replicated()))


def _learn(
  run: Run,
  workdir: Path,
  state: TrainState,
  checkpoints: Checkpoints,
  programs: Programs,
  forecast: Forecast,
  validate: Validate,
  stopped: StopRequest,
) -> None:
  """Trains from `state` to the end of the plan, or until it has to end early; see `train`."""
  plan, step = run.plan, int(state.micro_step)
  validated = checkpoints.latest_step == step and bool(checkpoints.metrics(step))
  # Several processes finish a validation that a signal reaches: they must all score every case.
  hurried = stopped if jax.process_count() == 1 else lambda: False
  with contextlib.ExitStack() as stack:
    log = stack.enter_context(contextlib.closing(open_log(workdir, step, validated=validated)))
    unsaved = stack.enter_context(contextlib.closing(Unsaved(checkpoints, plan.total_steps)))
    scored_at = run.config.eval.image_size
    progress = Progress(plan, run.schedule, log, forecast, step, scored_at=scored_at)
    stack.enter_context(contextlib.closing(progress))
    limit = run.config.train.max_skipped_in_a_row
    skips = SkippedBatches(log, skipped=int(state.skipped), limit=limit)
    loop = _Loop(run, checkpoints, programs, forecast, progress, skips, unsaved)
    stack.enter_context(logging_redirect_tqdm())
    unsaved.hold(step, state, run.batches)
    stopped.save = unsaved.save
    trace_at = stack.enter_context(_profile(run, workdir, lambda: programs[image_size]))
    # Due before the first batch: what the weights score that the run starts from. After one: the
    # validation was cut short.
    due = plan.validation_due(step) if step else goes_on(run.config)
    if due and not validated:
      with progress.other_work(validation=True):
        scores = validate(state.ema_variables, hurried)
        progress.write_scores(step, scores)
        if scores is not None and step:
          checkpoints.add_metrics(step, scores)
        elif scores is not None:
          loop.save(state, scores)
    while step < plan.total_steps and not _must_end(loop, step, stopped):
      trace_at(step, state)
      image_size = plan.image_size_at(step)
      state = loop.learn_batch(state, step, image_size)
      step += 1
      if plan.validation_due(step):
        skips.read()  # so that they precede the scores in the log
        with progress.other_work(validation=True):
          with loop.saved_on_error(state):
            scores = validate(state.ema_variables, hurried)
            progress.write_scores(step, scores)
          loop.save(state, scores)
    loop.save(state)
    _raise_if_cut_short(plan, step, workdir, checkpoints, skips, stopped)


class _Loop(NamedTuple):
  """What the loop works with, and the parts of a turn."""

  run: Run
  checkpoints: Checkpoints
  programs: Programs
  forecast: Forecast
  progress: Progress
  skips: SkippedBatches
  unsaved: Unsaved

  def learn_batch(self, state: TrainState, step: int, image_size: int) -> TrainState:
    """Draws batch number `step`, counted from 0, and starts its step; logs what is due."""
    run, plan = self.run, self.run.plan
    if image_size not in self.programs:
      with self.progress.other_work(), self.saved_on_error(state):
        self.programs.compile(image_size)
      self.forecast.compiling_took(image_size, self.programs.seconds[image_size])
    with self.saved_on_error(state):
      batch = next(run.batches)
    case_ids = batch.pop("case_id")
    batch = devices.shard_batch(batch)
    self.progress.batch_ready()
    usual = self.forecast.batch_seconds(image_size)
    long = usual is None or usual > LONG_STEP_SECONDS
    if copy := long and jax.process_count() == 1:  # saving would need all processes
      jax.block_until_ready(state)  # else the copy would wait for it, and a signal for the copy
    self.unsaved.lend(copy=copy)
    state, figures = self.programs[image_size](state, batch, run.numbers)
    step += 1
    self.unsaved.hold(step, state, run.batches)
    self.progress.step_started(figures)
    self.skips.add(step=step, epoch=plan.epoch_at(step), case_ids=case_ids, figures=figures)
    if plan.log_due(step):
      self.progress.write_means(step, updates=int(state.opt_state.gradient_step))
    self.checkpoints.refuse_failed()
    return state

  def out_of_patience(self, step: int) -> bool:
    """Whether `train.patience` validations in a row gave no better Dice."""
    patience, plan = self.run.config.train.patience, self.run.plan
    if not patience or not plan.validation_due(step):
      return False
    best = self.checkpoints.best_step
    if best is None or plan.validations_between(best, step) < patience:
      return False
    logger.info(
      "Ends after %d of %d batches: no validation since batch %d gave a better Dice.",
      *(step, plan.total_steps, best),
    )
    return True

  def save(self, state: TrainState, scores: Mapping[str, float] | None = None) -> None:
    """Saves the state unless its checkpoint exists; batches it skipped are logged before."""
    self.skips.read()
    step = int(state.micro_step)
    with self.unsaved.lock:
      if (step or scores) and self.checkpoints.latest_step != step:
        self.checkpoints.save(state, self.run.batches, scores)

  @contextlib.contextmanager
  def saved_on_error(self, state: TrainState) -> Iterator[None]:
    """Saves the state if reading, compiling or scoring fails, as for lack of memory."""
    try:
      yield
    except Exception:
      if jax.process_count() == 1:  # saving needs all processes, and the others did not fail
        self.save(state)
      raise


def _must_end(loop: _Loop, step: int, stopped: StopRequest) -> bool:
  """Whether the run has to end before its last batch; the same in every process."""
  plan = loop.run.plan
  if loop.skips.too_many or loop.out_of_patience(step):
    return True
  if jax.process_count() == 1:
    return stopped()
  # Asking the other processes takes time, so they ask only now and then.
  return step % plan.log_every_steps == 0 and any(devices.gather(stopped()))


def _raise_if_cut_short(
  plan: Plan,
  step: int,
  workdir: Path,
  checkpoints: Checkpoints,
  skips: SkippedBatches,
  stopped: StopRequest,
) -> None:
  """Tells why a run ended early, if it did."""
  if skips.too_many:
    raise InputError(
      f"{skips.describe()}; the state without them is saved in {workdir}; repair those cases, or "
      "set config.train.max_skipped_in_a_row, which says how many in a row end a run"
    )
  unfinished = step < plan.total_steps or not checkpoints.metrics(step)
  signal = max(devices.gather(stopped.signal or 0))
  if signal and unfinished:
    raise Stopped(
      signal, f"after batch {step} of {plan.total_steps}; run the same command again to continue"
    )


def _profile(
  run: Run, workdir: Path, program: Callable[[], jax.stages.Compiled]
) -> contextlib.AbstractContextManager[Callable]:
  """Traces the batches of `config.profile`, in process 0 only; see `profile_window`."""
  config = run.config
  return profile_window(
    start_step=config.profile.start_step,
    num_steps=config.profile.num_steps if devices.is_main_process() else 0,
    folder=workdir / "profile",
    parts=model_parts(config.model.to_dict(), config.eval.image_size),
    program=lambda: program().as_text() or "",
  )
