"""One step of training: a pure function of the state and a batch, compiled once per image size."""

import functools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from medlitenet_jax.data.augment.on_device import unpack_views
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.models.forward import normalize
from medlitenet_jax.scores import metrics
from medlitenet_jax.system import devices
from medlitenet_jax.training import optim
from medlitenet_jax.training.losses import create_objective
from medlitenet_jax.training.state import TrainState, stream_key


def train_step(
  state: TrainState,
  image: jax.Array,
  targets: Mapping[str, jax.Array],
  *,
  model: nn.Module,
  tx: optax.MultiSteps,
  loss_fn: Callable,
  dropout_key: jax.Array,
  ema_decay: Callable,
  keep_statistics: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Learns from one batch.

  Parameters and their average move once every `accumulation` batches. A batch whose loss or
  gradient is not finite is skipped: it changes only the two counters and, in float16, the loss
  scale.

  Args:
    state: before the batch.
    image: [B, S, S, 3] uint8 RGB.
    targets: of the batch; "mask" is the [B, S, S, 1] ground truth, 0 or 1.
    model: maps normalised images to {"mask": [B, S, S, 1] logits, ...}.
    tx: the optimizer.
    loss_fn: (outputs, targets) to (loss, parts), see `create_objective`.
    dropout_key: of the run; it is folded with the step.
    ema_decay: (updates done) to the decay of the average.
    keep_statistics: whether BatchNorm uses its running statistics, and leaves them as they are.

  Returns:
    state: after the batch.
    figures: scalar float32 each: loss, its parts, dice of the batch, grad_norm, and skipped, the
      number of skipped batches since the run began.

  Raises:
    AssertionError: if an array has another shape or dtype.
  """
  mask = targets["mask"]
  chex.assert_shape(image, (None, None, None, 3))
  chex.assert_type(image, jnp.uint8)
  chex.assert_shape(mask, (*image.shape[:3], 1))
  objective = functools.partial(
    _objective,
    batch_stats=state.batch_stats,
    image=image,
    targets=targets,
    model=model,
    loss_fn=loss_fn,
    dropout_key=jax.random.fold_in(dropout_key, state.micro_step),
    keep_statistics=keep_statistics,
  )
  loss, (parts, batch_stats, logits), grads, loss_scale = _gradient(objective, state)
  with jax.named_scope("optimizer"):
    grads = optim.pack(grads)
    grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  learned = _learned(state, grads, batch_stats, finite, tx=tx, ema_decay=ema_decay)
  new_state = TrainState(
    micro_step=state.micro_step + 1,
    skipped=state.skipped + jnp.logical_not(finite),
    loss_scale=loss_scale,
    **learned,
  )
  figures = {"loss": loss, **parts, "dice": _mean_dice(logits, mask), "grad_norm": grad_norm}
  return new_state, {**figures, "skipped": new_state.skipped.astype(jnp.float32)}


def _objective(
  params, *, batch_stats, image, targets, model, loss_fn, dropout_key, keep_statistics
):
  """The loss of a batch, and (its parts, the new running statistics, the logits of the mask)."""
  outputs, changed = model.apply(
    {"params": params, "batch_stats": batch_stats},
    normalize(image),
    train=True,
    mutable=[] if keep_statistics else ["batch_stats"],
    rngs={"dropout": dropout_key},
  )
  with jax.named_scope("loss"):
    loss, parts = loss_fn(outputs, targets)
  return loss, (parts, changed.get("batch_stats", batch_stats), outputs["mask"])


def _gradient(objective: Callable, state: TrainState):
  """The loss, its auxiliary values, the gradient, and the next loss scale (None without one)."""
  if state.loss_scale is None:
    (loss, aux), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    return loss, aux, grads, None
  scaled = state.loss_scale.value_and_grad(objective, has_aux=True)
  loss_scale, _, (loss, aux), grads = scaled(state.params)
  return loss, aux, grads, loss_scale


def _learned(state: TrainState, grads, batch_stats, finite, *, tx, ema_decay) -> dict[str, Any]:
  """The fields of the state that a batch changes; as they were where it is not finite."""

  def learn(old, grads, batch_stats):
    updates, opt_state = tx.update(grads, old["opt_state"], old["params"])
    params = optax.apply_updates(old["params"], updates)
    decay = jnp.where(tx.has_updated(opt_state), ema_decay(opt_state.gradient_step), 1.0)
    return {
      "params": params,
      "batch_stats": batch_stats,
      "ema_params": optim.update_average(old["ema_params"], params, decay),
      "ema_batch_stats": optim.update_average(old["ema_batch_stats"], batch_stats, decay),
      "opt_state": opt_state,
    }

  def branch(finite, old, *new):
    return jax.lax.cond(finite, learn, lambda old, *_: old, old, *new)

  def select(finite, old, *new):
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), learn(old, *new), old)

  with jax.named_scope("optimizer"):
    old = {
      "params": optim.pack(state.params),
      "batch_stats": state.batch_stats,
      "ema_params": state.ema_params,
      "ema_batch_stats": state.ema_batch_stats,
      "opt_state": state.opt_state,
    }
    # On a CPU a branch keeps XLA from computing the update in pieces, where each parameter is taken
    # out of the vectors. A GPU would have to wait for the condition.
    learned = jax.lax.platform_dependent(
      finite, old, grads, batch_stats, cpu=branch, default=select
    )
    return {**learned, "params": optim.unpack(learned["params"], state.params)}


def _mean_dice(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean Dice of a batch at a threshold of one half, smoothed by a pixel; scalar float32."""
  counts = metrics.confusion_counts(logits, mask, jnp.ones(mask.shape[0]))
  return jnp.mean((2 * counts.tp + 1) / (2 * counts.tp + counts.fp + counts.fn + 1))


class Numbers(NamedTuple):
  """Numbers of a recipe that the compiled step takes as arguments.

  A run that differs from an earlier one in nothing else finds the step in the compilation cache.

  Attributes:
    dropout_key: typed scalar key.
    total_steps: batches of the whole run; scalar int32.
    optim: the real numbers of `config.optim` by name, and the updates of the warm-up; scalars.
    loss_weights: by term; scalars. A weight of 0 is none of them: it leaves the term out.
  """

  dropout_key: jax.Array
  total_steps: jax.Array
  optim: dict[str, jax.Array]
  loss_weights: dict[str, jax.Array]


def recipe_numbers(config: ConfigDict, total_steps: int) -> Numbers:
  """The numbers of a recipe, on all devices.

  Args:
    config: resolved.
    total_steps: batches of the whole run.

  Returns:
    The numbers.
  """
  numbers = Numbers(
    dropout_key=stream_key(config.seed, "dropout"),
    total_steps=jnp.int32(total_steps),
    optim={
      "warmup_updates": jnp.int32(config.optim.warmup_updates),
      **{n: jnp.float32(value) for n, value in config.optim.items() if isinstance(value, float)},
    },
    loss_weights={n: jnp.float32(term.weight) for n, term in config.loss.items() if term.weight},
  )
  # Not `device_put`, which cannot put a key on devices of other processes.
  return jax.jit(lambda numbers: numbers, out_shardings=devices.replicated())(numbers)


def create_train_step(config: ConfigDict, model: nn.Module) -> jax.stages.Wrapped:
  """Compiles the step of a run.

  Args:
    config: resolved.
    model: maps normalised images to {"mask": logits, ...}.

  Returns:
    A function (state, batch, numbers) to (state, figures), see `train_step`. It donates the state
    that it is given. The batch holds the arrays of `train_batches`, and every device its rows of
    them; the numbers are those of `recipe_numbers`.

  Raises:
    InputError: if `config.loss` or `config.optim` cannot be used.
  """
  objective = create_objective(config.loss.to_dict())
  optim.create_run_optimizer(config.optim, 1)  # refuses what cannot be used, now
  policy = AugmentPolicy(**config.augment)

  def step(state: TrainState, batch: Mapping[str, Any], numbers: Numbers):
    targets = batch["targets"]
    if config.data.augment_on == "device":
      with jax.named_scope("augment"):
        image, mask = unpack_views(batch["views"], policy)
      targets = {**targets, "mask": mask}
    else:
      image = batch["image"]
    recipe = SimpleNamespace(optim=SimpleNamespace(**{**config.optim, **numbers.optim}))
    tx, _ = optim.create_run_optimizer(recipe.optim, numbers.total_steps)
    return train_step(
      state,
      image,
      targets,
      model=model,
      tx=tx,
      loss_fn=functools.partial(objective, weights=numbers.loss_weights),
      dropout_key=numbers.dropout_key,
      ema_decay=functools.partial(
        optim.ema_decay_at, decay=recipe.optim.ema_decay, warmup=recipe.optim.ema_warmup
      ),
      keep_statistics=config.train.keep_statistics,
    )

  replicated, sharded = devices.replicated(), devices.batch_sharding()
  return jax.jit(
    step, donate_argnums=0, in_shardings=(replicated, sharded, replicated), out_shardings=replicated
  )
