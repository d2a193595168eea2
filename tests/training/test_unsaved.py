"""The newest state that is there is saved from another thread, and waited for where it is short."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from medlitenet_jax.training.unsaved import Unsaved


class Batches:
  """An iterator over data, as far as its position goes."""

  position = 0

  def get_state(self):
    return {"next": self.position}


class Saved(SimpleNamespace):
  """Checkpoints that note what they are given."""

  latest_step = 0

  def save(self, state, batches):
    self.latest_step = int(state["micro_step"])
    self.value, self.position = float(state["x"]), batches.get_state()

  def wait(self):
    self.written = self.latest_step


class State(dict):
  """A state of one number."""

  micro_step = property(lambda self: self["micro_step"])


jax.tree_util.register_pytree_node(
  State, lambda s: (tuple(s.values()), tuple(s)), lambda names, v: State(zip(names, v, strict=True))
)


class Running:
  """The state of a step that the device computes."""

  micro_step = SimpleNamespace(is_ready=lambda: False)


@pytest.fixture
def parts():
  checkpoints, batches = Saved(), Batches()
  unsaved = Unsaved(checkpoints, 10)
  state = State(micro_step=jnp.int32(4), x=jnp.float32(4))
  batches.position = 4
  unsaved.hold(4, state, batches)
  batches.position = 5  # the next batch is drawn
  return unsaved, checkpoints, batches, state


def test_a_state_is_saved_with_the_position_before_the_batch_that_it_has_not_seen(parts):
  unsaved, checkpoints, _, _ = parts
  assert unsaved.save().startswith("after batch 4 of 10")
  assert (checkpoints.written, checkpoints.position) == (4, b'{\n    "next": 4\n}')
  assert unsaved.save().startswith("after batch 4 of 10")  # it is saved already


def test_during_a_long_step_the_copy_is_saved(parts):
  unsaved, checkpoints, batches, state = parts
  unsaved.lend(copy=True)
  jax.jit(lambda x: x + 1, donate_argnums=0)(state["x"])
  assert state["x"].is_deleted()
  unsaved.hold(5, Running(), batches)
  assert unsaved.save().startswith("after batch 4 of 10")
  assert (checkpoints.written, checkpoints.value) == (4, 4.0)


def test_a_short_step_is_waited_for(parts):
  unsaved, checkpoints, batches, _ = parts
  unsaved.lend(copy=True)
  unsaved.hold(5, Running(), batches)
  unsaved.lend(copy=False)
  assert unsaved.save() is None  # neither the state before nor that of batch 4, which is older
  unsaved.hold(6, Running(), batches)
  assert unsaved.save() is None
  done = State(micro_step=jnp.int32(6), x=jnp.float32(6))
  unsaved.hold(6, done, batches)
  assert unsaved.save().startswith("after batch 6 of 10") and checkpoints.value == 6


def test_a_loop_that_ends_saves_by_itself(parts):
  unsaved, checkpoints, _, _ = parts
  unsaved.close()
  assert unsaved.save() is None and checkpoints.latest_step == 0
