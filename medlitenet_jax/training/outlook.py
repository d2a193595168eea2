"""What a run is going to do and to need: said before it begins, and by a dry run."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from medlitenet_jax.data.cases import Source
from medlitenet_jax.speed.timing import compiling_seconds
from medlitenet_jax.system import devices, limits
from medlitenet_jax.training.forecast import Forecast, spoken
from medlitenet_jax.training.layout import whole_steps
from medlitenet_jax.training.programs import Programs
from medlitenet_jax.training.run import Run, create_train_batches
from medlitenet_jax.training.state import TrainState

logger = logging.getLogger(__name__)

CHECKPOINTS = 3  # on the disk at most: the newest, the best, and one that is being written
LOG_BYTES = 2**22  # room for what a run writes beside them
TIMED_BATCHES = 2  # of each size in a dry run, after one that is not timed


def create_forecast(run: Run, num_validated: int) -> Forecast:
  """The forecast of a run that validates on so many cases."""
  return Forecast(run.plan, num_validated=num_validated, eval_size=run.config.eval.image_size)


def refuse_without_room(run: Run, workdir: Path, *, force: bool) -> None:
  """Refuses a run whose checkpoints do not fit on the disk of its folder.

  Raises:
    InputError: says how much room they need.
  """
  limits.refuse_more_than(
    limits.free_disk(workdir),
    _bytes_to_write(run, workdir),
    f"{workdir}: checkpoints and logs take up to",
    of="of the disk",
    instead="make room, choose another --workdir",
    force=force,
  )


def describe(run: Run, sources: Mapping[str, Source], *, step: int) -> None:
  """Logs what a run is made of and what is left of it after `step` batches."""
  plan, config = run.plan, run.config
  splits = ", ".join(f"{len(source)} of {split}" for split, source in sources.items())
  place = "" if config.data.source == "synthetic" else f" in {config.data.root}"
  sizes = ", ".join(f"{n} at {size}x{size} pixels" for size, n in plan.batches_left(step).items())
  parameters = jax.tree.leaves(jax.eval_shape(run.initialise).params)
  logger.info("Photographs: %s (%s%s).", splits, config.data.source, place)
  logger.info(
    "%d batches of %d to go, %.3g epochs (%s); %d validations; %.2f M parameters.",
    *(plan.total_steps - step, plan.batch_size, plan.epoch_at(plan.total_steps - step)),
    sizes or "none left",
    plan.validations_left(step),
    sum(math.prod(leaf.shape) for leaf in parameters) / 1e6,
  )


def rehearse(
  run: Run,
  workdir: Path,
  sources: Mapping[str, Source],
  programs: Programs,
  validate: Callable[[Mapping[str, Any], Callable[[], bool]], Any],
  state: TrainState,
) -> None:
  """Compiles the step for each size, times two batches of each and a part of a validation.

  Logs what the run takes of memory, disk and time. Nothing is written but to the cache of compiled
  programs.

  Args:
    run: to be rehearsed.
    workdir: its folder, which need not exist.
    sources: the cases of "train" and "val".
    programs: of the run, none compiled.
    validate: see `loop.Validate`.
    state: to begin with; it is used up.

  Raises:
    InputError: if there is not enough memory.
  """
  steps = whole_steps(workdir)
  step = steps[-1] if steps else 0
  describe(run, sources, step=step)
  on_cpu = devices.platform() == "cpu"
  free = limits.free_memory() if on_cpu else limits.free_device_memory()
  forecast = create_forecast(run, len(sources["val"]))
  for size in run.plan.batches_left(step):
    state = _time_batches(run, size, programs, forecast, state)
  _time_validation(run, len(sources["val"]), validate, forecast, state)
  each = ", ".join(
    f"{forecast.batch_seconds(size) or 0:.2g} s a batch at {size}x{size} pixels"
    for size in programs.seconds
  )
  memory = max(programs.step_bytes.values(), default=0)
  logger.info(
    "A step takes up to %s of memory (free: %s); checkpoints and logs up to %s of the disk of %s "
    "(free: %s).",
    limits.gib(memory),
    "unknown" if free is None else limits.gib(free),
    limits.gib(_bytes_to_write(run, workdir)),
    workdir,
    limits.gib(limits.free_disk(workdir)),
  )
  logger.info(
    "About %s, once compiled (%s; %s a validation). This was a dry run: nothing was written.",
    *(spoken(forecast.seconds_left(step) or 0), each or "no batch left"),
    spoken(forecast.validation_seconds() or 0),
  )


def _time_batches(
  run: Run,
  size: int,
  programs: Programs,
  forecast: Forecast,
  state: TrainState,
) -> TrainState:
  programs.compile(size)
  forecast.compiling_took(size, programs.seconds[size])
  plan = dataclasses.replace(run.plan, image_sizes=(size,))
  batches = create_train_batches(run.config, run.source, plan)
  for _ in range(1 + TIMED_BATCHES):
    start = time.perf_counter()
    batch = next(batches)
    del batch["case_id"]
    state, figures = programs[size](state, devices.shard_batch(batch), run.numbers)
    jax.block_until_ready(figures)
    forecast.batch_took(size, time.perf_counter() - start)
  return state


def _time_validation(
  run: Run, num_cases: int, validate: Callable, forecast: Forecast, state: TrainState
) -> None:
  """Times two batches of a validation, after it was compiled."""
  alone = jax.process_count() == 1  # several processes must all score every case
  some = min(num_cases, 2 * run.config.eval.batch_size) if alone else num_cases
  for cases in (1, some):
    asked = iter(range(cases))
    start, compiled = time.perf_counter(), compiling_seconds()
    validate(state.ema_variables, lambda asked=asked: alone and next(asked, None) is None)
    seconds = time.perf_counter() - start - (compiling_seconds() - compiled)
  forecast.validation_took(max(0.0, seconds) * num_cases / some)


def _bytes_to_write(run: Run, workdir: Path) -> int:
  """Bytes that the checkpoints, before compression, and logs still to be written take at most."""
  left = CHECKPOINTS - min(len(whole_steps(workdir)), CHECKPOINTS - 1)
  arrays = jax.tree.leaves(jax.eval_shape(run.initialise))
  return left * sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays) + LOG_BYTES
