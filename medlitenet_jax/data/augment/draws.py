"""From the uniform numbers that an augmentation is given to what it does, and how strongly."""

import numpy as np


def between(bounds, uniform):
  """The number, or numbers, that lie a share `uniform` of the way from bounds[0] to bounds[1]."""
  return bounds[0] + (bounds[1] - bounds[0]) * uniform


def generator(uniform: float) -> np.random.Generator:
  """Chance of any amount from one uniform, which is a multiple of 2**-53: a seed in full."""
  return np.random.default_rng(int(uniform * 2**53))


def normal(uniform: float, shape: tuple[int, ...]) -> np.ndarray:
  """Standard normal float32 of a shape from one uniform."""
  return generator(uniform).standard_normal(shape, dtype=np.float32)
