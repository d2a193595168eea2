"""The training step as a compiled program for each image size, and the memory that it takes."""

import logging
import math
import time
from typing import Any

import jax

from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.cases import Source
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.pipeline import train_shapes
from medlitenet_jax.system import devices, limits
from medlitenet_jax.training.run import Run

logger = logging.getLogger(__name__)

CPU_SECONDS = 20  # that compiling takes on two cores which have nothing else to do


class Programs(dict[int, jax.stages.Compiled]):
  """The compiled steps of a run by image size in pixels.

  What would not fit into memory is refused, as far as it is known: at first the batches that are
  read ahead, then the first program and, judged by it, that of the largest size.

  Attributes:
    seconds: that compiling took by image size.
    step_bytes: that a step takes beside the state, on each device, by image size.
  """

  def __init__(self, run: Run, source: Source, *, force: bool = False):
    """Compiles nothing yet.

    Args:
      run: whose step is compiled.
      source: the training cases.
      force: whether to warn where memory is short.

    Raises:
      InputError: if there is not enough memory for the batches that are read ahead.
    """
    super().__init__()
    self.seconds: dict[int, float] = {}
    self.step_bytes: dict[int, int] = {}
    self._run, self._source, self._force = run, source, force
    self._batches: dict[int, Any] = {}
    self._refuse_without_memory(max(run.plan.image_sizes), 0)

  def compile(self, image_size: int) -> None:
    """Compiles the step for images of a size in pixels.

    Raises:
      InputError: if there is not enough memory for it.
    """
    run = self._run
    largest = max(run.plan.image_sizes)
    usual = f"about {CPU_SECONDS} s" if devices.platform() == "cpu" else "some time"
    logger.info(
      "Compiling the training step for %dx%d pixels (%s, less if it was compiled before).",
      *(image_size, image_size),
      usual,
    )
    start = time.perf_counter()
    state = jax.eval_shape(run.initialise)
    program = run.step.lower(state, self._shapes(image_size), run.numbers).compile()
    self.seconds[image_size] = time.perf_counter() - start
    taken = self.step_bytes[image_size] = _bytes_of(program)
    if not self:  # later ones run beside what the first has taken, which is not free any more
      self._refuse_without_memory(image_size, taken)
      if image_size != largest:  # activations grow with the area
        self._refuse_without_memory(largest, taken * (largest / image_size) ** 2)
    logger.info(
      "Compiled in %.0f s; a step takes %s of memory.", self.seconds[image_size], limits.gib(taken)
    )
    self[image_size] = program

  def _shapes(self, image_size: int) -> Any:
    if image_size in self._batches:
      return self._batches[image_size]
    config = self._run.config
    self._batches[image_size] = train_shapes(
      self._source,
      batch_size=config.train.batch_size,
      image_size=image_size,
      preprocessing=Preprocessing(**config.preprocess),
      policy=AugmentPolicy(**config.augment),
      on_device=config.data.augment_on == "device",
    )
    return self._batches[image_size]

  def _refuse_without_memory(self, image_size: int, step: float) -> None:
    """Refuses a step of so many bytes on a device, with the batches that are read ahead of it."""
    config = self._run.config
    arrays = jax.tree.leaves(self._shapes(image_size))
    batch = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
    # One is being read and one is in the step.
    ahead = (config.data.prefetch_batches + 2) * batch / jax.process_count()
    on_host = devices.platform() == "cpu"
    if on_host:
      ahead += step * jax.local_device_count()
    for free, needed in (
      (limits.free_memory(), ahead),
      (None if on_host else limits.free_device_memory(), step),
    ):
      self._refuse(image_size, free, needed, "about" if step else "at least")

  def _refuse(self, image_size: int, free: int | None, needed: float, bound: str) -> None:
    limits.refuse_more_than(
      free,
      needed,
      f"config.train.batch_size={self._run.plan.batch_size} at {image_size}x{image_size} pixels "
      f"takes {bound}",
      of="of memory",
      instead=(
        "set a smaller config.train.batch_size, with config.optim.accumulation for updates from as "
        "many photographs as before, config.model.remat=True, or smaller config.train.image_sizes"
      ),
      force=self._force,
    )


def _bytes_of(program: jax.stages.Compiled) -> int:
  """Bytes that a call takes beside its state on each device; 0 if the compiler does not tell."""
  stats = program.memory_analysis()
  if stats is None:
    return 0
  return stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
