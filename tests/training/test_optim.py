"""Schedule, decay, clipping, accumulation and the average, each by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.base import get_config
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.training import optim

RATES = {"learning_rate": 1e-3, "final_learning_rate": 1e-6}


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def create_params():
  return {
    "layer": {"kernel": normal(3, 2), "bias": normal(2, seed=1)},
    "norm": {"scale": normal(2, seed=2), "bias": normal(2, seed=3)},
    "scale_code": normal(2, 4, seed=4),
    "boundary_weight": normal(2, seed=5),
  }


def create_optimizer(**fields):
  defaults = {"weight_decay": 0.0, "clip_norm": 1e9, "accumulation": 1}
  return optim.create_optimizer(optax.constant_schedule(0.1), **{**defaults, **fields})


def test_schedule_warms_up_peaks_and_decays():
  schedule = optim.create_schedule(1100, **RATES, warmup_updates=100)
  np.testing.assert_allclose(schedule(0), 1e-5, rtol=1e-5)  # no update is wasted
  np.testing.assert_allclose(schedule(49), 5e-4, rtol=1e-5)
  np.testing.assert_allclose(schedule(100), 1e-3, rtol=1e-5)
  np.testing.assert_allclose(schedule(600), (1e-3 + 1e-6) / 2, rtol=1e-4)  # half the cosine
  np.testing.assert_allclose(schedule(350), 1e-6 + (1e-3 - 1e-6) * (1 + 0.5**0.5) / 2, rtol=1e-4)
  for update in (1100, 5000):
    np.testing.assert_allclose(schedule(update), 1e-6, rtol=1e-3)
  rates = np.array([schedule(update) for update in range(0, 1100, 25)])
  assert np.all(np.diff(rates[:5]) > 0) and np.all(np.diff(rates[4:]) < 0)


@pytest.mark.parametrize("total", [0, 1, 5, 60])
def test_a_short_run_warms_up_for_a_tenth(total):
  schedule = optim.create_schedule(total, **RATES, warmup_updates=100)
  np.testing.assert_allclose(schedule(total // 10), 1e-3, rtol=1e-5)
  assert all(np.isfinite(schedule(update)) for update in range(total + 2))


def test_the_tenth_is_rounded_down_and_the_last_update_is_at_the_final_rate():
  schedule = optim.create_schedule(95, **RATES, warmup_updates=100)
  rates = [schedule(update) for update in range(95)]
  assert np.argmax(rates) in (8, 9)  # the last of the warm-up and the first of the cosine
  np.testing.assert_allclose(rates[:9], 1e-3 * np.arange(1, 10) / 9, rtol=1e-5)
  one = optim.create_schedule(1, **RATES, warmup_updates=100)
  np.testing.assert_allclose([one(0), one(1)], [1e-3, 1e-6], rtol=1e-4)


def test_no_warmup_starts_at_the_peak():
  np.testing.assert_allclose(optim.create_schedule(50, **RATES, warmup_updates=0)(0), 1e-3)


def test_weight_decay_shrinks_kernels_only():
  params = create_params()
  tx = create_optimizer(weight_decay=0.5)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(
    updates["layer"].pop("kernel"), -0.1 * 0.5 * params["layer"]["kernel"], rtol=1e-5
  )
  for leaf in jax.tree.leaves(updates):
    np.testing.assert_array_equal(leaf, 0)


def test_the_networks_kernels_and_nothing_else_decay():
  fields = get_config().model.to_dict()
  model = create_model(fields, jnp.float32)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)["params"]
  names = {True: set(), False: set()}
  for path, decays in jax.tree_util.tree_leaves_with_path(optim.kernel_mask(params)):
    names[decays].add(path[-1].key)
  assert names == {
    True: {"kernel"},
    False: {*("bias", "scale", "scale_code", "boundary_weight", "temperature")},
  }


def first_moment(tx, grads, params):
  """Adam's first moment after the gradients, undone of its factor: what the clipping let through.

  The update itself cannot show it, Adam's first step being the same for a gradient of any norm.
  """
  state = tx.init(params)
  for grad in grads:
    _, state = tx.update(grad, state, params)
  return jax.tree.map(lambda leaf: leaf / 0.1, optax.tree.get(state, "mu"))


@pytest.mark.parametrize(("norm", "clipped"), [(10.0, 0.5), (0.3, 0.3)])
def test_the_gradients_norm_is_clipped(norm, clipped):
  params = create_params()
  grad = jax.tree.map(lambda p: norm / optax.tree.norm(params) * p, params)
  moment = first_moment(create_optimizer(clip_norm=0.5), [grad], params)
  np.testing.assert_allclose(optax.tree.norm(moment), clipped, rtol=1e-4)
  np.testing.assert_allclose(
    moment["scale_code"], clipped / norm * grad["scale_code"], rtol=1e-4, atol=1e-6
  )


def test_clipping_follows_the_mean_over_batches():
  params = {"kernel": jnp.zeros(2)}
  grads = [{"kernel": jnp.array(pair)} for pair in ([100.0, 0.2], [-100.0, 0.4])]
  moment = first_moment(create_optimizer(clip_norm=0.5, accumulation=2), grads, params)
  np.testing.assert_allclose(moment["kernel"], [0, 0.3], rtol=1e-3, atol=1e-6)


def test_k_batches_are_one_batch():
  """The mean of three gradients of four images each is the gradient of the twelve."""
  x, y, weights = normal(12, 5), normal(12, seed=1), {"layer": {"kernel": normal(5, seed=2)}}

  def loss(params, x, y):
    return jnp.mean((x @ params["layer"]["kernel"] - y) ** 2)

  def run(accumulation, batch, rounds=4):
    tx = create_optimizer(weight_decay=0.1, clip_norm=0.5, accumulation=accumulation)
    params, state = weights, tx.init(weights)

    @jax.jit
    def step(params, state, x, y):
      updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
      return optax.apply_updates(params, updates), state

    for _ in range(rounds):
      for start in range(0, 12, batch):
        part = slice(start, start + batch)
        moved, state = step(params, state, x[part], y[part])
        if start + batch < 12:
          np.testing.assert_array_equal(moved["layer"]["kernel"], params["layer"]["kernel"])
        assert bool(tx.has_updated(state)) == (start + batch == 12)
        params = moved
    assert state.gradient_step == rounds
    return params["layer"]["kernel"]

  one, several = run(1, 12), run(3, 4)
  assert np.abs(one - weights["layer"]["kernel"]).min() > 0.01
  np.testing.assert_allclose(several, one, rtol=1e-4, atol=1e-5)


def test_average_decay():
  for update in (1, 2, 50, 10**6):
    risen = optim.ema_decay_at(update, decay=0.999, warmup=True)
    np.testing.assert_allclose(risen, min(0.999, (1 + update) / (10 + update)), rtol=1e-6)
    np.testing.assert_allclose(optim.ema_decay_at(update, decay=0.9, warmup=False), 0.9, rtol=1e-6)


def test_average_moves_by_its_formula():
  average, current = create_params(), jax.tree.map(lambda leaf: 3 * leaf + 1, create_params())
  moved = optim.update_average(average, current, 0.75)
  np.testing.assert_allclose(
    moved["scale_code"], 0.75 * average["scale_code"] + 0.25 * current["scale_code"], rtol=1e-6
  )
  still = optim.update_average(average, current, 1.0)
  jax.tree.map(np.testing.assert_array_equal, still, average)


def test_packed_parameters_come_back_and_kernels_are_told_apart():
  params = create_params()
  vectors = optim.pack(params)
  assert set(vectors) == {"kernel", "rest"}
  decays = optim.kernel_mask(params)
  sizes = {
    name: sum(
      leaf.size
      for leaf, decay in zip(jax.tree.leaves(params), jax.tree.leaves(decays), strict=True)
      if decay == (name == "kernel")
    )
    for name in vectors
  }
  assert {name: vector.shape for name, vector in vectors.items()} == {
    name: (size,) for name, size in sizes.items()
  }
  assert optim.kernel_mask(vectors) == {"kernel": True, "rest": False}
  jax.tree.map(np.testing.assert_array_equal, optim.unpack(vectors, params), params)


def test_an_update_of_vectors_is_that_of_the_parameters():
  params = create_params()
  grads = jax.tree.map(lambda p: 0.3 * p + 0.1, params)
  tx = create_optimizer(weight_decay=0.5)
  expected, _ = tx.update(grads, tx.init(params), params)
  vectors = optim.pack(params)
  updates, _ = tx.update(optim.pack(grads), tx.init(vectors), vectors)
  found = optim.unpack(updates, params)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
  jax.tree.map(close, found, expected)
