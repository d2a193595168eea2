"""Optimizers under a cosine schedule, clipped and accumulated, and the parameter average."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from medlitenet_jax.system.rules import one_of


def create_schedule(
  total_updates: int, *, learning_rate: float, final_learning_rate: float, warmup_updates: int
) -> optax.Schedule:
  """Linear warm-up from 0, then half a cosine, at the final rate once every update is done.

  Args:
    total_updates: optimizer updates of the whole run.
    learning_rate: at the end of the warm-up.
    final_learning_rate: at the end of the run.
    warmup_updates: length of the warm-up; a run shorter than ten times that warms up for a tenth.

  Returns:
    A function from updates done to the learning rate.
  """
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=learning_rate,
    warmup_steps=min(warmup_updates, total_updates // 10),
    decay_steps=max(total_updates, 1),
    end_value=final_learning_rate,
  )


def kernel_mask(params):
  """True for the kernels among parameters: what weight decay acts on.

  Biases, norms, codes and the attention's boundary weights are left alone.
  """
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _adamw(schedule, weight_decay, momentum):
  del momentum
  return optax.adamw(schedule, weight_decay=weight_decay, mask=kernel_mask)


def _sgd(schedule, weight_decay, momentum):
  decay = optax.add_decayed_weights(weight_decay, kernel_mask)
  return optax.chain(decay, optax.sgd(schedule, momentum=momentum))


# Each from (schedule, weight decay of the kernels, momentum) to a transformation.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adamw": _adamw,  # decay decoupled from the gradient, times the learning rate
  "sgd": _sgd,  # decay added to the gradient
}


def create_optimizer(
  schedule: optax.Schedule,
  *,
  name: str = "adamw",
  weight_decay: float,
  momentum: float = 0.9,
  clip_norm: float,
  accumulation: int,
) -> optax.MultiSteps:
  """An optimizer that updates once in `accumulation` batches with their clipped mean gradient.

  Args:
    schedule: learning rate by updates done.
    name: one of `OPTIMIZERS`.
    weight_decay: of kernels only.
    momentum: of "sgd".
    clip_norm: largest global norm of the mean gradient.
    accumulation: batches an update.

  Returns:
    The transformation; `has_updated` of its state tells whether the last batch closed an update.

  Raises:
    InputError: if there is no optimizer of that name.
  """
  one_of(OPTIMIZERS).check("config.optim.name", name)
  optimizer = OPTIMIZERS[name](schedule, weight_decay, momentum)
  return optax.MultiSteps(
    optax.chain(optax.clip_by_global_norm(clip_norm), optimizer), every_k_schedule=accumulation
  )


def ema_decay_at(update, *, decay: float, warmup: bool):
  """Decay of the parameter average at an update.

  Args:
    update: updates done, counting this one; scalar integer.
    decay: in the long run.
    warmup: whether the decay starts low and rises, min(decay, (1 + n) / (10 + n)), so that the
      random initial parameters are forgotten in time.

  Returns:
    Scalar float32.
  """
  if not warmup:
    return jnp.float32(decay)
  update = jnp.asarray(update, jnp.float32)
  return jnp.minimum(decay, (1 + update) / (10 + update))


def update_average(average, current, decay):
  """Moves a tree of averages towards the current values.

  Args:
    average: tree of arrays.
    current: tree of the same structure.
    decay: scalar; 1 leaves the averages as they are.

  Returns:
    decay * average + (1 - decay) * current, leaf by leaf.
  """
  return jax.tree.map(lambda a, c: decay * a + (1 - decay) * c, average, current)
