"""Saves and restores a run: the state of training together with the position in the data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from medlitenet_jax import devices
from medlitenet_jax.errors import InputError
from medlitenet_jax.state import TrainState

SELECTED_BY = "dice"  # the validation score that decides which checkpoint is best
CHECKPOINT_FOLDER = "checkpoints"


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
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(1),
        checkpoint_managers.BestN(get_metric_fn=_selecting_score, n=1),
      ]
    )
    self._manager = ocp.CheckpointManager(
      (workdir / CHECKPOINT_FOLDER).absolute(),
      options=ocp.CheckpointManagerOptions(
        best_fn=_selecting_score,
        preservation_policy=None if read_only else policy,
        read_only=read_only,
        create=not read_only,
        cleanup_tmp_directories=not read_only,
      ),
    )

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
    wanted = _on_these_devices(state)
    restored = self._restore(step, ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))
    self._restore_position(step, batches)
    return restored

  def _restore_position(self, step: int, batches: grain.DatasetIterator) -> None:
    """Moves to the position in the data that process 0 has saved.

    It is counted in batches and so is that of every process, however many there are now.
    """
    checkpoint = Path(self._manager.directory) / str(step)
    try:
      path = next((checkpoint / "data").glob("process_0-of-*.json"))
      batches.set_state(json.loads(path.read_text()))
    except StopIteration as error:
      raise InputError(_unrestorable(checkpoint, "no position in the data")) from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
      raise InputError(_unrestorable(checkpoint, error)) from error

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
    wanted = _on_these_devices(
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
    except (ValueError, KeyError, TypeError, OSError) as error:
      raise InputError(_unrestorable(Path(self._manager.directory) / str(step), error)) from error

  def close(self) -> None:
    """Waits for what is still being saved."""
    self._manager.wait_until_finished()
    self._manager.close()


def _selecting_score(metrics: Mapping[str, float]) -> float:
  return metrics[SELECTED_BY]


def _unrestorable(checkpoint: Path, reason: Exception | str) -> str:
  reason = (str(reason).strip() or type(reason).__name__).splitlines()[0]
  return (
    f"{checkpoint}: cannot be restored ({reason}); remove that folder to go on from another "
    "checkpoint, or start a new run in another --workdir"
  )


def _on_these_devices(tree):
  """Shapes that are restored to every device there is, whatever they were saved from."""
  sharding = devices.replicated()
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
