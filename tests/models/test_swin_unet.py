"""What is special in Swin-Unet: its windows and their mask, its left-out branches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.models.swin_unet import (
  PatchExpanding,
  PatchMerging,
  SwinBlock,
  SwinUnet,
  WindowAttention,
  from_windows,
  relative_positions,
  shift_mask,
  to_windows,
)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer_norm(x):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_windows_are_cut_and_put_together():
  x = normal(2, 6, 9, 4)
  windows = to_windows(x, 3)
  assert windows.shape == (2, 6, 9, 4)
  for number, (i, j) in enumerate(np.ndindex(2, 3)):
    expected = x[:, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].reshape(2, 9, 4)
    np.testing.assert_array_equal(windows[:, number], expected)
  np.testing.assert_array_equal(from_windows(windows, 6, 9), x)


def neighbours(height, width, window, shift):
  """[H W, H W] bool: which tokens share a window that lies on the map `shift` down and right.

  Windows that reach over the frame are cut there, and their parts are regions of their own.
  """
  rows, columns = (np.floor_divide(np.arange(n) - shift, window) for n in (height, width))
  regions = (100 * rows[:, None] + columns).reshape(-1)
  return regions[:, None] == regions


@pytest.mark.parametrize(
  ("height", "width", "window", "shift"),
  [(4, 4, 2, 1), (8, 12, 4, 2), (14, 21, 7, 3), (6, 9, 3, 1), (56, 56, 7, 3), (64, 64, 8, 4)],
)
def test_the_mask_keeps_regions_of_the_shifted_map_apart(height, width, window, shift):
  places = np.arange(height * width).reshape(1, height, width, 1)
  rolled = np.roll(places, (-shift, -shift), (1, 2))
  tokens = to_windows(rolled, window)[0, ..., 0]  # [K, w w], places on the map
  expected = neighbours(height, width, window, shift)[tokens[:, :, None], tokens[:, None, :]]
  found = shift_mask(height, width, window, shift)
  np.testing.assert_array_equal(found, expected)
  inner = found.reshape(height // window, width // window, *found.shape[1:])[:-1, :-1]
  assert np.all(inner) and not np.all(found)


@pytest.mark.parametrize(("height", "width", "window", "shift"), [(4, 6, 2, 0), (6, 6, 3, 1)])
def test_no_token_attends_outside_its_own_region(randomise, height, width, window, shift):
  """By the derivative of each output by each input."""
  module, x = WindowAttention(2, window, shift), normal(1, height, width, 4)
  variables = randomise(jax.eval_shape(module.init, jax.random.key(0), x))
  slopes = jax.jit(jax.jacrev(lambda x: jnp.sum(module.apply(variables, x), -1)))(x)
  seen = np.any(np.asarray(slopes) != 0, -1).reshape(height * width, height * width)
  np.testing.assert_array_equal(seen, neighbours(height, width, window, shift))


def test_window_attention_is_its_definition(randomise):
  """On one window, token by token, with the bias of their offset."""
  window, heads, dim = 3, 2, 8
  module, x = WindowAttention(heads, window, 0), normal(1, window, window, dim)
  variables = randomise(jax.eval_shape(module.init, jax.random.key(0), x))
  own = variables["params"]
  table = own["position_bias"].reshape(2 * window - 1, 2 * window - 1, heads)
  tokens = x.reshape(-1, dim)
  qkv = (tokens @ own["qkv"]["kernel"] + own["qkv"]["bias"]).reshape(-1, 3, heads, dim // heads)
  mixed = np.zeros((len(tokens), heads, dim // heads))
  for i, head in np.ndindex(len(tokens), heads):
    logits = [
      qkv[i, 0, head] @ qkv[j, 1, head] / np.sqrt(dim // heads)
      + table[i // window - j // window + 2, i % window - j % window + 2, head]
      for j in range(len(tokens))
    ]
    weights = np.exp(logits) / np.sum(np.exp(logits))
    mixed[i, head] = weights @ qkv[:, 2, head]
  expected = mixed.reshape(-1, dim) @ own["out"]["kernel"] + own["out"]["bias"]
  found = module.apply(variables, x).reshape(-1, dim)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [2, 7, 8])
def test_every_offset_has_its_own_bias(window):
  numbers = relative_positions(window)
  assert numbers.shape == (window**2, window**2)
  assert set(numbers.flat) == set(range((2 * window - 1) ** 2))


@pytest.mark.parametrize(
  ("size", "shifted", "moves"),
  [((4, 4), False, False), ((4, 4), True, True), ((2, 4), True, False), ((2, 2), True, False)],
)
def test_windows_move_only_where_there_are_several(size, shifted, moves):
  module, x = SwinBlock(1, 2, shifted, 2, 0.0), normal(1, *size, 4)
  traced = jax.make_jaxpr(functools.partial(module.init, train=False))(jax.random.key(0), x)
  assert ("_roll" in str(traced)) == moves


def test_merging_takes_four_tokens_column_by_column(randomise):
  x, module = 1e-2 * normal(2, 4, 6, 3), PatchMerging()
  variables = randomise(jax.eval_shape(module.init, jax.random.key(0), x))
  own = variables["params"]
  four = np.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
  expected = (layer_norm(four) * own["norm"]["scale"] + own["norm"]["bias"]) @ own["linear"][
    "kernel"
  ]
  assert set(own["linear"]) == {"kernel"} and expected.shape == (2, 2, 3, 6)
  np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_expanding_spreads_channels_over_a_square(randomise, factor):
  x, module = 1e-2 * normal(2, 2, 3, 6), PatchExpanding(factor, 3)
  variables = randomise(jax.eval_shape(module.init, jax.random.key(0), x))
  own = variables["params"]
  wide = x @ own["linear"]["kernel"]
  expected = np.zeros((2, 2 * factor, 3 * factor, 3))
  for i, j in np.ndindex(factor, factor):
    start = 3 * (factor * i + j)
    expected[:, i::factor, j::factor] = layer_norm(wide[..., start : start + 3])
  expected = expected * own["norm"]["scale"] + own["norm"]["bias"]
  assert set(own["linear"]) == {"kernel"}
  np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-3, atol=1e-4)


def test_drop_rates_grow_linearly_and_the_decoder_has_those_of_the_encoder():
  rates = {}
  model = SwinUnet(2, 4, (2, 1, 2, 1), (1, 1, 1, 1), 1, drop_path=0.25)

  def note(next_call, args, kwargs, context):
    if isinstance(context.module, SwinBlock):
      rates["/".join(context.module.path)] = context.module.drop_rate
    return next_call(*args, **kwargs)

  with nn.intercept_methods(note):
    inspect_model(model, 64)
  blocks = ["stage1_block1", "stage1_block2", "stage2_block1", "stage3_block1", "stage3_block2"]
  expected = dict(zip([*blocks, "stage4_block1"], np.arange(6) * 0.05, strict=True))
  assert rates.keys() == {f"encoder/{name}" for name in expected} | {
    f"decoder/{name}" for name in blocks
  }
  for path, rate in rates.items():
    np.testing.assert_allclose(rate, expected[path.split("/")[1]], atol=1e-12)
