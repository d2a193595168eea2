"""Saves and restores a run: the state of training together with the position in the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from medlitenet_jax.errors import InputError
from medlitenet_jax.state import TrainState

SELECTED_BY = "dice"  # the validation score that decides which checkpoint is best
CHECKPOINT_FOLDER = "checkpoints"
# What Orbax raises of damaged files.
_DAMAGE = (ValueError, KeyError, TypeError, OSError, RecursionError)


class Checkpoints:
  """The checkpoints of a workdir; the newest and the best are kept.

  Attributes:
    latest_step: batches seen by the newest checkpoint, None where there is none.
    best_step: the same of the one with the highest validation Dice.
  """

  def __init__(self, workdir: Path, *, read_only: bool = False):
    """Opens the checkpoints of a run.

    Args:
      workdir: folder of the run.
      read_only: whether nothing may be created or changed there.

    Raises:
      InputError: if the scores of a checkpoint are damaged.
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(1),
        checkpoint_managers.BestN(get_metric_fn=_selecting_score, n=1),
      ]
    )
    options = ocp.CheckpointManagerOptions(
      best_fn=_selecting_score,
      preservation_policy=None if read_only else policy,
      read_only=read_only,
      create=not read_only,
      cleanup_tmp_directories=not read_only,
    )
    folder = (workdir / CHECKPOINT_FOLDER).absolute()
    try:
      self._manager = ocp.CheckpointManager(folder, options=options)
    except _DAMAGE as error:  # Orbax reads the scores of all checkpoints at once
      raise InputError(
        f"{folder}: cannot be opened ({_reason(error)}); remove the damaged checkpoint in it"
      ) from error

  @property
  def latest_step(self) -> int | None:
    """Batches seen by the newest checkpoint."""
    return self._manager.latest_step()

  @property
  def best_step(self) -> int | None:
    """Batches seen by the checkpoint with the highest validation Dice."""
    return self._manager.best_step()

  def metrics(self, step: int) -> Mapping[str, float]:
    """Validation scores that a checkpoint was saved with."""
    self._manager.wait_until_finished()
    return self._manager.metrics(step) or {}

  def save(self, state: TrainState, batches: grain.DatasetIterator, metrics) -> None:
    """Saves in the background.

    Args:
      state: after its last batch.
      batches: the iterator that gave that batch.
      metrics: validation scores of this state, among them the one that selects.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(batches)
    )
    self._manager.save(int(state.micro_step), args=args, metrics=dict(metrics))

  def restore(self, step: int, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
    """Reads a checkpoint to go on from.

    Args:
      step: which.
      state: shapes of the state.
      batches: iterator that is moved to the saved position.

    Returns:
      The saved state.

    Raises:
      InputError: if the checkpoint is damaged or not of this state.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(_on_this_device(state)),
      data=grain.checkpoint.CheckpointRestore(batches),
    )
    return self._restore(step, args)

  def restore_ema(self, step: int, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Reads nothing but the averaged network.

    Args:
      step: which.
      variables: shapes of the network's variables.

    Returns:
      The averaged variables.

    Raises:
      InputError: if the checkpoint is damaged or of another network.
    """
    wanted = _on_this_device(
      {"ema_params": variables["params"], "ema_batch_stats": variables["batch_stats"]}
    )
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)
    found = self._restore(step, ocp.args.Composite(state=args))
    # A partial restore passes over what the checkpoint does not have, leaving its shape there.
    arrays = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    if not arrays or jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, wanted):
      raise InputError(f"{self._manager.directory}/{step}: holds another network than config.json")
    return {"params": found["ema_params"], "batch_stats": found["ema_batch_stats"]}

  def _restore(self, step: int, args: ocp.args.Composite):
    try:
      return self._manager.restore(step, args=args)["state"]
    except _DAMAGE as error:
      raise InputError(
        f"{self._manager.directory}/{step}: cannot be restored ({_reason(error)}); remove that "
        "folder to go on from another checkpoint, or start a new run in another --workdir"
      ) from error

  def close(self) -> None:
    """Waits for what is still being saved."""
    self._manager.wait_until_finished()
    self._manager.close()


def _reason(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _selecting_score(metrics: Mapping[str, float]) -> float:
  return metrics[SELECTED_BY]


def _on_this_device(tree):
  """Shapes that are restored to the first device, wherever they were saved from."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
