"""Turns the uniform numbers of an augmentation into its parameters."""

import numpy as np


def between(bounds, uniform):
  """Maps a number or array in [0, 1] linearly to [bounds[0], bounds[1]]."""
  return bounds[0] + (bounds[1] - bounds[0]) * uniform


def generator(uniform: float) -> np.random.Generator:
  """A generator seeded by one uniform number, a multiple of 2**-53, without loss of bits."""
  return np.random.default_rng(int(uniform * 2**53))


def normal(uniform: float, shape: tuple[int, ...]) -> np.ndarray:
  """Standard normal float32 numbers of a shape, determined by one uniform number."""
  return generator(uniform).standard_normal(shape, dtype=np.float32)
