"""The training step on a network of a few parameters, in good batches and bad ones."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from small_runs import resolved

from medlitenet_jax.models.forward import normalize
from medlitenet_jax.models.layers import Norm, Pointwise
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.training import optim
from medlitenet_jax.training import step as step_lib
from medlitenet_jax.training.losses import create_objective
from medlitenet_jax.training.run import create_initialise
from medlitenet_jax.training.state import start_from, stream_key
from medlitenet_jax.training.step import create_train_step, recipe_numbers, train_step

MARKS = {"loss": 255, "gradient": 0}  # the grey value of every pixel of a batch that spoils it
COUNTERS = ("micro_step", "skipped", "loss_scale")


class Stub(nn.Module):
  """Two pixelwise layers that can be made to give an infinite loss or an infinite gradient."""

  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    x = Pointwise(8, use_bias=False, dtype=self.dtype, name="expand")(image)
    x = Norm("expand", name="norm")(x, train=train)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = Pointwise(1, dtype=self.dtype, name="head")(x)
    white = jnp.all(image > normalize(jnp.full(3, 254.5)))
    black = jnp.all(image < normalize(jnp.full(3, 0.5)))
    # The root's slope is infinite at 0, its value is not.
    root = jnp.sqrt(jnp.where(black, 0, 1) * self.param("root", nn.initializers.ones_init(), ()))
    return {"mask": (x + root.astype(x.dtype)) * jnp.where(white, jnp.inf, 1).astype(x.dtype)}


class Run(NamedTuple):
  config: ConfigDict
  model: Stub
  tx: optax.MultiSteps
  step: Callable
  compiled: jax.stages.Wrapped
  initialise: Callable


@functools.cache
def create_run(*, precision="float32", dropout=0.0, accumulation=1, keep_statistics=False):
  """A stub with its optimizer at a constant rate, compiled once for all tests."""
  config = resolved(
    precision=precision,
    optim__accumulation=accumulation,
    optim__learning_rate=0.01,
    optim__final_learning_rate=0.01,
    optim__warmup_updates=0,
    train__keep_statistics=keep_statistics,
  )
  model = Stub(dropout=dropout, dtype=DTYPES[precision])
  numbers = recipe_numbers(config, total_steps=100)
  compiled = create_train_step(config, model)
  return Run(
    config=config,
    model=model,
    tx=optim.create_run_optimizer(config.optim, 100)[0],
    step=lambda state, batch: compiled(state, batch, numbers),
    compiled=compiled,
    initialise=create_initialise(config, model, 16),
  )


def create_batch(size=4, seed=0, side=16):
  """Noise whose lesion is where red is stronger than blue: learnable from single pixels."""
  image = np.random.default_rng(seed).integers(1, 255, (size, side, side, 3), np.uint8)
  mask = (image[..., :1] > image[..., 2:]).astype(np.float32)
  return {"image": jnp.asarray(image), "targets": {"mask": jnp.asarray(mask)}}


def spoilt_batch(kind):
  batch = create_batch()
  return {**batch, "image": jnp.full_like(batch["image"], MARKS[kind])}


def assert_same(old, new, message=""):
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, message), old, new)


def learned(state):
  """Every field that only a good batch may change, copied to the host."""
  fields = {k: v for k, v in vars(state).items() if k not in COUNTERS}
  assert len(fields) == 5
  return jax.tree.map(np.array, fields)


def differs(old, new):
  return any(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), old, new)))


def test_loss_falls_on_a_fixed_batch():
  run = create_run()
  state, batch = run.initialise(), create_batch()
  rows = []
  for _ in range(60):
    state, figures = run.step(state, batch)
    rows.append(jax.device_get(figures))
  assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
  assert rows[-1]["dice"] > 0.9 > rows[0]["dice"]
  assert state.micro_step == 60 and state.skipped == 0
  assert set(rows[0]) == {"loss", "bce_loss", "dice_loss", "dice", "grad_norm", "skipped"}
  assert {(value.shape, value.dtype) for value in rows[0].values()} == {((), np.dtype("float32"))}


def test_kept_statistics_are_used_and_stay():
  run = create_run(keep_statistics=True)
  state, batch = run.initialise(), create_batch()
  stats = {"norm": {"mean": jnp.full(8, 0.5), "var": jnp.full(8, 9.0)}}
  state = start_from(state, {"params": state.params, "batch_stats": stats})
  before = learned(state)
  # A trained network's own probabilities: training starts from them.
  logits = run.model.apply(
    {"params": state.params, "batch_stats": stats}, normalize(batch["image"])
  )
  loss, _ = create_objective(run.config.loss.to_dict())(logits, batch["targets"])
  state, figures = run.step(state, batch)
  np.testing.assert_allclose(figures["loss"], loss, rtol=1e-6)
  for name, kept in learned(state).items():
    assert differs(before[name], kept) == ("batch_stats" not in name), name


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("kind", MARKS)
def test_a_batch_that_is_not_finite_changes_nothing(precision, kind):
  run = create_run(precision=precision)
  state, _ = run.step(run.initialise(), create_batch())
  before = learned(state)
  scale = None if precision == "float32" else float(state.loss_scale.scale)
  state, figures = run.step(state, spoilt_batch(kind))
  assert bool(jnp.isfinite(figures["loss"])) == (kind == "gradient")
  assert not jnp.isfinite(figures["grad_norm"])
  for name, tree in learned(state).items():
    assert_same(before[name], tree, name)
  assert (int(state.micro_step), int(state.skipped), float(figures["skipped"])) == (2, 1, 1.0)
  if scale:
    assert float(state.loss_scale.scale) == scale / 2
  state, _ = run.step(state, create_batch(seed=1))
  for name, tree in learned(state).items():
    assert differs(before[name], tree), name
  assert (int(state.micro_step), int(state.skipped)) == (3, 1)


def test_a_spoilt_batch_does_not_count_towards_an_update():
  """Good, spoilt, good with two batches an update ends where good, good does."""
  run = create_run(accumulation=2)
  ends = []
  for between in ([], ["loss"], ["gradient", "loss"]):
    state, _ = run.step(run.initialise(), create_batch())
    for kind in between:
      state, _ = run.step(state, spoilt_batch(kind))
    state, _ = run.step(state, create_batch(seed=1))
    assert state.opt_state.gradient_step == 1
    ends.append(learned(state))
  for end in ends[1:]:
    assert_same(ends[0], end)


def test_float16_recovers_from_a_scale_that_overflows():
  run = create_run(precision="float16")
  state = run.initialise()
  state = state.replace(loss_scale=state.loss_scale.replace(scale=2.0**24 * state.loss_scale.scale))
  batch = create_batch()
  losses = []
  for _ in range(80):
    state, figures = run.step(state, batch)
    losses.append(float(figures["loss"]))
  skipped = int(state.skipped)
  assert 0 < skipped < 40
  assert float(state.loss_scale.scale) == 2.0 ** (40 - skipped)
  assert len(set(losses[:skipped])) == 1 and losses[-1] < 0.7 * losses[0]


def test_parameters_and_average_move_only_on_updates():
  run = create_run(accumulation=2)
  state = run.initialise()
  for micro_step in range(1, 5):
    before = learned(state)
    state, _ = run.step(state, create_batch(seed=micro_step))
    after = learned(state)
    updates = micro_step // 2
    moved = micro_step % 2 == 0
    assert differs(before["batch_stats"], after["batch_stats"])
    for name in ("params", "ema_params", "ema_batch_stats"):
      assert differs(before[name], after[name]) == moved, (micro_step, name)
    if moved:
      decay = min(0.999, (1 + updates) / (10 + updates))
      for source in ("params", "batch_stats"):
        now = optim.pack(after[source]) if source == "params" else after[source]
        expected = jax.tree.map(
          lambda a, c, d=decay: d * a + (1 - d) * c, before[f"ema_{source}"], now
        )
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, after[f"ema_{source}"], expected)


def bare_step(run, **replaced):
  """The step of a run as a plain function that gives nothing away, some arguments replaced."""
  arguments = {
    "model": run.model,
    "tx": run.tx,
    "loss_fn": create_objective(run.config.loss.to_dict()),
    "dropout_key": stream_key(run.config.seed, "dropout"),
    "ema_decay": functools.partial(optim.ema_decay_at, decay=0.999, warmup=True),
  }
  return functools.partial(train_step, **{**arguments, **replaced})


def test_eager_equals_jit():
  run = create_run()
  eager = bare_step(run)(run.initialise(), **create_batch())
  compiled = run.step(run.initialise(), create_batch())
  for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", list(DTYPES))
def test_the_state_is_given_away_and_the_step_compiled_once(precision):
  run = create_run(precision=precision)
  state = run.initialise()
  for seed in range(3):
    old = state
    state, _ = run.step(state, create_batch(seed=seed))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.ema_params, old.batch_stats)))
    old_types, types = (jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (old, state))
    assert old_types == types
  assert run.compiled._cache_size() == 1


def test_the_step_is_compiled_once_for_each_size_of_image(monkeypatch):
  run = create_run()
  monkeypatch.setattr(step_lib, "train_step", chex.assert_max_traces(train_step, n=2))
  step = create_train_step(run.config, run.model)
  numbers = recipe_numbers(run.config, 100)
  state = run.initialise()
  for side in (16, 16, 32, 16, 32):
    state, _ = step(state, create_batch(side=side), numbers)
  assert step._cache_size() == 2
  with pytest.raises(AssertionError, match="traced"):
    step(state, create_batch(side=48), numbers)


def test_another_seed_rate_length_or_weight_is_the_same_program():
  """And each of them does what it says."""
  changes = {
    "none": {},
    "seed": {"seed": 7},
    "rate": {"optim.learning_rate": 0.5},
    "length": {"train.max_steps": 7},
    "decay": {"optim.weight_decay": 0.9},
    "average": {"optim.ema_decay": 0.01},
    "clip": {"optim.clip_norm": 1e-7},
    "weight": {"loss.bce.weight": 3.0},
  }
  same = {"optim.accumulation": 1, "optim.warmup_updates": 0, "train.max_steps": 5000}
  model, moved, programs = Stub(dropout=0.5), {}, set()
  first = compiled = None
  for name, fields in changes.items():
    config = resolved(**{**same, **fields})
    step = create_train_step(config, model)
    numbers = recipe_numbers(config, config.train.max_steps)
    first = first or create_initialise(config, model, 16)
    lowered = step.lower(jax.eval_shape(first), create_batch(), numbers)
    programs.add(lowered.as_text())
    compiled = compiled or lowered.compile()
    state = first()
    for seed in range(3):
      state, _ = compiled(state, create_batch(seed=seed), numbers)
    moved[name] = learned(state)
  assert len(programs) == 1
  for name in changes.keys() - {"none"}:
    assert differs(moved[name], moved["none"]), name


@pytest.mark.parametrize(
  "spoil",
  [
    lambda batch: {**batch, "image": batch["image"].astype(jnp.float32)},
    lambda batch: {**batch, "image": batch["image"][..., :1]},
    lambda batch: {**batch, "targets": {"mask": batch["targets"]["mask"][..., 0]}},
    lambda batch: {**batch, "targets": {"mask": batch["targets"]["mask"][:, :8]}},
  ],
)
def test_a_batch_of_other_shape_or_type_is_refused_when_traced(spoil):
  run = create_run()
  state = jax.eval_shape(run.initialise)
  with pytest.raises(AssertionError):
    jax.eval_shape(bare_step(run), state, **spoil(create_batch()))


@pytest.mark.parametrize("precision", list(DTYPES))
def test_loss_and_parameters_are_float32_in_every_precision(precision):
  run = create_run(precision=precision)
  seen, objective = [], create_objective(run.config.loss.to_dict())

  def loss_fn(outputs, targets):
    seen.append(outputs["mask"].dtype)
    return objective(outputs, targets)

  state = jax.eval_shape(run.initialise)
  state, figures = jax.eval_shape(bare_step(run, loss_fn=loss_fn), state, **create_batch())
  assert seen == [DTYPES[precision]]  # the stub's logits are as narrow as its layers
  assert {figure.dtype for figure in figures.values()} == {jnp.dtype("float32")}
  for leaf in jax.tree.leaves((state.params, state.ema_params, state.batch_stats)):
    assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("precision", list(DTYPES))
def test_loss_and_gradient_are_nearly_those_of_float32(precision):
  """In float16 too, where the loss scale has to be undone before either is used."""
  wide, narrow = (create_run(precision=name) for name in ("float32", precision))
  (_, expected), (_, got) = (run.step(run.initialise(), create_batch()) for run in (wide, narrow))
  for name in ("loss", "bce_loss", "dice_loss", "grad_norm"):
    np.testing.assert_allclose(got[name], expected[name], rtol=0.02)


def test_dropout_depends_on_the_key_and_the_step():
  run = create_run(dropout=0.5)
  state, batch = run.initialise(), create_batch()

  @jax.jit
  def loss(state, key):
    return bare_step(run, dropout_key=key)(state, **batch)[1]["loss"]

  key, other = stream_key(0, "dropout"), stream_key(1, "dropout")
  later = state.replace(micro_step=state.micro_step + 1)
  assert loss(state, key) == loss(state, key)
  assert len({float(loss(s, k)) for s in (state, later) for k in (key, other)}) == 4


def test_streams_of_a_run_have_keys_of_their_own():
  keys = [stream_key(seed, name) for seed in (0, 1) for name in ("params", "dropout")]
  assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4


def test_a_new_state_starts_its_average_at_the_parameters():
  state = create_run().initialise()
  assert_same(state.params, state.ema_variables["params"])
  assert_same(state.batch_stats, state.ema_variables["batch_stats"])
  assert state.loss_scale is None and state.micro_step == state.skipped == 0


def test_normalize_is_imagenets():
  image = np.array([[[0, 128, 255]]], np.uint8)
  expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  got = normalize(jnp.asarray(image))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-5)
