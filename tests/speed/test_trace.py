"""A real trace of a small program, and the table of its time by part."""

import csv

import jax
import jax.numpy as jnp
import pytest

from medlitenet_jax.speed.trace import (
  OTHER,
  STEP_PARTS,
  TABLE_FILE,
  op_names,
  part_of,
  profile_window,
)

PARTS = {"gate": ("gate",), "encoder": ("encoder",), "decoder": ("decoder1",)}


@jax.jit
def step(x):
  """A forward and a backward pass through named parts, and an operation without a name."""

  def objective(x):
    with jax.named_scope("encoder"):
      y = jnp.tanh(x @ x)
    with jax.named_scope("decoder1"), jax.named_scope("gate"):
      y = jax.nn.sigmoid(y @ y)
    with jax.named_scope("loss"):
      return jnp.mean(jnp.square(y @ y))

  return jnp.sort(jax.grad(objective)(x), axis=0)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
  """A loop over six batches, two of them traced."""
  folder = tmp_path_factory.mktemp("trace")
  x = jnp.linspace(-1, 1, 256 * 256).reshape(256, 256)
  seen = []

  def program():
    seen.append("program")
    return step.lower(x).compile().as_text()

  with profile_window(start_step=2, num_steps=2, folder=folder, program=program, parts=PARTS) as at:
    for number in range(6):
      at(number, x)
      x = step(x)
  return folder, seen


def test_the_trace_is_where_xprof_looks_for_it(traced):
  folder, seen = traced
  (path,) = (folder / "plugins" / "profile").rglob("*.xplane.pb")
  assert path.stat().st_size > 1000
  assert seen == ["program"]


def test_every_part_has_its_time_forward_and_backward(traced):
  folder, _ = traced
  with (folder / TABLE_FILE).open() as file:
    rows = {row["scope"]: row for row in csv.DictReader(file)}
  expected = {"encoder", "gate", "loss"}
  assert expected | {f"{scope} gradient" for scope in expected} | {OTHER} >= set(rows)
  for scope in ("encoder", "encoder gradient", "gate", "gate gradient", OTHER):
    assert float(rows[scope]["seconds"]) > 0, scope
  shares = [float(row["share"].rstrip("%")) for row in rows.values()]
  assert sum(shares) == pytest.approx(100, abs=1)


def test_augmentation_on_the_device_is_a_part():
  parts = {**PARTS, **STEP_PARTS}
  assert part_of("jit(step)/jit(main)/augment/dot_general", parts) == "augmentation"
  assert part_of("jit(step)/jit(main)/reshape", parts) == OTHER


def test_a_trace_still_open_at_the_end_of_the_loop_is_closed(tmp_path):
  x = jnp.ones((64, 64))
  window = profile_window(
    start_step=0,
    num_steps=9,
    folder=tmp_path,
    program=lambda: step.lower(x).compile().as_text(),
    parts=PARTS,
  )
  with window as at:
    at(0, x)
    step(x).block_until_ready()
  assert (tmp_path / TABLE_FILE).exists()
  jax.profiler.start_trace(str(tmp_path / "next"))  # would fail if the first were still open
  jax.profiler.stop_trace()


def test_an_error_during_a_trace_is_not_hidden_by_closing_it(tmp_path):
  def program():
    raise AttributeError("nothing was compiled")

  window = profile_window(start_step=0, num_steps=9, folder=tmp_path, program=program, parts=PARTS)
  with pytest.raises(OSError, match="broken photograph"), window as at:
    at(0, jnp.ones(2))
    raise OSError("broken photograph")
  jax.profiler.start_trace(str(tmp_path / "next"))
  jax.profiler.stop_trace()


def test_zero_steps_write_no_trace(tmp_path):
  with profile_window(
    start_step=0, num_steps=0, folder=tmp_path, program=lambda: "", parts=PARTS
  ) as at:
    at(0, None)
  assert not list(tmp_path.iterdir())


UNNAMED = """HloModule jit_step

%fused (param_0: f32[4], param_1: f32[4]) -> f32[4] {
  %param_0 = f32[4]{0} parameter(0)
  %param_1 = f32[4]{0} parameter(1)
  %bitcast = f32[4]{0} bitcast(%param_1), metadata={op_name="jit(step)/head/dot_general"}
  ROOT %add = f32[4]{0} add(%param_0, %bitcast), metadata={op_name="jit(step)/loss/add"}
}

ENTRY %main (x: f32[4], y: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = f32[4]{0} parameter(1)
  %copy = f32[4]{0} copy(%y)
  %dot = f32[4]{0} dot(%x, %copy)
  ROOT %fusion = f32[4]{0} fusion(%x, %dot), calls=%fused, metadata={op_name="jit(step)/loss/add"}
}
"""


def test_an_operation_without_a_name_gets_that_of_its_user():
  names = op_names(UNNAMED)
  assert names["dot"] == names["copy"] == "jit(step)/head/dot_general"
  assert names["fusion"] == "jit(step)/loss/add"
