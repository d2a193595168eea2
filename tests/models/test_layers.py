"""Building blocks against their definitions, written out in NumPy with random parameters."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import shapes_of

from medlitenet_jax.models.layers import ASPP, SCSE, Depthwise, MBConv, Norm, Pointwise

EPSILON = 1e-5  # of BatchNorm


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def silu(x):
  return x * sigmoid(x)


def dense(x, params):
  return x @ params["kernel"] + params.get("bias", 0)


def pointwise(x, params):
  return x @ params["kernel"][0, 0] + params.get("bias", 0)


def depthwise(x, params, *, stride=1, dilation=1):
  _, h, w, _ = x.shape
  padded = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
  return sum(
    padded[:, u * dilation : u * dilation + h : stride, v * dilation : v * dilation + w : stride]
    * params["kernel"][u, v, 0]
    for u, v in np.ndindex(3, 3)
  )


def norm(x, params, stats):
  standard = (x - stats["mean"]) / np.sqrt(stats["var"] + EPSILON)
  return standard * params["scale"] + params["bias"]


def num_parameters(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
  ("channels", "features", "stride"), [(4, 4, 1), (4, 4, 2), (4, 6, 1), (4, 6, 2)]
)
def test_mbconv_is_its_definition(randomise, channels, features, stride):
  x = normal(2, 5, 6, channels)
  block = MBConv(features, stride)
  variables = randomise(shapes_of(block, x, train=False))
  p, s = variables["params"], variables["batch_stats"]
  y = silu(norm(pointwise(x, p["expand"]), p["expand_norm"], s["expand_norm"]))
  y = depthwise(y, p["depthwise"], stride=stride)
  y = silu(norm(y, p["depthwise_norm"], s["depthwise_norm"]))
  y = norm(pointwise(y, p["project"]), p["project_norm"], s["project_norm"])
  if stride == 1 and channels == features:
    y = x + y
  assert y.shape == (2, -(-5 // stride), -(-6 // stride), features)
  np.testing.assert_allclose(block.apply(variables, x, train=False), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "features"), [(4, 4), (8, 5)])
def test_mbconv_has_the_papers_parameters(channels, features):
  """Three convolutions without bias, each with a norm, and a middle layer six times as wide."""
  block = MBConv(features)
  x = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
  params = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, train=False), x)["params"]
  wide = 6 * channels
  convolutions = channels * wide + 3 * 3 * wide + wide * features
  assert num_parameters(params) == convolutions + 2 * (wide + wide + features)
  assert params["depthwise"]["kernel"].shape == (3, 3, 1, wide)


def test_norm_in_training_uses_the_batch_and_moves_the_running_statistics(randomise):
  x = 3 * normal(2, 4, 5, 3) + 2
  layer = Norm(activate=False, momentum=0.8)
  variables = layer.init(jax.random.key(0), x, train=True)
  assert np.all(variables["batch_stats"]["mean"] == 0)  # initialising does not update them
  variables = randomise(variables)
  y, changed = layer.apply(variables, x, train=True, mutable=["batch_stats"])
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  expected = norm(x, variables["params"], {"mean": mean, "var": var})
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
  for name, batch in (("mean", mean), ("var", var)):
    moved = 0.8 * variables["batch_stats"][name] + 0.2 * batch
    np.testing.assert_allclose(changed["batch_stats"][name], moved, rtol=1e-4)


@pytest.mark.parametrize("activate", [False, True])
def test_norm_at_inference_uses_the_running_statistics(randomise, activate):
  x = normal(2, 4, 5, 3)
  layer = Norm(activate=activate)
  variables = randomise(shapes_of(layer, x, train=False))
  y, changed = layer.apply(variables, x, train=False, mutable=["batch_stats"])
  z = norm(x, variables["params"], variables["batch_stats"])
  np.testing.assert_allclose(y, silu(z) if activate else z, rtol=1e-4, atol=1e-5)
  for old, new in zip(
    jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(changed), strict=True
  ):
    np.testing.assert_array_equal(old, new)


def test_running_statistics_converge_to_those_of_the_data():
  """After many batches of the same data, inference gives the same result as training."""
  layer = Norm(activate=False)
  x = 3 * normal(4, 8, 8, 2) + 5
  variables = layer.init(jax.random.key(0), x, train=True)
  for _ in range(150):
    y, changed = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    variables = {**variables, **changed}
  np.testing.assert_allclose(layer.apply(variables, x, train=False), y, atol=1e-3)


def test_scse_is_its_definition(randomise):
  x = normal(2, 4, 5, 24)
  layer = SCSE()
  variables = randomise(shapes_of(layer, x))
  p = variables["params"]
  assert p["squeeze"]["kernel"].shape == (24, 6)
  hidden = np.maximum(dense(x.mean((1, 2)), p["squeeze"]), 0)
  channel = sigmoid(dense(hidden, p["excite"]))
  spatial = sigmoid(pointwise(x, p["spatial"]))
  assert spatial.shape == (2, 4, 5, 1)
  expected = x * channel[:, None, None] + x * spatial
  np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_aspp_is_its_definition(randomise):
  x = normal(2, 9, 7, 6)
  dilations = (1, 2, 12)  # the last reaches beyond the map: its outer taps see only padding
  layer = ASPP(features=5, branch_dim=4, dilations=dilations)
  variables = randomise(shapes_of(layer, x, train=False))
  p, s = variables["params"], variables["batch_stats"]
  branches = []
  for d in dilations:
    params, stats = p[f"dilation{d}"], s[f"dilation{d}"]
    y = pointwise(depthwise(x, params["depthwise"], dilation=d), params["pointwise"])
    branches.append(silu(norm(y, params["norm"], stats["norm"])))
  pooled = silu(pointwise(x.mean((1, 2), keepdims=True), p["pool"]))
  branches.append(np.broadcast_to(pooled, (2, 9, 7, 4)))
  y = pointwise(np.concatenate(branches, -1), p["fuse"])
  expected = silu(norm(y, p["fuse_norm"], s["fuse_norm"]))
  np.testing.assert_allclose(layer.apply(variables, x, train=False), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("side", "dilations"), [(16, (1, 3, 6)), (8, (1, 2, 3)), (24, (2, 4, 9))])
def test_dilations_for_a_grid_keep_their_share_of_the_frame(side, dilations):
  x = normal(1, side, side, 3)
  relative = ASPP(features=4, branch_dim=4, dilations=(1, 3, 6), grid=16)
  variables = relative.init(jax.random.key(0), x, train=False)
  own = ASPP(features=4, branch_dim=4, dilations=dilations)
  names = {f"dilation{d}": f"dilation{e}" for d, e in zip((1, 3, 6), dilations, strict=True)}
  renamed = {
    kind: {names.get(name, name): leaf for name, leaf in tree.items()}
    for kind, tree in variables.items()
  }
  np.testing.assert_array_equal(
    relative.apply(variables, x, train=False), own.apply(renamed, x, train=False)
  )


def test_aspp_carries_the_mean_of_the_image_everywhere():
  """A change in one corner reaches the opposite corner only through the pooled branch."""
  x = normal(1, 32, 32, 3)
  layer = ASPP(features=4, branch_dim=4, dilations=(1, 3))
  variables = layer.init(jax.random.key(0), x, train=False)
  changed = x.copy()
  changed[0, 0, 0] += 100
  before, after = (layer.apply(variables, image, train=False) for image in (x, changed))
  assert np.abs(after - before)[0, -1, -1].max() > 1e-4


class LayersUnderJitTest(chex.TestCase):
  """Layers against their definitions, compiled and not."""

  @chex.variants(with_jit=True, without_jit=True)
  def test_pointwise_is_a_matrix_product_per_pixel(self):
    x, layer = normal(2, 4, 5, 3), Pointwise(6)
    variables = layer.init(jax.random.key(0), x)
    y = self.variant(layer.apply)(variables, x)
    np.testing.assert_allclose(y, pointwise(x, variables["params"]), rtol=1e-5, atol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_depthwise_is_a_sum_over_nine_taps(self):
    x = normal(2, 7, 6, 3)
    for stride, dilation in ((1, 1), (2, 1), (1, 2)):
      layer = Depthwise(stride, dilation)
      variables = layer.init(jax.random.key(0), x)
      y = self.variant(layer.apply)(variables, x)
      expected = depthwise(x, variables["params"], stride=stride, dilation=dilation)
      np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_norm_normalises_each_channel(self):
    x, layer = 3 * normal(2, 4, 5, 3) + 2, Norm(activate=False)
    variables = layer.init(jax.random.key(0), x, train=True)
    apply = functools.partial(layer.apply, train=True, mutable=["batch_stats"])
    y, _ = self.variant(apply)(variables, x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-4)

  @chex.variants(with_jit=True, without_jit=True)
  def test_an_input_without_batch_axis_is_refused(self):
    x = jnp.ones((4, 4, 4))
    for layer in (Pointwise(4), Depthwise(), SCSE()):
      apply = self.variant(lambda x, layer=layer: layer.init_with_output(jax.random.key(0), x))
      with pytest.raises(AssertionError, match="assert_rank"):
        apply(x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
  "create", [lambda d: Pointwise(4, dtype=d), lambda d: Depthwise(dtype=d), lambda d: SCSE(dtype=d)]
)
def test_layers_compute_in_their_dtype_with_float32_parameters(create, dtype):
  x = jax.ShapeDtypeStruct((1, 4, 4, 4), dtype)
  y, variables = jax.eval_shape(lambda x: create(dtype).init_with_output(jax.random.key(0), x), x)
  assert y.dtype == dtype
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
