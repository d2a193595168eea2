"""The training loop: draw a batch, take a step, log, validate, save."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from medlitenet_jax.data.cases import Source
from medlitenet_jax.models.registry import model_parts
from medlitenet_jax.speed.trace import profile_window
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.stop import Stopped, StopRequest, stop_on_signals
from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.log import open_log
from medlitenet_jax.training.progress import Progress
from medlitenet_jax.training.run import Plan, Run, create_run
from medlitenet_jax.training.skipped import SkippedBatches
from medlitenet_jax.training.state import TrainState, start_from
from medlitenet_jax.training.workdir import note_earlier_cases, open_workdir

logger = logging.getLogger(__name__)

# Scores the averaged network: ({"params", "batch_stats"}, a function that says whether to stop
# early) to the mean of each score over the validation cases, or None if it did stop early.
Validate = Callable[[Mapping[str, Any], Callable[[], bool]], dict[str, float] | None]


class Start(NamedTuple):
  """A trained network that a new run starts from.

  Attributes:
    name: as the user gave it.
    variables: "params" and, where the network has norms, "batch_stats", float32.
    seen: names of the cases that it was trained on ("train") and selected by ("val").
  """

  name: str
  variables: Mapping[str, Any]
  seen: Mapping[str, list[str]]


def train(
  config: ConfigDict,
  workdir: Path,
  *,
  model: nn.Module,
  sources: Mapping[str, Source],
  validate: Validate,
  start: Start | None = None,
  force: bool = False,
) -> int | None:
  """Trains a network, or continues where an earlier call stopped.

  SIGTERM and Ctrl-C take effect between two batches. If one cuts a validation short, the next call
  does that validation again.

  Args:
    config: resolved; `train.batch_size` is a multiple of the number of devices.
    workdir: receives `config.json`, `metrics.jsonl`, `checkpoints/`, `events/` and `profile/`.
    model: maps normalised [B, S, S, 3] images to {"mask": [B, S, S, 1] logits, ...}.
    sources: the cases of "train" and "val".
    validate: scores the averaged network on "val"; all processes call it together.
    start: network that a new run starts from; None: random parameters. A run that continues from a
      checkpoint ignores it.
    force: whether the run may continue with other values of the fields that are
      `config.FORCE_ONLY`.

  Returns:
    Batches seen by the checkpoint with the highest validation Dice; None if there is none.

  Raises:
    InputError: if the workdir cannot be used, in which case nothing in it is changed; or if too
      many batches in a row were skipped, after the state was saved.
    Stopped: if a signal ended the run early, after the state was saved.
  """
  run = create_run(config, model, sources["train"])
  steps = run.plan.total_steps
  with contextlib.ExitStack() as stack:
    stopped = stack.enter_context(stop_on_signals())
    folder = open_workdir(config, workdir, sources, total_steps=steps, force=force)
    devices.on_main_process(lambda: stack.enter_context(folder))
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir)))
    state = _first_state(run, workdir, checkpoints, start)
    _learn(run, workdir, state, checkpoints, validate, stopped)
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
  state = run.initialise()
  if start is None:
    return state
  state = start_from(state, jax.device_put(start.variables, devices.replicated()))
  devices.on_main_process(lambda: note_earlier_cases(workdir, start.seen))
  logger.info("Starting from %s.", start.name)
  return state


def _learn(
  run: Run,
  workdir: Path,
  state: TrainState,
  checkpoints: Checkpoints,
  validate: Validate,
  stopped: StopRequest,
) -> None:
  """Trains from `state` to the end of the plan, or until it has to end early; see `train`."""
  plan, step = run.plan, int(state.micro_step)
  validated = bool(step and checkpoints.metrics(step))
  # Several processes finish a validation that a signal reaches: they must all score every case.
  hurried = stopped if jax.process_count() == 1 else lambda: False
  with contextlib.ExitStack() as stack:
    log = stack.enter_context(contextlib.closing(open_log(workdir, step, validated=validated)))
    progress = stack.enter_context(contextlib.closing(Progress(plan, run.schedule, log, step)))
    limit = run.config.train.max_skipped_in_a_row
    skips = SkippedBatches(log, skipped=int(state.skipped), limit=limit)
    trace_at = stack.enter_context(_profile(run, workdir, lambda: (state, batch)))
    if step and not validated and plan.validation_due(step):  # it was cut short
      scores = validate(state.ema_variables, hurried)
      progress.write_scores(step, scores)
      if scores is not None:
        checkpoints.add_metrics(step, scores)
      progress.restart_clock()
    while step < plan.total_steps and not _must_end(plan, step, skips, stopped):
      trace_at(step, state)
      with _saved_on_error(run, state, checkpoints, skips):
        batch = next(run.batches)
      case_ids = batch.pop("case_id")
      batch = devices.shard_batch(batch)
      progress.batch_ready()
      state, figures = run.step(state, batch, run.numbers)
      step += 1
      progress.step_started(figures)
      skips.add(step=step, epoch=plan.epoch_at(step), case_ids=case_ids, figures=figures)
      if plan.log_due(step):
        progress.write_means(step, updates=int(state.opt_state.gradient_step))
      if plan.validation_due(step):
        skips.read()  # so that they precede the scores in the log
        with _saved_on_error(run, state, checkpoints, skips):
          scores = validate(state.ema_variables, hurried)
          progress.write_scores(step, scores)
        _save(run, state, checkpoints, skips, scores)
        progress.restart_clock()
    _save(run, state, checkpoints, skips)
    _raise_if_cut_short(plan, step, workdir, checkpoints, skips, stopped)


def _save(
  run: Run,
  state: TrainState,
  checkpoints: Checkpoints,
  skips: SkippedBatches,
  scores: Mapping[str, float] | None = None,
) -> None:
  """Saves the state unless its checkpoint exists; batches it skipped are logged before."""
  skips.read()
  step = int(state.micro_step)
  if step and checkpoints.latest_step != step:
    checkpoints.save(state, run.batches, scores)


@contextlib.contextmanager
def _saved_on_error(
  run: Run, state: TrainState, checkpoints: Checkpoints, skips: SkippedBatches
) -> Iterator[None]:
  """Saves the state if reading or scoring fails, as on a damaged file or for lack of memory."""
  try:
    yield
  except Exception:
    if jax.process_count() == 1:  # saving needs all processes, and the others did not fail
      _save(run, state, checkpoints, skips)
    raise


def _must_end(plan: Plan, step: int, skips: SkippedBatches, stopped: StopRequest) -> bool:
  """Whether the run has to end before its last batch; the same in every process."""
  if skips.too_many:
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
  run: Run, workdir: Path, step_inputs: Callable[[], tuple]
) -> contextlib.AbstractContextManager[Callable]:
  """Traces the batches of `config.profile`, in process 0 only; see `profile_window`."""
  config = run.config
  return profile_window(
    start_step=config.profile.start_step,
    num_steps=config.profile.num_steps if devices.is_main_process() else 0,
    folder=workdir / "profile",
    parts=model_parts(config.model.to_dict(), config.eval.image_size),
    program=lambda: run.step.lower(*step_inputs(), run.numbers).compile().as_text() or "",
  )
