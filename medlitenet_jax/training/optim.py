"""Optimizers with a cosine schedule, clipping and accumulation, and the average of parameters."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from medlitenet_jax.system.rules import one_of


def create_schedule(
  total_updates, *, learning_rate, final_learning_rate, warmup_updates
) -> optax.Schedule:
  """Linear warm-up, then half a cosine down to the final rate.

  Optax has this schedule too, but takes no arguments of a compiled function.

  Args:
    total_updates: optimizer updates of the whole run; this and the others are scalars, traced or
      not.
    learning_rate: at the end of the warm-up.
    final_learning_rate: once all updates are done, and from then on.
    warmup_updates: length of the warm-up; at most a tenth of the run is used.

  Returns:
    A function from updates done to the learning rate, a float32 scalar.
  """
  total = jnp.maximum(total_updates, 1)
  warmup = jnp.minimum(warmup_updates, total_updates // 10)

  def schedule(update):
    rising = learning_rate * (update + 1) / jnp.maximum(warmup, 1)
    done = jnp.clip((update - warmup) / (total - warmup), 0, 1)
    share = 0.5 * (1 + jnp.cos(jnp.pi * done))
    falling = final_learning_rate + (learning_rate - final_learning_rate) * share
    return jnp.where(update < warmup, rising, falling).astype(jnp.float32)

  return schedule


def kernel_mask(params):
  """Selects the parameters that weight decay acts on.

  Args:
    params: tree of parameters.

  Returns:
    The same tree with True for kernels and False for everything else: biases, norms, codes and the
    boundary weights of the attention.
  """
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def pack(tree) -> dict[str, jax.Array]:
  """Lays the arrays of a tree like the parameters' end to end.

  The optimizer works on these vectors: on each parameter by itself it would be some ten small
  programs for each of 74 shapes, which take longer to compile than to run.

  Args:
    tree: of float32 arrays, by module.

  Returns:
    {"kernel": a vector of all kernels, "rest": one of everything else}, so that `kernel_mask` tells
    them apart; without the one that would be empty.
  """
  groups = _groups(tree)
  leaves = jax.tree.leaves(tree)
  return {
    name: jnp.concatenate([jnp.ravel(leaves[i]) for i in places]) for name, places in groups.items()
  }


def unpack(vectors: Mapping[str, jax.Array], like):
  """Undoes `pack`.

  Args:
    vectors: of `pack`.
    like: a tree of the shapes that were packed.

  Returns:
    A tree like it with the values of the vectors.
  """
  leaves, structure = jax.tree.flatten(like)
  found: list[Any] = [None] * len(leaves)
  for name, places in _groups(like).items():
    pieces = jax.lax.split(vectors[name], [math.prod(leaves[i].shape) for i in places])
    for i, piece in zip(places, pieces, strict=True):
      found[i] = piece.reshape(leaves[i].shape)
  return jax.tree.unflatten(structure, found)


def _groups(tree) -> dict[str, list[int]]:
  """Places of the leaves of each vector, in the order of the tree's leaves."""
  groups: dict[str, list[int]] = {"kernel": [], "rest": []}
  for i, is_kernel in enumerate(jax.tree.leaves(kernel_mask(tree))):
    groups["kernel" if is_kernel else "rest"].append(i)
  return {name: places for name, places in groups.items() if places}


def _adamw(schedule, weight_decay, momentum):
  del momentum
  return optax.adamw(schedule, weight_decay=weight_decay, mask=kernel_mask)


def _sgd(schedule, weight_decay, momentum):
  decay = optax.add_decayed_weights(weight_decay, kernel_mask)
  return optax.chain(decay, optax.sgd(schedule, momentum=momentum))


# Functions (schedule, weight decay of kernels, momentum) to a transformation of gradients.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adamw": _adamw,  # decay is decoupled from the gradient and scaled by the learning rate
  "sgd": _sgd,  # decay is added to the gradient
}


def create_optimizer(
  schedule: optax.Schedule,
  *,
  name: str = "adamw",
  weight_decay,
  momentum=0.9,
  clip_norm,
  accumulation: int,
) -> optax.MultiSteps:
  """Builds an optimizer that updates once every `accumulation` batches.

  Args:
    schedule: learning rate by updates done.
    name: one of `OPTIMIZERS`.
    weight_decay: applied to kernels only; this and the next two are scalars, traced or not.
    momentum: used by "sgd".
    clip_norm: largest global norm of the gradient, which is the mean over the batches of an update.
    accumulation: batches an update.

  Returns:
    The transformation. `has_updated` of its state says whether the last batch completed an update.

  Raises:
    InputError: if there is no optimizer of that name.
  """
  one_of(OPTIMIZERS).check("config.optim.name", name)
  optimizer = OPTIMIZERS[name](schedule, weight_decay, momentum)
  return optax.MultiSteps(
    optax.chain(optax.clip_by_global_norm(clip_norm), optimizer), every_k_schedule=accumulation
  )


def create_run_optimizer(optim: Any, total_steps) -> tuple[optax.MultiSteps, optax.Schedule]:
  """Builds the optimizer of a run.

  Args:
    optim: `config.optim`, or the same fields with traced numbers.
    total_steps: batches of the whole run; may be traced.

  Returns:
    The optimizer, and its schedule: learning rate by updates done.

  Raises:
    InputError: as `create_optimizer`.
  """
  schedule = create_schedule(
    total_steps // optim.accumulation,
    learning_rate=optim.learning_rate,
    final_learning_rate=optim.final_learning_rate,
    warmup_updates=optim.warmup_updates,
  )
  tx = create_optimizer(
    schedule,
    name=optim.name,
    weight_decay=optim.weight_decay,
    momentum=optim.momentum,
    clip_norm=optim.clip_norm,
    accumulation=optim.accumulation,
  )
  return tx, schedule


def ema_decay_at(update, *, decay, warmup: bool):
  """Decay of the average of parameters at an update.

  Args:
    update: updates done including this one; scalar integer.
    decay: largest decay, a scalar in [0, 1).
    warmup: whether the decay of update n is only min(decay, (1 + n) / (10 + n)), so that the
      average soon forgets the random initial parameters.

  Returns:
    Scalar float32.

  Raises:
    AssertionError: if `update` is no scalar.
  """
  chex.assert_rank(update, 0)
  if not warmup:
    return jnp.float32(decay)
  update = jnp.asarray(update, jnp.float32)
  return jnp.minimum(decay, (1 + update) / (10 + update))


def update_average(average, current, decay):
  """Moves a tree of averages towards the current values.

  Args:
    average: tree of float arrays.
    current: tree of the same structure and shapes.
    decay: scalar in [0, 1]; 1 leaves the averages as they are.

  Returns:
    decay * average + (1 - decay) * current, leaf by leaf.

  Raises:
    AssertionError: if the trees differ in structure or shapes, or `decay` is no scalar.
  """
  chex.assert_trees_all_equal_shapes(average, current)
  chex.assert_rank(decay, 0)
  return jax.tree.map(lambda a, c: decay * a + (1 - decay) * c, average, current)
