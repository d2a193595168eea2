"""Checks that a network learns."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def squares(outputs, mask):
  """Mean square of the difference between the logits and a mask."""
  return jnp.mean((outputs["mask"] - mask) ** 2)


def check_learning(
  model: nn.Module,
  variables: Mapping[str, Any],
  size: int = 32,
  *,
  loss: Callable = squares,
  without_gradient: str = "$^",
) -> None:
  """Fails if a parameter has no gradient, or a few small steps do not lower the loss.

  Args:
    model: a network.
    variables: of it.
    size: pixels a side of a photograph that it takes.
    loss: (outputs, mask) to a scalar.
    without_gradient: pattern of the parameters that a norm or a softmax after them makes useless.
  """
  rng = np.random.default_rng(0)
  # Three, because a BatchNorm makes the same of any two values.
  image = rng.normal(size=(3, size, size, 3)).astype(np.float32)
  mask = (rng.normal(size=(3, size, size, 1)) > 0).astype(np.float32)
  others = {name: tree for name, tree in variables.items() if name != "params"}

  @jax.jit
  def step(params):
    def of(params):
      outputs, updated = model.apply(
        {**others, "params": params},
        image,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
      )
      return loss(outputs, mask), updated

    (value, updated), grads = jax.value_and_grad(of, has_aux=True)(params)
    length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads)))
    moved = jax.tree.map(lambda leaf, grad: leaf - 0.02 * grad / length, params, grads)
    return value, grads, moved, updated

  first, grads, params, updated = step(variables["params"])
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    name = "/".join(key.key for key in path)
    assert np.all(np.isfinite(leaf)), name
    assert np.any(np.abs(leaf) > 1e-8) or re.search(without_gradient, name), name
  for before, after in zip(*map(jax.tree.leaves, (others, updated)), strict=True):
    assert np.any(before != after)
  for _ in range(3):
    last, _, params, _ = step(params)
  assert last < first
