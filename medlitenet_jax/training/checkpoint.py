"""Saves and restores a run: the state of training together with the position in the data."""

import contextlib
import functools
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file
from medlitenet_jax.training import optim
from medlitenet_jax.training.layout import REMOVED, checkpoint_folder, scores_path, whole_steps
from medlitenet_jax.training.repair import first_line, put_aside, repair_checkpoints
from medlitenet_jax.training.state import TrainState

logger = logging.getLogger(__name__)

SELECTED_BY = "dice"  # the validation score that decides which checkpoint is best
# What Orbax raises when files are damaged.
_DAMAGE = (ValueError, KeyError, TypeError, OSError, RecursionError)


class Checkpoints:
  """The checkpoints of a workdir; the newest and the best are kept.

  A process that is killed at any moment leaves whole checkpoints: one gets its number as a name
  when it is complete, and loses that name before its files are deleted.

  Attributes:
    latest_step: batches seen by the newest checkpoint, None where there is none.
    best_step: batches seen by the checkpoint with the highest validation Dice, None where none was
      validated.
  """

  def __init__(self, workdir: Path, *, read_only: bool = False):
    """Opens the checkpoints of a run, after `repair_checkpoints` unless read-only.

    Args:
      workdir: folder of the run.
      read_only: whether nothing may be created or changed there.

    Raises:
      InputError: if there are checkpoints and none can be read, or, read-only, if the scores of one
        cannot.
    """
    self._workdir = workdir
    self._folder = checkpoint_folder(workdir)
    self._read_only = read_only
    self._saving = False
    _silence_failed_saves()
    if not read_only:
      devices.on_main_process(self._repair)
    try:
      self._manager = _open_manager(self._folder, read_only)
    except _DAMAGE as error:  # Orbax reads the scores of all checkpoints at once
      raise InputError(
        f"{self._folder}: cannot be opened ({first_line(error)}); run the command that trained it "
        "again, which mends what is damaged, or puts it aside"
      ) from error

  @property
  def latest_step(self) -> int | None:
    """Batches seen by the newest checkpoint."""
    return self._manager.latest_step()

  @property
  def best_step(self) -> int | None:
    """Batches seen by the checkpoint with the highest validation Dice, of equal ones the first."""
    scores = {step: self.metrics(step) for step in self._manager.all_steps()}
    scored = {step: _selecting_score(found) for step, found in scores.items() if found}
    return max(scored, key=lambda step: (scored[step], -step), default=None)

  def metrics(self, step: int) -> Mapping[str, float]:
    """Validation scores that belong to a checkpoint; empty where it was not validated."""
    self._manager.wait_until_finished()
    return self._manager.metrics(step) or {}

  def save(
    self,
    state: TrainState,
    batches: Any,
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts to save; the files are written in the background.

    Args:
      state: after its last batch.
      batches: the iterator that gave that batch, or a `Position` in the data.
      metrics: validation scores of this state, `SELECTED_BY` among them; None if it was not
        validated.

    Raises:
      InputError: if this checkpoint, or the one that was being saved before, cannot be written.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(batches)
    )
    with self._writing():
      self._manager.wait_until_finished()
      self._delete_removed()
      self._manager.save(int(state.micro_step), args=args, metrics=metrics and dict(metrics))
      self._saving = True

  def refuse_failed(self) -> None:
    """Looks whether a checkpoint was written that `save` started; does not wait for it.

    Raises:
      InputError: if it cannot be written.
    """
    if self._saving and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits until the checkpoint that `save` started is written.

    Raises:
      InputError: if it cannot be written.
    """
    with self._writing():
      self._saving = False
      self._manager.wait_until_finished()

  def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds validation scores to a checkpoint that was saved without any.

    Args:
      step: batches seen by the checkpoint.
      metrics: as `save` takes them.
    """

    def write() -> None:
      path = scores_path(self._folder / str(step))
      path.parent.mkdir(exist_ok=True)
      replace_file(path, json.dumps(dict(metrics)))

    devices.on_main_process(write)
    self._manager.reload()

  def resume(self, state: TrainState, batches: grain.DatasetIterator) -> TrainState | None:
    """Reads the newest checkpoint that can be read, and puts newer ones aside.

    Args:
      state: shapes of the state.
      batches: iterator that is moved to the saved position.

    Returns:
      The saved state; None if there is no checkpoint.

    Raises:
      InputError: if there are checkpoints and none can be read; they stay where they are.
    """
    refused: dict[int, InputError] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self.restore(step, state, batches)
      except InputError as error:
        refused[step] = error
        continue
      if refused:
        devices.on_main_process(lambda: self._put_aside(refused))
        self._manager.reload()
      return restored
    if refused:
      raise next(iter(refused.values()))
    return None

  def restore(self, step: int, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
    """Reads a checkpoint to continue from.

    Args:
      step: batches seen by the checkpoint.
      state: shapes of the state.
      batches: iterator that is moved to the saved position.

    Returns:
      The saved state, on every device.

    Raises:
      InputError: if the checkpoint is damaged or holds another state.
    """
    wanted = _replicated(state)
    restored = self._restore(step, ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))
    self._restore_position(step, batches)
    return restored

  def _restore_position(self, step: int, batches: grain.DatasetIterator) -> None:
    """Moves to the position in the data that process 0 saved.

    Positions count batches, so that of process 0 is right for every process, and for any number of
    processes.
    """
    checkpoint = self._folder / str(step)
    try:
      path = next((checkpoint / "data").glob("process_0-of-*.json"))
      batches.set_state(json.loads(path.read_text()))
    except StopIteration as error:
      raise InputError(_unrestorable(checkpoint, "no position in the data")) from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
      raise InputError(_unrestorable(checkpoint, first_line(error))) from error

  def restore_ema(self, step: int, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the averaged network only.

    Args:
      step: batches seen by the checkpoint.
      variables: shapes of "params" and "batch_stats"; the latter is empty for a network without
        BatchNorm.

    Returns:
      The averaged variables, of the same structure.

    Raises:
      InputError: if the checkpoint is damaged or holds another network.
    """
    wanted = _replicated(
      {
        "params": variables["params"],  # whose names tell whether the vectors are of this network
        "ema_params": jax.eval_shape(optim.pack, variables["params"]),
        "ema_batch_stats": variables["batch_stats"],
      }
    )
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)
    found = self._restore(step, ocp.args.Composite(state=args))
    # A partial restore leaves the shape in place of an array that the checkpoint does not have.
    arrays = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    if not arrays or jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, wanted):
      raise InputError(
        f"{self._folder / str(step)}: holds another network than config.json describes; bring the "
        "config.json back that it was trained with"
      )
    params = optim.unpack(found["ema_params"], variables["params"])
    return {"params": params, "batch_stats": found["ema_batch_stats"]}

  def _restore(self, step: int, args: ocp.args.Composite):
    try:
      return self._manager.restore(step, args=args)["state"]
    except _DAMAGE as error:
      raise InputError(_unrestorable(self._folder / str(step), first_line(error))) from error

  def _repair(self) -> None:
    repair_checkpoints(self._workdir)
    self._delete_removed()

  def _put_aside(self, refused: Mapping[int, InputError]) -> None:
    for step, refusal in refused.items():
      put_aside(self._folder / str(step), first_line(refusal.__cause__ or refusal))

  def _delete_removed(self) -> None:
    """Deletes what Orbax moved away, which a killed process may have left."""
    if not self._read_only and devices.is_main_process():
      shutil.rmtree(self._folder / REMOVED, ignore_errors=True)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what Orbax raises on a full disk or in a read-only folder into one line."""
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      steps = whole_steps(self._workdir)
      newest = f"the newest whole one is after batch {steps[-1]}" if steps else "there is no other"
      full = "No space left" in str(error)
      reason = "no space left on the disk" if full else first_line(error)
      raise InputError(
        f"{self._folder}: a checkpoint cannot be written ({reason}); {newest}; make room or allow "
        "writing there, then run the same command again to continue"
      ) from error

  def close(self) -> None:
    """Waits for what is still being saved.

    Raises:
      InputError: if it cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()
      self._delete_removed()
      self._manager.close()


class _Best(checkpoint_managers.PreservationPolicy):
  """Keeps the checkpoint of `Checkpoints.best_step`; of equals Orbax would keep the last."""

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Whether each checkpoint is the best."""
    del context
    scored = [each for each in checkpoints if each.metrics]
    best = max(scored, key=lambda each: (_selecting_score(each.metrics), -each.step), default=None)
    return [each is best for each in checkpoints]


def _open_manager(folder: Path, read_only: bool) -> ocp.CheckpointManager:
  """Opens a folder with Orbax, which keeps the newest checkpoint and the best in it."""
  policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(1), _Best()])
  options = ocp.CheckpointManagerOptions(
    best_fn=_selecting_score,
    preservation_policy=None if read_only else policy,
    read_only=read_only,
    create=not read_only,
    todelete_subdir=REMOVED,
    cleanup_tmp_directories=not read_only,
  )
  return ocp.CheckpointManager(folder, options=options)


