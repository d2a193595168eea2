"""One step of training: a pure function of the state and a batch, compiled once a size of image."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

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
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Learns from one batch.

  Every `accumulation` batches the parameters move and the average follows. A batch whose gradient
  is not finite changes nothing but the two counters and, in float16, the loss scale.

  Args:
    state: before the batch.
    image: [B, S, S, 3] uint8 RGB.
    targets: of the batch; "mask" is the [B, S, S, 1] truth, 0 or 1.
    model: maps normalised images to {"mask": logits, ...}.
    tx: the optimizer.
    loss_fn: (outputs, targets) to (loss, parts).
    dropout_key: of the run; folded with the step.
    ema_decay: decay of the average by updates done.

  Returns:
    state: after the batch.
    figures: scalar float32 loss, its parts, Dice of the batch, norm of the gradient, and skipped.
  """

  def objective(params):
    outputs, changed = model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      normalize(image),
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.fold_in(dropout_key, state.micro_step)},
    )
    with jax.named_scope("loss"):
      loss, parts = loss_fn(outputs, targets)
    return loss, (parts, changed.get("batch_stats", {}), outputs["mask"])

  loss_scale = state.loss_scale
  if loss_scale is None:
    (loss, aux), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
  else:
    loss_scale, _, (loss, aux), grads = loss_scale.value_and_grad(objective, has_aux=True)(
      state.params
    )
  parts, batch_stats, logits = aux
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

  with jax.named_scope("optimizer"):
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.where(tx.has_updated(opt_state), ema_decay(opt_state.gradient_step), 1.0)
    learned = {
      "params": params,
      "batch_stats": batch_stats,
      "ema_params": optim.update_average(state.ema_params, params, decay),
      "ema_batch_stats": optim.update_average(state.ema_batch_stats, batch_stats, decay),
      "opt_state": opt_state,
    }
    kept = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      learned,
      {name: getattr(state, name) for name in learned},
    )
  mask = targets["mask"]
  counts = metrics.confusion_counts(logits, mask, jnp.ones(mask.shape[0]))
  dice = (2 * counts.tp + 1) / (2 * counts.tp + counts.fp + counts.fn + 1)
  figures = {"loss": loss, **parts, "dice": jnp.mean(dice), "grad_norm": grad_norm}
  new_state = TrainState(
    micro_step=state.micro_step + 1,
    skipped=state.skipped + jnp.logical_not(finite),
    loss_scale=loss_scale,
    **kept,
  )
  return new_state, {**figures, "skipped": new_state.skipped.astype(jnp.float32)}


def create_train_step(
  config: ConfigDict, model: nn.Module, tx: optax.MultiSteps
) -> jax.stages.Wrapped:
  """Compiles the step of a run: (state, batch) to (state, figures), the state given away.

  The batch holds the arrays of `train_batches`, of which every device takes its rows.
  """
  learn = functools.partial(
    train_step,
    model=model,
    tx=tx,
    loss_fn=create_objective(config.loss.to_dict()),
    dropout_key=stream_key(config.seed, "dropout"),
    ema_decay=functools.partial(
      optim.ema_decay_at, decay=config.optim.ema_decay, warmup=config.optim.ema_warmup
    ),
  )
  policy = AugmentPolicy(**config.augment)

  def step(state: TrainState, batch: Mapping[str, Any]):
    if config.data.augment_on != "device":
      return learn(state, batch["image"], batch["targets"])
    with jax.named_scope("augment"):
      image, mask = unpack_views(batch["views"], policy)
    return learn(state, image, {**batch["targets"], "mask": mask})

  whole, shared = devices.replicated(), devices.by_rows()
  return jax.jit(step, donate_argnums=0, in_shardings=(whole, shared), out_shardings=whole)
