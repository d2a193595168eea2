"""Saves and restores a run: the state of training together with the position in the data."""

import contextlib
import functools
import json
import logging
import os
import shutil
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
from medlitenet_jax.training.log import METRICS_FILE, read_metrics
from medlitenet_jax.training.state import TrainState

logger = logging.getLogger(__name__)

SELECTED_BY = "dice"  # the validation score that decides which checkpoint is best
CHECKPOINT_FOLDER = "checkpoints"
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # Orbax writes under this ending and renames what is whole
DAMAGED = ".damaged"  # ending of one that could not be read
REMOVED = "removed"  # subfolder that a checkpoint is moved to before its files are deleted
METRICS = "metrics"  # subfolder of a checkpoint, and the file in it, where Orbax keeps the scores
# What Orbax raises of damaged files.
_DAMAGE = (ValueError, KeyError, TypeError, OSError, RecursionError)


def whole_steps(workdir: Path) -> list[int]:
  """Batches seen by each checkpoint of a run that was written to its end, in rising order."""
  folder = workdir / CHECKPOINT_FOLDER
  return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())


class Checkpoints:
  """The checkpoints of a workdir; the newest and the best are kept.

  A process that dies at any instant leaves whole ones: they are renamed to their number when they
  are complete, and away from it before they are deleted.

  Attributes:
    latest_step: batches seen by the newest checkpoint, None where there is none.
    best_step: the same of the one with the highest validation Dice; one that was saved between
      validations has none and cannot be it.
  """

  def __init__(self, workdir: Path, *, read_only: bool = False):
    """Opens the checkpoints of a run.

    Args:
      workdir: folder of the run.
      read_only: whether nothing may be created or changed there.

    Raises:
      InputError: if there are checkpoints and none can be read, or, read-only, if the scores of one
        cannot.
    """
    self._workdir = workdir
    self._folder = (workdir / CHECKPOINT_FOLDER).absolute()
    self._read_only = read_only
    if not read_only:
      devices.on_first(self._pass_over_half_written)
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(1),
        checkpoint_managers.BestN(
          get_metric_fn=_selecting_score, n=1, keep_checkpoints_without_metrics=False
        ),
      ]
    )
    options = ocp.CheckpointManagerOptions(
      best_fn=_selecting_score,
      preservation_policy=None if read_only else policy,
      read_only=read_only,
      create=not read_only,
      todelete_subdir=REMOVED,
      cleanup_tmp_directories=not read_only,
    )
    try:
      self._manager = ocp.CheckpointManager(self._folder, options=options)
    except _DAMAGE as error:  # Orbax reads the scores of all checkpoints at once
      raise InputError(
        f"{self._folder}: cannot be opened ({_reason(error)}); the command that trained it mends "
        "what is damaged, or puts it aside"
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

  def save(self, state: TrainState, batches: grain.DatasetIterator, metrics=None) -> None:
    """Saves in the background.

    Args:
      state: after its last batch.
      batches: the iterator that gave that batch.
      metrics: validation scores of this state, among them the one that selects; None if there was
        no validation.

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

  def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Gives a checkpoint that was saved between validations its scores."""

    def write() -> None:
      path = self._folder / str(step) / METRICS / METRICS
      path.parent.mkdir(exist_ok=True)
      replace_file(path, json.dumps(dict(metrics)))

    devices.on_first(write)
    self._manager.reload()

  def resume(self, state: TrainState, batches: grain.DatasetIterator) -> TrainState | None:
    """Reads the newest checkpoint that can be read; newer ones are put aside, and named.

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
        devices.on_first(functools.partial(self._put_all_aside, refused))
        self._manager.reload()
      return restored
    if refused:
      raise next(iter(refused.values()))
    return None

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
      variables: shapes of the network's variables, "params" and "batch_stats".

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
    except _DAMAGE as error:
      raise InputError(_unrestorable(Path(self._manager.directory) / str(step), error)) from error

  def _pass_over_half_written(self) -> None:
    """Names what a process left behind that died while it saved, and clears it away."""
    for path in sorted(self._folder.glob(f"*{HALF_WRITTEN}*")):
      logger.warning("Passing over %s, which is half-written; removed.", path)
      shutil.rmtree(path)
    steps = whole_steps(self._workdir)
    for step in steps:
      self._mend_scores(step)
    reasons = {self._folder / str(step): _damage(self._folder / str(step)) for step in steps}
    if not steps:
      reasons = dict.fromkeys(sorted(self._folder.glob(f"*{DAMAGED}")), "damaged")
    if reasons and all(reasons.values()):  # a run that began anew would write over its log
      newest, reason = list(reasons.items())[-1]
      raise InputError(
        f"{newest}: cannot be restored ({reason}), nor can any other; restore one, or start a new "
        "run in another --workdir"
      )
    for path, reason in reasons.items():
      if reason:
        self._put_aside(path, reason)
    self._delete_removed()

  def _mend_scores(self, step: int) -> None:
    """Takes damaged scores of a checkpoint from the log, which has them as well."""
    path = self._folder / str(step) / METRICS / METRICS
    reason = _unreadable(path)
    if not reason:
      return
    for row in read_metrics(self._workdir):
      scores = {name: row[name] for name in row.keys() - {"step", "epoch", "split"}}
      if (row["step"], row["split"]) == (step, "val") and None not in scores.values():
        replace_file(path, json.dumps(scores))
        logger.warning("%s: damaged (%s); taken from %s.", path, reason, METRICS_FILE)

  def _put_aside(self, path: Path, reason: str) -> None:
    """Renames a damaged checkpoint, which may still be of use to a person."""
    aside = path.with_name(f"{path.name}{DAMAGED}")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    logger.warning("Passing over %s, which is damaged (%s); kept as %s.", path, reason, aside.name)

  def _put_all_aside(self, refused: Mapping[int, InputError]) -> None:
    for step, refusal in refused.items():
      self._put_aside(self._folder / str(step), _reason(refusal.__cause__ or refusal))

  def _delete_removed(self) -> None:
    if self._read_only or not devices.is_first():
      return
    shutil.rmtree(self._folder / REMOVED, ignore_errors=True)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what Orbax makes of a full disk or a read-only folder into one line."""
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      steps = whole_steps(self._workdir)
      newest = f"the newest whole one is after batch {steps[-1]}" if steps else "there is no other"
      raise InputError(
        f"{self._folder}: a checkpoint cannot be written ({_reason(error)}); {newest}, and the "
        "same command goes on from there once there is room"
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


def _reason(error: BaseException) -> str:
  """The first line of what an error says."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _damage(path: Path) -> str:
  """What of a checkpoint's own description is missing, as a power cut leaves it; "" if nothing."""
  description = path / "_CHECKPOINT_METADATA"
  if not description.exists():
    return f"{description.name} is missing"
  return _unreadable(description) or _unreadable(path / METRICS / METRICS)


def _unreadable(path: Path) -> str:
  """Why a file, if there is one, holds no JSON; "" if it does."""
  try:
    json.loads(path.read_text())
  except FileNotFoundError:
    return ""
  except (OSError, ValueError) as error:
    return f"{path.name}: {_reason(error)}"
  return ""


def _selecting_score(metrics: Mapping[str, float]) -> float:
  return metrics[SELECTED_BY]


def _unrestorable(checkpoint: Path, reason: Exception | str) -> str:
  first_line = reason if isinstance(reason, str) else _reason(reason)
  return (
    f"{checkpoint}: cannot be restored ({first_line}); remove that folder to go on from another "
    "checkpoint, or start a new run in another --workdir"
  )


def _on_these_devices(tree):
  """Shapes that are restored to every device there is, whatever they were saved from."""
  sharding = devices.replicated()
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
