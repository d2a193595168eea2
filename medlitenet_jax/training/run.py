"""What a run is made of before it starts: its length, optimizer, compiled step and batches."""

import collections
import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import grain
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.cases import Source
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.pipeline import train_batches
from medlitenet_jax.data.sources import CachedCases
from medlitenet_jax.system import devices
from medlitenet_jax.training import optim
from medlitenet_jax.training.oversampling import FaintRepeated
from medlitenet_jax.training.state import TrainState, create_state
from medlitenet_jax.training.step import Numbers, create_train_step, recipe_numbers


@dataclasses.dataclass(frozen=True)
class Plan:
  """How long a run is, and what is due when, counted in batches (micro-steps).

  Attributes:
    total_steps: batches of the whole run.
    num_cases: training cases of an epoch.
    batch_size: images a batch, over all devices.
    image_sizes: pixels a side; each is used for an equal share of the run, in this order.
    mixed_sizes: whether they take turns instead: each once in as many batches, in an order drawn by
      the seed.
    seed: of the run.
    log_every_steps: batches between two lines of the log.
    validate_every_steps: batches between two validations, whole epochs.
  """

  total_steps: int
  num_cases: int
  batch_size: int
  image_sizes: tuple[int, ...]
  mixed_sizes: bool
  seed: int
  log_every_steps: int
  validate_every_steps: int

  def epoch_at(self, step: int) -> float:
    """Epochs done after `step` batches."""
    return step * self.batch_size / self.num_cases

  def image_size_at(self, step: int) -> int:
    """Pixels a side of the images of batch number `step`, counted from 0."""
    if self.mixed_sizes:
      turn, place = divmod(step, len(self.image_sizes))
      return self._turn(turn)[place]
    phase = step * len(self.image_sizes) // self.total_steps
    return self.image_sizes[min(phase, len(self.image_sizes) - 1)]

  def yet_to_come(self, image_size: int, step: int) -> bool:
    """Whether images of that size come, but none in the first `step` batches."""
    left = self.batches_left(step).get(image_size, 0)
    return left > 0 and left == self.batches_left(0)[image_size]

  def log_due(self, step: int) -> bool:
    """Whether a line of the log is due after `step` batches."""
    return self._due(step, self.log_every_steps)

  def validation_due(self, step: int) -> bool:
    """Whether a validation is due after `step` batches."""
    return self._due(step, self.validate_every_steps)

  def batches_left(self, step: int) -> dict[int, int]:
    """Batches after the first `step`, by the pixels a side of their images, in order."""
    if self.mixed_sizes:
      return self._mixed_batches_left(step)
    phases = len(self.image_sizes)
    left: dict[int, int] = {}
    for phase, size in enumerate(self.image_sizes):
      first, end = (-(-p * self.total_steps // phases) for p in (phase, phase + 1))
      if (count := end - max(first, step)) > 0:
        left[size] = left.get(size, 0) + count
    return left

  def _turn(self, turn: int) -> list[int]:
    """The sizes in the order that they have in one turn."""
    order = np.random.default_rng((self.seed, turn)).permutation(len(self.image_sizes))
    return [self.image_sizes[i] for i in order]

  def _mixed_batches_left(self, step: int) -> dict[int, int]:
    count = len(self.image_sizes)
    (first, before), (last, after) = (divmod(n, count) for n in (step, self.total_steps))
    sizes = collections.Counter(self._turn(last)[:after])
    sizes.subtract(self._turn(first)[:before])
    for size in self.image_sizes:
      sizes[size] += last - first
    return {size: n for size in self.image_sizes if (n := sizes[size]) > 0}

  def validations_left(self, step: int) -> int:
    """Validations that are due after more than `step` batches."""
    every = self.validate_every_steps
    last = self.total_steps % every != 0 and step < self.total_steps
    return self.total_steps // every - step // every + last

  def validations_between(self, first: int, last: int) -> int:
    """Validations that are due after more than `first` batches, up to `last`."""
    return self.validations_left(first) - self.validations_left(last)

  def _due(self, step: int, every: int) -> bool:
    return step == self.total_steps or step % every == 0


def create_plan(config: ConfigDict, num_cases: int) -> Plan:
  """Plans a run from its configuration and the number of training cases."""
  train = config.train
  by_epochs = math.ceil(train.epochs * num_cases / train.batch_size)
  epoch_steps = max(1, round(num_cases / train.batch_size))
  every = train.validate_every_epochs * epoch_steps
  return Plan(
    total_steps=train.max_steps or by_epochs,
    num_cases=num_cases,
    batch_size=train.batch_size,
    image_sizes=train.image_sizes,
    mixed_sizes=train.mixed_sizes,
    seed=config.seed,
    log_every_steps=train.log_every_steps,
    validate_every_steps=every * math.ceil(train.validate_min_steps / every),
  )


def goes_on(config: ConfigDict) -> bool:
  """Whether a run starts as a trained network, whose scores it has to beat."""
  return bool(config.train.start_from) and not config.train.start_partly


def create_initialise(
  config: ConfigDict, model: nn.Module, image_size: int
) -> Callable[[], TrainState]:
  """Prepares the first state of a run.

  Args:
    config: resolved.
    model: maps normalised [B, S, S, 3] images to {"mask": logits, ...}.
    image_size: S in pixels, any that the network takes.

  Returns:
    A function () to the state, replicated on all devices; it can be traced. It is compiled once for
    all seeds.
  """
  tx, _ = optim.create_run_optimizer(config.optim, 1)  # its state is that of every length
  first = jax.jit(
    lambda seed: create_state(
      model, tx, seed=seed, precision=config.precision, image_size=image_size
    ),
    out_shardings=devices.replicated(),
  )
  return lambda: first(np.uint32(config.seed))


def create_train_batches(config: ConfigDict, source: Source, plan: Plan) -> grain.DatasetIterator:
  """Opens the training data at the first batch; this process reads its own rows of each batch."""
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
    rows=devices.local_rows(config.train.batch_size),
  )


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run is made of.

  Attributes:
    config: resolved.
    plan: how long it is.
    schedule: learning rate by updates done.
    initialise: () to the state of a new run.
    step: compiled; (state, batch, numbers) to (state, figures), see `create_train_step`.
    numbers: of the recipe, for the step.
    source: the training cases, as the batches take them.
    batches: iterator over the training data, see `train_batches`.
  """

  config: ConfigDict
  plan: Plan
  schedule: optax.Schedule
  initialise: Callable[[], TrainState]
  step: jax.stages.Wrapped
  numbers: Numbers
  source: Source
  batches: grain.DatasetIterator


def create_run(config: ConfigDict, model: nn.Module, source: Source) -> Run:
  """Prepares a run without touching its folder.

  Args:
    config: resolved.
    model: maps normalised [B, S, S, 3] images to {"mask": logits, ...}.
    source: the training cases.

  Returns:
    The run, at its beginning.

  Raises:
    InputError: if a field of the configuration cannot be used.
  """
  source = CachedCases(source, config.data.cache_gib * 2**30)
  if (repeats := config.train.low_contrast_repeats) > 1:
    source = FaintRepeated(source, repeats, config.data.num_threads)
  plan = create_plan(config, len(source))
  _, schedule = optim.create_run_optimizer(config.optim, plan.total_steps)
  return Run(
    config=config,
    plan=plan,
    schedule=schedule,
    initialise=create_initialise(config, model, min(plan.image_sizes)),
    step=create_train_step(config, model),
    numbers=recipe_numbers(config, plan.total_steps),
    source=source,
    batches=create_train_batches(config, source, plan),
  )
