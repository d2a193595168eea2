"""Joins the probabilities of several networks, and of several views of a photograph, into one map.

Pure functions on arrays; `inference.py` brings the networks.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Maps(NamedTuple):
  """What networks say of photographs.

  Attributes:
    probs: [B, S, S] float32 mean probability of lesion over networks and views.
    disagreement: [B, S, S] float32 standard deviation of it over networks and views; zero where
      one network looked once.
  """

  probs: jax.Array
  disagreement: jax.Array


def performance_weights(dice: Sequence[float]) -> np.ndarray:
  """Weights of an ensemble's members, proportional to how well each did alone.

  The paper calls its ensemble performance-weighted and gives no formula; this is the plainest.

  Args:
    dice: validation Dice of each member, in (0, 1].

  Returns:
    [len(dice)] float64, positive, with sum 1.

  Raises:
    ValueError: if there is no member or a Dice is not positive.
  """
  scores = np.asarray(dice, np.float64)
  if not scores.size or not (scores > 0).all():
    raise ValueError(f"weights need a positive validation Dice of every member, not {list(dice)}")
  return scores / scores.sum()


def join_maps(stacks: Sequence[jax.Array], weights: Sequence[float]) -> Maps:
  """Averages probabilities over views and, by weight, over networks.

  Args:
    stacks: [V, B, S, S] probabilities of each network's V views; sizes S may differ between
      networks, and smaller maps are interpolated to the largest.
    weights: of each network, with sum 1.

  Returns:
    Maps at the largest S.
  """
  size = max(stack.shape[-1] for stack in stacks)
  stacks = [_enlarge(stack.astype(jnp.float32), size) for stack in stacks]

  def mean(values: Sequence[jax.Array]) -> jax.Array:
    weighted = [w * jnp.mean(v, axis=0) for w, v in zip(weights, values, strict=True)]
    return functools.reduce(jnp.add, weighted)

  probs = mean(stacks)
  return Maps(probs, jnp.sqrt(mean([jnp.square(stack - probs) for stack in stacks])))


def _enlarge(stack: jax.Array, size: int) -> jax.Array:
  if stack.shape[-1] == size:
    return stack
  return jax.image.resize(stack, (*stack.shape[:2], size, size), "bilinear")
