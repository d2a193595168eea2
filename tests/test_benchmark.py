"""How calls are timed; that the mode reports both forms is tested with the launcher."""

import jax.numpy as jnp

from medlitenet_jax.benchmark import time_interleaved


def test_calls_take_turns_and_the_first_round_is_not_counted():
  order = []

  def call(name):
    order.append(name)
    return jnp.zeros(())

  seconds = time_interleaved({"a": lambda: call("a"), "b": lambda: call("b")}, rounds=3)
  assert order == ["a", "b"] * 4
  assert set(seconds) == {"a", "b"} and all(value > 0 for value in seconds.values())
