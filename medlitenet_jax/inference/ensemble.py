"""Joins what several networks, and several views of a photograph, give into one."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np


class Maps(NamedTuple):
  """What networks give for a batch of photographs, over all networks and views.

  The same of one photograph lacks the axis B.

  Attributes:
    probs: [B, S, S] float32, mean probability of lesion.
    disagreement: [B, S, S] float32, standard deviation of that probability; zero for one network
      and one view.
    likeness: [B] float32, how much each photograph looks like those that the networks have learned
      from, see `likeness_of`; None if no network says.
    boundary: [B, S, S] float32, mean over the networks that say so of the probability that the
      lesion's border is there, in the photograph itself; None if no network says.
  """

  probs: Any
  disagreement: Any
  likeness: Any = None
  boundary: Any = None


def performance_weights(dice: Sequence[float]) -> np.ndarray:
  """Weights of an ensemble's members, proportional to how well each did alone.

  The paper calls its ensemble performance-weighted and gives no formula; this is the simplest one.

  Args:
    dice: validation Dice of each member, in (0, 1].

  Returns:
    [len(dice)] float64, positive, with sum 1.

  Raises:
    ValueError: if there is no member, or a Dice is not positive.
  """
  scores = np.asarray(dice, np.float64)
  if not scores.size or not (scores > 0).all():
    raise ValueError(f"weights need a positive validation Dice of every member, not {list(dice)}")
  return scores / scores.sum()


def join_maps(
  stacks: Sequence[Any],
  weights: Sequence[float],
  likeness: Sequence[Any] = (),
  boundary: Sequence[Any] = (),
) -> Maps:
  """Averages probabilities over views and, by weight, over networks.

  Args:
    stacks: one [V, B, S, S] array of probabilities for each network, of its V views; the sizes S
      may differ between networks, and smaller maps are interpolated to the largest.
    weights: Python numbers, one for each network, with sum 1.
    likeness: [B] of each network that knows it; the lowest counts.
    boundary: [B, S, S] of each network that has it.

  Returns:
    Maps at the largest S.

  Raises:
    AssertionError: if the stacks are of other shapes, or their number is not that of the weights.
  """
  chex.assert_rank(stacks, 4)
  for stack in stacks:
    chex.assert_shape(stack, (None, stacks[0].shape[1], None, stack.shape[2]))
  chex.assert_equal(len(stacks), len(weights))
  chex.assert_shape(tuple(likeness), stacks[0].shape[1:2])
  chex.assert_rank(tuple(boundary), 3)
  return _join(tuple(stacks), tuple(likeness), tuple(boundary), tuple(map(float, weights)))


@functools.partial(jax.jit, static_argnames="weights")
def _join(
  stacks: Sequence[jax.Array],
  likeness: Sequence[jax.Array],
  boundary: Sequence[jax.Array],
  weights: Sequence[float],
) -> Maps:
  size = max(stack.shape[-1] for stack in stacks)
  stacks = [_enlarged(stack.astype(jnp.float32), size) for stack in stacks]

  def mean(values: Sequence[jax.Array]) -> jax.Array:
    weighted = [w * jnp.mean(v, axis=0) for w, v in zip(weights, values, strict=True)]
    return functools.reduce(jnp.add, weighted)

  probs = mean(stacks)
  disagreement = jnp.sqrt(mean([jnp.square(stack - probs) for stack in stacks]))
  borders = [_enlarged(each[None], size)[0] for each in boundary]
  return Maps(
    probs,
    disagreement,
    functools.reduce(jnp.minimum, likeness) if likeness else None,
    functools.reduce(jnp.add, borders) / len(borders) if borders else None,
  )


def _enlarged(stack: jax.Array, size: int) -> jax.Array:
  if stack.shape[-1] == size:
    return stack
  return jax.image.resize(stack, (*stack.shape[:2], size, size), "bilinear")
