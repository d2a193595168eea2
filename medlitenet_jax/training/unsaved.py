"""What a run has learned and not saved yet, for a thread that saves it while the loop is busy."""

import json
import threading
from collections.abc import Mapping
from typing import Any

import grain
import jax

from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.state import TrainState


class Position:
  """A position in the training data, as `Checkpoints.save` takes it.

  It is that of the batches drawn so far and does not move with the iterator.
  """

  def __init__(self, batches: grain.DatasetIterator):
    """Notes the position of an iterator."""
    self._state: Mapping[str, Any] = batches.get_state()

  def get_state(self) -> bytes:
    """The position as Grain writes it."""
    return json.dumps(self._state, indent=4).encode()


class Unsaved:
  """The newest states of a run, which may be saved from another thread at any instant.

  A step takes its state over, and the one that it returns can only be saved once it is computed.
  So a copy is kept of a state whose step may take long.

  Attributes:
    lock: held by the loop while it saves. It is not given back after `save`, for the process then
      ends.
  """

  def __init__(self, checkpoints: Checkpoints, total_steps: int):
    """Starts with nothing to save.

    Args:
      checkpoints: where states are saved.
      total_steps: batches of the whole run.
    """
    self.lock = threading.RLock()
    self._checkpoints = checkpoints
    self._total_steps = total_steps
    # Newest first: (batches seen, state, position in the data).
    self._states: list[tuple[int, TrainState, Position]] = []
    self._open = True

  def hold(self, step: int, state: TrainState, batches: grain.DatasetIterator) -> None:
    """Takes the state after `step` batches; a copy of the one before stays until it is computed."""
    with self.lock:
      before = [held for held in self._states if held[0] == step - 1]
      self._states = [(step, state, Position(batches)), *before]

  def lend(self, *, copy: bool) -> None:
    """Lets go of the newest state, which a step is going to take over.

    Args:
      copy: whether to keep a copy of it.
    """
    with self.lock:
      kept = self._states[:1] if copy else []
      self._states = [(step, _copied(state), position) for step, state, position in kept]

  def save(self) -> str | None:
    """Saves the newest state that is there.

    Returns:
      How far the run came, with the lock held; None if it cannot be saved now.

    Raises:
      InputError: if it cannot be written.
    """
    self.lock.acquire()
    where = self._save() if self._open else None
    if where is None:
      self.lock.release()
    return where

  def _save(self) -> str | None:
    latest = self._checkpoints.latest_step or 0
    for step, state, position in self._states:
      if not state.micro_step.is_ready():  # type: ignore[attr-defined]
        continue
      if step > latest:
        if jax.process_count() > 1:  # saving needs all of them
          return None
        self._checkpoints.save(state, position)
      self._checkpoints.wait()
      return f"after batch {step} of {self._total_steps}; run the same command again to continue"
    return None

  def close(self) -> None:
    """Leaves saving to the loop, which ends."""
    with self.lock:
      self._open = False


def _copied(state: TrainState) -> TrainState:
  return jax.tree.map(lambda x: jax.device_put(x, x.sharding, may_alias=False), state)
