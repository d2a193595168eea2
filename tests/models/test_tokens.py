"""Attention and the feed-forward network against their definitions in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.models.tokens import SelfAttention, TokenMLP, attend, drop_path


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
  weights = np.exp(x - x.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("biased", [False, True])
def test_attention_is_its_definition(biased):
  queries = normal(2, 3, 4, 2, 8)
  keys, values = normal(2, 3, 5, 2, 8, seed=1), normal(2, 3, 5, 2, 8, seed=2)
  bias = normal(3, 2, 4, 5, seed=3) if biased else None
  expected = np.empty_like(queries)
  for b, k, head in np.ndindex(2, 3, 2):
    logits = queries[b, k, :, head] @ keys[b, k, :, head].T / np.sqrt(8)
    logits = logits + bias[k, head] if biased else logits
    expected[b, k, :, head] = softmax(logits) @ values[b, k, :, head]
  np.testing.assert_allclose(attend(queries, keys, values, bias), expected, rtol=1e-5, atol=1e-6)


def test_attention_in_half_precision_does_not_overflow():
  """The product of 300 and 300 is beyond float16, and so is a bias of -1e9."""
  queries = jnp.full((1, 2, 1, 4), 300, jnp.float16)
  keys = jnp.asarray([[[[300.0] * 4], [[301.0] * 4], [[302.0] * 4]]], jnp.float16)
  values = jnp.asarray([[[[1.0] * 4], [[2.0] * 4], [[3.0] * 4]]], jnp.float16)
  bias = jnp.asarray([[[0, 0, -1e9], [0, 0, 0]]], jnp.float32)
  found = attend(queries, keys, values, bias)
  assert found.dtype == jnp.float16
  np.testing.assert_array_equal(found[0, :, 0], [[2] * 4, [3] * 4])
  grads = jax.grad(lambda *a: jnp.sum(attend(*a, bias).astype(jnp.float32)), (0, 1, 2))(
    queries, keys, values
  )
  assert all(np.all(np.isfinite(grad)) for grad in grads)


def test_the_feed_forward_network_is_its_definition(randomise):
  x, module = normal(2, 3, 4), TokenMLP(6, dropout=0.5)
  params = randomise(module.init(jax.random.key(0), x, train=False))["params"]
  wide = x @ params["in"]["kernel"] + params["in"]["bias"]
  gelu = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
  expected = gelu @ params["out"]["kernel"] + params["out"]["bias"]
  found = module.apply({"params": params}, x, train=False)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  trained = module.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(1)})
  assert 0 < np.mean(np.asarray(trained) == 0) < 1


def test_self_attention_is_the_same_from_one_layer_as_from_three(randomise):
  x, apart, joint = normal(2, 5, 8), SelfAttention(2), SelfAttention(2, joint=True)
  params = randomise(jax.eval_shape(apart.init, jax.random.key(0), x))["params"]
  parts = [params[name] for name in ("query", "key", "value")]
  qkv = jax.tree.map(lambda *leaves: np.concatenate(leaves, -1), *parts)
  np.testing.assert_allclose(
    joint.apply({"params": {"qkv": qkv, "out": params["out"]}}, x),
    apart.apply({"params": params}, x),
    rtol=1e-5,
    atol=1e-6,
  )


def test_drop_path_leaves_out_whole_photographs_and_keeps_the_expectation():
  x, count = jnp.ones((4000, 1, 2, 3)), 4000
  y = drop_path(0.2, train=True).apply({}, x, rngs={"dropout": jax.random.key(0)})
  kept = np.asarray(y[:, 0, 0, 0])
  np.testing.assert_array_equal(y, np.broadcast_to(kept[:, None, None, None], y.shape))
  np.testing.assert_allclose(np.unique(kept), [0, 1.25], rtol=1e-6)
  assert abs(kept.mean() - 1) < 4 * 0.5 / np.sqrt(count)  # the deviation of one is a half
  np.testing.assert_array_equal(drop_path(0.2, train=False).apply({}, x), x)
