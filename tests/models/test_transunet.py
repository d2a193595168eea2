"""What is special in TransUNet: its standardised kernels, its norms and its skips."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.models.layers import Norm
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.models.transunet import (
  Backbone,
  Bottleneck,
  StandardisedConv,
  TransUNet,
  standardised,
)

SMALL = {
  "image_size": 48,
  "width": 32,
  "units": (1, 1, 1),
  "dim": 4,
  "layers": 1,
  "heads": 2,
  "mlp_dim": 4,
  "decoder_dims": (8, 6, 4, 4, 4),
}


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def norm(x, groups, epsilon):
  """GroupNorm without scale and bias, in NumPy."""
  parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
  mean, variance = (f(parts, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
  return ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


def test_kernels_are_standardised_as_numpy_does():
  kernel = 3 + 1e-2 * normal(3, 3, 4, 5)  # so little spread that the 1e-5 counts
  flat = kernel.astype(np.float64).reshape(-1, 5)
  expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
  found = np.asarray(standardised(jnp.asarray(kernel))).reshape(-1, 5)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
  assert np.all(flat.var(0) / (flat.var(0) + 1e-5) < 0.95)


@pytest.mark.parametrize(("side", "stride"), [(1, 2), (7, 2)])
def test_a_standardised_convolution_is_its_definition(randomise, side, stride):
  x, module = normal(2, 8, 6, 4), StandardisedConv(5, side, stride)
  variables = randomise(jax.eval_shape(module.init, jax.random.key(0), x))
  kernel = np.asarray(standardised(variables["params"]["kernel"]))
  padded = np.pad(x, ((0, 0), *[(side // 2,) * 2] * 2, (0, 0)))
  expected = sum(
    padded[:, u : u + 8 : stride, v : v + 6 : stride] @ kernel[u, v]
    for u, v in np.ndindex(side, side)
  )
  np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("channels", "stride", "spread"),
  [(64, 2, 1e-3), (128, 1, 1.0)],  # the small ones show what is added to variances
)
def test_a_bottleneck_is_its_definition(channels, stride, spread):
  x, module = spread * normal(2, 6, 6, channels), Bottleneck(128, stride)
  variables = jax.jit(module.init)(jax.random.key(0), x)

  def conv(x, name, stride=1):
    kernel = variables["params"][name]["kernel"]
    own = StandardisedConv(kernel.shape[-1], len(kernel), stride)
    return np.asarray(own.apply({"params": {"kernel": kernel}}, x))

  y = np.maximum(norm(conv(x, "conv1"), 32, 1e-6), 0)
  y = np.maximum(norm(conv(y, "conv2", stride), 32, 1e-6), 0)
  y = norm(conv(y, "conv3"), 32, 1e-6)
  plain = (channels, stride) == (128, 1)
  assert ("projection" in variables["params"]) != plain
  shortcut = x if plain else norm(conv(x, "projection", stride), 128, 1e-5)
  np.testing.assert_allclose(
    jax.jit(module.apply)(variables, x), np.maximum(y + shortcut, 0), rtol=1e-3, atol=1e-3
  )


def test_the_max_pooling_takes_a_pixel_off_one_map():
  image, module = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32), Backbone(32, (1, 1, 1))
  maps, _ = jax.eval_shape(functools.partial(module.init_with_output, jax.random.key(0)), image)
  sides = zip((112, 55, 28, 14), (32, 128, 256, 512), strict=True)
  assert [x.shape for x in maps] == [(1, side, side, channels) for side, channels in sides]


def test_skips_follow_the_enlarged_map_and_are_padded_at_the_end(randomise):
  model = TransUNet(**SMALL)
  variables = randomise(inspect_model(model, 48).shapes)

  @jax.jit
  def look(image):
    inputs, outputs = {}, {}

    def note(next_call, args, kwargs, context):
      path, y = context.module.path, next_call(*args, **kwargs)
      if len(path) == 1:
        inputs[path[0]], outputs[path[0]] = args[0], y
      return y

    with nn.intercept_methods(note):
      model.apply(variables, image)
    return inputs, outputs

  inputs, outputs = jax.device_get(look(normal(1, 48, 48, 3)))
  below = "decoder_input"
  for stage, skip in enumerate((*outputs["backbone"][2::-1], None), start=1):
    x = outputs[below]
    side = x.shape[1]
    places = np.linspace(0, side - 1, 2 * side)[:, None] - np.arange(side)
    weights = np.maximum(0, 1 - np.abs(places))
    parts = [np.einsum("Hh,bhwc,Ww->bHWc", weights, x, weights)]
    if skip is not None:
      lost = 2 * side - skip.shape[1]
      assert lost == (stage == 2)
      parts.append(np.pad(skip, ((0, 0), (0, lost), (0, lost), (0, 0))))
    expected = np.concatenate(parts, -1)
    below = f"decoder{stage}"
    np.testing.assert_allclose(inputs[below], expected, rtol=1e-4, atol=1e-4)


def test_what_norms_add_to_variances_and_how_many_groups_they_have():
  norms = set()

  def note(next_call, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.GroupNorm | nn.LayerNorm | Norm):
      kind = "projection" if "projection" in module.name else type(module).__name__
      channels, groups = args[0].shape[-1], getattr(module, "num_groups", None)
      norms.add((kind, module.epsilon, "each" if groups == channels else groups))
    return next_call(*args, **kwargs)

  with nn.intercept_methods(note):
    inspect_model(TransUNet(**{**SMALL, "width": 64}), 48)
  assert norms == {
    ("GroupNorm", 1e-6, 32),
    ("projection", 1e-5, "each"),
    ("LayerNorm", 1e-6, None),
    ("Norm", 1e-5, None),
  }
