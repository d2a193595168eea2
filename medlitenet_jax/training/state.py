"""Everything that training changes, as one pytree, and the random keys of a run."""

import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from flax.training import dynamic_scale as dynamic_scale_lib

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training import optim


class TrainState(struct.PyTreeNode):
  """The model and its optimizer, as a checkpoint holds them.

  Attributes:
    micro_step: scalar int32, batches seen.
    skipped: scalar int32, batches that changed nothing because their loss or gradient was not
      finite.
    params: parameters, float32.
    batch_stats: running means and variances of BatchNorm, float32; empty for a network without it.
    ema_params: exponential moving average of `params` over updates; vectors, see `optim.pack`.
    ema_batch_stats: exponential moving average of `batch_stats`, for the averaged network.
    opt_state: of the optimizer, including accumulated gradients; vectors, see `optim.pack`.
    loss_scale: dynamic loss scale in float16; None in the wider dtypes, which need none.
  """

  micro_step: jax.Array
  skipped: jax.Array
  params: Any
  batch_stats: Any
  ema_params: Any
  ema_batch_stats: Any
  opt_state: Any
  loss_scale: dynamic_scale_lib.DynamicScale | None

  @property
  def ema_variables(self) -> dict[str, Any]:
    """Variables of the averaged network, as `Module.apply` takes them."""
    params = optim.unpack(self.ema_params, self.params)
    return {"params": params, "batch_stats": self.ema_batch_stats}


def stream_key(seed: int, stream: str) -> jax.Array:
  """The key of one random stream of a run.

  The caller folds it with the step. A key follows from seed, stream and step alone, so checkpoints
  need not hold any.

  Args:
    seed: `config.seed`.
    stream: a name such as "params" or "dropout".

  Returns:
    A typed scalar key.
  """
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def create_state(
  model: nn.Module, tx: optax.MultiSteps, *, seed: int, precision: str, image_size: int
) -> TrainState:
  """Initialises the state of a new run.

  Args:
    model: maps [B, S, S, 3] images to {"mask": logits, ...}.
    tx: the optimizer.
    seed: of the run; the stream "params" is used.
    precision: one of `DTYPES`.
    image_size: S in pixels, any that the network takes.

  Returns:
    State before the first batch; the average equals the parameters.
  """
  image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
  variables = model.init(stream_key(seed, "params"), image)
  params, batch_stats = variables["params"], variables.get("batch_stats", {})
  return TrainState(
    micro_step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    ema_params=optim.pack(params),
    # Copies: the state is donated to the step, and a buffer cannot be donated twice.
    ema_batch_stats=jax.tree.map(jnp.copy, batch_stats),
    opt_state=tx.init(optim.pack(params)),
    loss_scale=_initial_loss_scale() if precision == "float16" else None,
  )


def start_from(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
  """Replaces the random parameters of a new run by those of a trained network.

  Args:
    state: before the first batch.
    variables: "params" and, where the network has norms, "batch_stats", float32.

  Returns:
    The state with these variables, which are also its average.

  Raises:
    InputError: if the variables are of another network.
  """
  own = {"params": state.params, "batch_stats": state.batch_stats}
  given = {"batch_stats": {}, **variables}
  if jax.tree.map(jnp.shape, own) != jax.tree.map(jnp.shape, given):
    raise InputError(
      "config.train.start_from: those weights are of another network than config.model describes; "
      "name others, set config.model to what they were trained with, or take over what fits with "
      "config.train.start_partly=True"
    )
  return state.replace(
    **jax.tree.map(jnp.array, given),
    ema_params=optim.pack(given["params"]),
    ema_batch_stats=jax.tree.map(jnp.array, given["batch_stats"]),
  )


def fit(given: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Takes those arrays of one network that another has a place for.

  Args:
    given: {"params", "batch_stats"} of a trained network.
    own: those of the network that takes them over.

  Returns:
    merged: `own`, with each array replaced by its namesake in `given` if that has its shape.
    new: the names of the arrays that were not replaced, such as "params/head/bias".

  Raises:
    InputError: if no parameter fits.
  """
  theirs = traverse_util.flatten_dict(given, sep="/")
  merged = traverse_util.flatten_dict(own, keep_empty_nodes=True, sep="/")
  fitting = {
    name: theirs[name]
    for name, array in merged.items()
    if name in theirs and jnp.shape(theirs[name]) == jnp.shape(array)
  }
  if not fitting:
    raise InputError("config.train.start_from: no array of those weights fits this network")
  new = [name for name in traverse_util.flatten_dict(own, sep="/") if name not in fitting]
  return traverse_util.unflatten_dict(merged | fitting, sep="/"), new


def _initial_loss_scale() -> dynamic_scale_lib.DynamicScale:
  """A scale of 2**16, in typed arrays: with Python numbers the step would be compiled twice."""
  return dynamic_scale_lib.DynamicScale(fin_steps=jnp.int32(0), scale=jnp.float32(2**16))
