"""Saves and restores a run: the state of training together with the position in the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

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
        checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[SELECTED_BY], n=1),
      ]
    )
    self._manager = ocp.CheckpointManager(
      (workdir / CHECKPOINT_FOLDER).absolute(),
      options=ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics[SELECTED_BY],
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

  def restore(
    self, step: int, state: TrainState, batches: grain.DatasetIterator | None = None
  ) -> TrainState:
    """Reads a checkpoint.

    Args:
      step: which.
      state: of the same structure, arrays or shapes.
      batches: iterator that is moved to the saved position, or None to leave the data alone.

    Returns:
      The saved state.

    Raises:
      InputError: if the checkpoint holds another model than `state` is of.
    """
    abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, state)
    items: dict[str, Any] = {"state": ocp.args.StandardRestore(abstract)}
    if batches is not None:
      items["data"] = grain.checkpoint.CheckpointRestore(batches)
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))["state"]
    except (ValueError, KeyError, FileNotFoundError) as error:
      reason = str(error).splitlines()[0]
      raise InputError(
        f"{self._manager.directory}/{step}: not a checkpoint of this configuration ({reason}); "
        "start a new run in another --workdir"
      ) from error

  def close(self) -> None:
    """Waits for what is still being saved."""
    self._manager.wait_until_finished()
    self._manager.close()
