"""Mixer and fusion against their formulas, written out in NumPy with random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import shapes_of

from medlitenet_jax.models.layers import average_pool
from medlitenet_jax.models.medlitenet.attention import (
  MAX_TEMPERATURE,
  BoundaryBiasedAttention,
  CrossScaleMixer,
  LocalGlobalFusion,
  TransformerLayer,
  sincos_positions,
)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(x, params):
  return x @ params["kernel"].reshape(params["kernel"].shape[-2:]) + params["bias"]


def layer_norm(x, params=None):
  epsilon = 1e-6 if params else 1e-5
  standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
  return standard * params["scale"] + params["bias"] if params else standard


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def attention(x, params, heads, boundary=None):
  """One head at a time: softmax(q k^T / sqrt(d) + w b) v; with a temperature, of cosines."""
  if "qkv" in params:
    q, k, v = np.split(dense(x, params["qkv"]), 3, axis=-1)
  else:
    even = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    q, k = np.split(dense(even, params["queries_and_keys"]), 2, axis=-1)
    v = dense(x, params["values"])
  d = x.shape[-1] // heads
  outputs = []
  for head in range(heads):
    part = slice(head * d, (head + 1) * d)
    if "temperature" in params:
      cosines = np.einsum("bnd,bmd->bnm", unit(q[..., part]), unit(k[..., part]))
      logits = cosines * MAX_TEMPERATURE / (1 + np.exp(-params["temperature"][head]))
    else:
      logits = np.einsum("bnd,bmd->bnm", q[..., part], k[..., part]) / np.sqrt(d)
    if boundary is not None:
      logits = logits + params["boundary_weight"][head] * boundary[:, None, :]
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    outputs.append(weights / weights.sum(-1, keepdims=True) @ v[..., part])
  return dense(np.concatenate(outputs, -1), params["out"])


def transformer_layer(x, params, heads, boundary=None):
  x = x + attention(layer_norm(x, params["attention_norm"]), params["attention"], heads, boundary)
  y = dense(layer_norm(x, params["mlp_norm"]), params["mlp_in"])
  return x + dense(gelu(y), params["mlp_out"])


def pool(x, factor):
  b, h, w, c = x.shape
  return x.reshape(b, h // factor, factor, w // factor, factor, c).mean((2, 4))


def test_positions_are_sines_and_cosines_of_relative_coordinates():
  codes = sincos_positions(2, 3, 8)
  assert codes.shape == (6, 8) and codes.dtype == np.float32
  y, x = 0.75, 0.5  # second row of two, second column of three
  frequencies = (2 * np.pi * 0.5, 2 * np.pi * 16)
  expected = [f(place * w) for place in (y, x) for f in (np.sin, np.cos) for w in frequencies]
  np.testing.assert_allclose(codes[1 * 3 + 1], expected, atol=1e-5)


def test_positions_below_the_grids_limit_turn_at_most_half_round_between_neighbours():
  """Otherwise a frequency looks like a lower one, another at every size."""
  codes = sincos_positions(4, 4, 32, cycles=2.0).reshape(4, 4, 32)
  sines, cosines = codes[:, 0, :8], codes[:, 0, 8:16]
  turn = np.arctan2(sines, cosines)
  steps = np.mod(np.diff(turn, axis=0) + 1e-4, 2 * np.pi)
  assert steps.max() < np.pi + 1e-3


def test_positions_differ_and_keep_their_place_at_another_size():
  codes = sincos_positions(16, 16, 32)
  distance = np.linalg.norm(codes[:, None] - codes[None], axis=-1)
  assert distance[~np.eye(256, dtype=bool)].min() > 0.1
  # The middle of a 1 x 1 grid is the middle token of any odd grid.
  np.testing.assert_allclose(
    sincos_positions(1, 1, 32)[0], sincos_positions(5, 7, 32)[17], atol=1e-5
  )


def test_positions_need_a_multiple_of_four_channels():
  with pytest.raises(ValueError, match="multiple of 4"):
    sincos_positions(2, 2, 6)


def test_average_pool_is_the_mean_of_squares():
  x = normal(2, 6, 4, 3)
  np.testing.assert_allclose(average_pool(jnp.asarray(x), 2), pool(x, 2), atol=1e-6)
  # A float16 sum of 64 values of 2048 would be infinite.
  assert average_pool(jnp.full((1, 8, 8, 1), 2048, jnp.float16), 8)[0, 0, 0, 0] == 2048


@pytest.mark.parametrize(
  ("normalised", "contrast"), [(False, False), (True, False), (False, True), (True, True)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_attention_is_its_formula(randomise, biased, normalised, contrast):
  x, boundary = normal(2, 7, 12), normal(2, 7, seed=1) if biased else None
  layer = BoundaryBiasedAttention(heads=3, normalised=normalised, contrast=contrast)
  variables = randomise(shapes_of(layer, x, boundary))
  assert ("boundary_weight" in variables["params"]) == biased
  expected = attention(x, variables["params"], 3, boundary)
  np.testing.assert_allclose(layer.apply(variables, x, boundary), expected, rtol=1e-4, atol=1e-5)


def test_normalised_attention_never_chooses_one_key_alone(randomise):
  """However large the tokens are, a logit stays within the bound."""
  n, d = 50, 16
  layer = BoundaryBiasedAttention(heads=1, normalised=True)
  x = 1e4 * normal(1, n, d)
  variables = randomise(shapes_of(layer, x))
  _, kept = layer.apply(variables, x, mutable=["diagnostics"])
  entropy = kept["diagnostics"]["entropy"]
  _, plain = BoundaryBiasedAttention(heads=1).apply(variables, x, mutable=["diagnostics"])
  assert plain["diagnostics"]["entropy"] < 0.01 < 0.1 < entropy


def test_a_positive_boundary_weight_raises_attention_to_the_boundary():
  """With equal queries and one-hot values the output is the row of attention weights itself."""
  n = 6
  x, boundary = np.eye(n, dtype=np.float32)[None], np.zeros((1, n), np.float32)
  boundary[0, 2] = 3
  qkv = np.concatenate([np.zeros((n, 2 * n)), np.eye(n)], axis=1).astype(np.float32)
  params = {
    "qkv": {"kernel": qkv, "bias": np.zeros(3 * n, np.float32)},
    "out": {"kernel": np.eye(n, dtype=np.float32), "bias": np.zeros(n, np.float32)},
  }
  layer = BoundaryBiasedAttention(heads=1)
  weights = {}
  for strength in (-1.0, 0.0, 1.0):
    params["boundary_weight"] = np.float32([strength])
    weights[strength] = layer.apply({"params": params}, x, boundary)[0]
    expected = np.where(np.arange(n) == 2, np.exp(3 * strength), 1)
    np.testing.assert_allclose(weights[strength], np.tile(expected / expected.sum(), (n, 1)), 1e-5)
  assert np.all(weights[-1.0][:, 2] < 1 / n) and np.all(weights[1.0][:, 2] > 1 / n)
  assert layer.init(jax.random.key(0), x, boundary)["params"]["boundary_weight"][0] > 0


def test_transformer_layer_is_its_formula(randomise):
  x, boundary = normal(2, 7, 12), normal(2, 7, seed=1)
  layer = TransformerLayer(heads=3, mlp_ratio=2)
  variables = randomise(shapes_of(layer, x, boundary, train=False))
  expected = transformer_layer(x, variables["params"], 3, boundary)
  y = layer.apply(variables, x, boundary, train=False)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only():
  x = normal(1, 7, 12)
  layer = TransformerLayer(heads=3, mlp_ratio=2, dropout=0.5)
  variables = layer.init(jax.random.key(0), x, train=False)

  def run(seed):
    return layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)})

  still = layer.apply(variables, x, train=False)
  np.testing.assert_array_equal(run(1), run(1))
  assert np.abs(run(1) - run(2)).max() > 1e-3 and np.abs(run(1) - still).max() > 1e-3


MIXER = {"dim": 8, "layers": 2, "heads": 2, "mlp_ratio": 2}


def mixer_inputs():
  return normal(2, 2, 3, 5), normal(2, 4, 6, 4, seed=1), normal(2, 16, 24, 1, seed=2)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("cross_scale", "biased"), [(False, False), (True, False), (True, True)])
def test_mixer_is_its_formula(randomise, cross_scale, biased, pooled, normalised):
  deep, fine, boundary = mixer_inputs()
  boundary = boundary if biased else None
  layer = CrossScaleMixer(
    **MIXER, cross_scale=cross_scale, pooled=pooled, normalised=normalised, cycles=2.0
  )
  variables = randomise(shapes_of(layer, deep, fine, boundary, train=False))
  p = variables["params"]

  scales = {"deep": dense(deep, p["project_deep"])}
  if cross_scale:
    scales["fine"] = dense(pool(fine, 2) if pooled else fine, p["project_fine"])
  assert ("project_fine" in p) == cross_scale
  assert p["scale_code"].shape == (len(scales), 8)
  tokens, strengths = [], []
  for i, (name, scale) in enumerate(scales.items()):
    h, w = scale.shape[1:3]
    scale = scale.reshape(2, h * w, 8)
    scale = layer_norm(scale, p[f"{name}_norm"]) if normalised else scale
    tokens.append(scale + sincos_positions(h, w, 8, 2.0) + p["scale_code"][i])
    if biased:
      strengths.append(layer_norm(pool(boundary, 16 // h).reshape(2, h * w)))
  x = np.concatenate(tokens, axis=1)
  strength = np.concatenate(strengths, axis=1) if biased else None
  for i in (1, 2):
    x = transformer_layer(x, p[f"layer{i}"], 2, strength)
  x = layer_norm(x, p["norm"])

  context, fine_context = layer.apply(variables, deep, fine, boundary, train=False)
  np.testing.assert_allclose(context, x[:, :6].reshape(2, 2, 3, 8), rtol=1e-3, atol=1e-3)
  if cross_scale:
    grid = scales["fine"].shape
    np.testing.assert_allclose(fine_context, x[:, 6:].reshape(grid), rtol=1e-3, atol=1e-3)
  else:
    assert fine_context is None


def test_scales_exchange_information():
  deep, fine, _ = mixer_inputs()
  layer = CrossScaleMixer(**MIXER)
  variables = layer.init(jax.random.key(0), deep, fine, train=False)
  context, fine_context = layer.apply(variables, deep, fine, train=False)
  other, _ = layer.apply(variables, deep, fine + normal(*fine.shape, seed=5), train=False)
  _, other_fine = layer.apply(variables, deep + normal(*deep.shape, seed=5), fine, train=False)
  assert np.abs(other - context).max() > 1e-3
  assert np.abs(other_fine - fine_context).max() > 1e-3


def test_bias_does_not_depend_on_the_scale_of_the_boundary():
  deep, fine, boundary = mixer_inputs()
  boundary = np.abs(boundary)
  layer = CrossScaleMixer(**MIXER)
  variables = layer.init(jax.random.key(0), deep, fine, boundary, train=False)

  def run(boundary):
    return layer.apply(variables, deep, fine, boundary, train=False)[0]

  np.testing.assert_allclose(run(100 * boundary), run(boundary), atol=0.01)
  np.testing.assert_allclose(run(0 * boundary), run(0 * boundary + 3), atol=1e-5)
  assert np.abs(run(boundary) - run(0 * boundary)).max() > 0.01
  assert np.all(np.isfinite(run(0 * boundary)))


@pytest.mark.parametrize("concatenate", [False, True])
def test_fusion_is_equation_5(randomise, concatenate):
  conv, context = normal(2, 3, 4, 6), normal(2, 3, 4, 5, seed=1)
  layer = LocalGlobalFusion(concatenate)
  variables = randomise(shapes_of(layer, conv, context))
  p = variables["params"]
  aligned = dense(context, p["align"])
  expected = conv + aligned
  assert ("mix" in p) == concatenate
  if concatenate:
    expected = expected + np.maximum(dense(np.concatenate([conv, aligned], -1), p["mix"]), 0)
  np.testing.assert_allclose(layer.apply(variables, conv, context), expected, rtol=1e-4, atol=1e-5)