@functools.cache
def _silence_failed_saves() -> None:
  """Leaves out the tracebacks that libraries print, beside raising it, of a save that fails.

  When one array cannot be written, Orbax closes its event loop. Each of the others then finds it
  closed in a thread of TensorStore, where Python can only print that; asyncio prints the errors
  that are left over. `Checkpoints` reports the failure itself.
  """
  show = sys.unraisablehook

  def unraisablehook(unraisable) -> None:
    of_save = unraisable.exc_type is RuntimeError and unraisable.object is None
    if not (of_save and str(unraisable.exc_value) == "Event loop is closed"):
      show(unraisable)

  sys.unraisablehook = unraisablehook

  def of_others(record: logging.LogRecord) -> bool:
    left_over = "exception was never retrieved" in record.getMessage()
    return not (left_over and record.exc_info and "Error writing" in str(record.exc_info[1]))

  logging.getLogger("asyncio").addFilter(of_others)


def _selecting_score(metrics: Mapping[str, float]) -> float:
  return metrics[SELECTED_BY]


def _unrestorable(checkpoint: Path, reason: str) -> str:
  return (
    f"{checkpoint}: cannot be restored ({reason}); remove that folder to continue from another "
    "checkpoint, or start a new run in another --workdir"
  )


def _replicated(tree):
  """The same shapes, to be restored onto every device, whatever devices they were saved from."""
  sharding = devices.replicated()
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
