"""What is special in DeepLabV3+: its grid, its residuals, its pyramid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.models.deeplab_v3_plus import (
  AtrousPyramid,
  DeepLabV3Plus,
  Encoder,
  SeparableConv,
)
from medlitenet_jax.models.layers import MBConv
from medlitenet_jax.models.structure import inspect_model

DIMS, BLOCKS = (8, 8, 12, 16, 20, 24, 8, 8, 16), (1, 1, 1, 1, 1, 2, 1)
MODEL = DeepLabV3Plus(DIMS, BLOCKS, dim=8, skip_dim=4)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_encoder_stops_at_stride_16():
  own = {group: tree["encoder"] for group, tree in inspect_model(MODEL, 16).shapes.items()}
  image = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
  run = functools.partial(Encoder(DIMS, BLOCKS).apply, train=False)
  stages, deep = jax.eval_shape(run, own, image)
  assert [64 // stage.shape[1] for stage in stages] == [2, 4, 8, 16, 16, 16, 16]
  assert deep.shape == (1, 4, 6, 16)


def test_forms_are_passed_on():
  """The form of a CPU has no convolution of XLA's; the library's has nothing else."""
  image, own = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32), inspect_model(MODEL, 16)
  programs = {
    form: str(jax.make_jaxpr(MODEL.clone(form=form).apply)(own.shapes, image))
    for form in ("cpu", "library")
  }
  counts = {form: text.count("conv_general_dilated[") for form, text in programs.items()}
  kernels = [p for p, leaf in jax.tree_util.tree_leaves_with_path(own.shapes) if leaf.ndim == 4]
  assert counts == {"cpu": 0, "library": len(kernels)}


def _depthwise(x, kernel, dilation):
  """Depthwise 3x3 convolution in NumPy."""
  b, h, w, c = x.shape
  padded = np.zeros((b, h + 2 * dilation, w + 2 * dilation, c))
  padded[:, dilation : dilation + h, dilation : dilation + w] = x
  return sum(
    padded[:, i * dilation : i * dilation + h, j * dilation : j * dilation + w] * kernel[i, j, 0]
    for i in range(3)
    for j in range(3)
  )


def _norm(x, params, stats):
  return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


@pytest.mark.parametrize("dilation", [1, 5, 36])
def test_separable_convolutions_reach_as_far_as_they_are_dilated(dilation, randomise):
  """Beyond the map, of 4x6 here, no tap sees anything but the one in the middle."""
  module, x = SeparableConv(5, dilation), normal(2, 4, 6, 3)
  init = functools.partial(module.init, train=False)
  variables = randomise(jax.eval_shape(init, jax.random.key(0), x))
  params, stats = variables["params"], variables["batch_stats"]["pointwise"]["norm"]
  y = _depthwise(x, params["depthwise"]["kernel"], dilation)
  y = y @ params["pointwise"]["conv"]["kernel"][0, 0]
  expected = np.maximum(_norm(y, params["pointwise"]["norm"], stats), 0)
  np.testing.assert_allclose(
    jax.jit(functools.partial(module.apply, train=False))(variables, x),
    expected,
    rtol=1e-4,
    atol=1e-5,
  )


@pytest.mark.parametrize(("features", "expansion"), [(4, 3), (5, 1)])
def test_inverted_residuals(features, expansion, randomise):
  """ReLU6 after all but the last, and the input added where the shapes agree."""
  module, x = MBConv(features, 1, 2, expansion, relu6=True), 6 * normal(2, 4, 5, 4)
  init = functools.partial(module.init, train=False)
  variables = randomise(jax.eval_shape(init, jax.random.key(0), x))
  params, stats = variables["params"], variables["batch_stats"]
  assert ("expand" in params) == (expansion > 1)
  y = x
  if expansion > 1:
    y = _norm(y @ params["expand"]["kernel"][0, 0], params["expand_norm"], stats["expand_norm"])
    assert y.max() > 6
    y = np.clip(y, 0, 6)
  y = _depthwise(y, params["depthwise"]["kernel"], 2)
  y = np.clip(_norm(y, params["depthwise_norm"], stats["depthwise_norm"]), 0, 6)
  y = _norm(y @ params["project"]["kernel"][0, 0], params["project_norm"], stats["project_norm"])
  expected = x + y if features == 4 else y
  np.testing.assert_allclose(
    jax.jit(functools.partial(module.apply, train=False))(variables, x),
    expected,
    rtol=1e-4,
    atol=1e-4,
  )


def test_the_pyramid_has_a_branch_for_each_dilation_and_one_for_the_mean(randomise):
  """A map that is even but for one pixel tells the branches apart by where they see it."""
  module = AtrousPyramid(4, (2,), dropout=0.5)
  even = np.ones((1, 9, 9, 3), np.float32)
  init = functools.partial(module.init, train=False)
  variables = randomise(jax.eval_shape(init, jax.random.key(0), even))
  assert set(variables["params"]) == {"centre", "dilation2", "pool", "fuse"}
  assert variables["params"]["fuse"]["conv"]["kernel"].shape == (1, 1, 12, 4)
  spot = even.copy()
  spot[0, 4, 4] = 5
  run = jax.jit(functools.partial(module.apply, train=False))

  def changed(**silent):
    """Where the output differs, with the weights that `fuse` gives to some branches at 0."""
    kernel = np.array(variables["params"]["fuse"]["conv"]["kernel"])
    for start in silent.values():
      kernel[:, :, start : start + 4] = 0
    params = {**variables["params"]}
    params["fuse"] = {
      "conv": {"kernel": kernel},
      "norm": {"scale": np.ones(4, np.float32), "bias": np.full(4, 1e3, np.float32)},
    }
    own = {**variables, "params": params}
    return {
      tuple(place)
      for place in np.argwhere(np.abs(run(own, spot) - run(own, even))[0].max(-1) > 1e-3)
    }

  reached = {(4 + i, 4 + j) for i in (-2, 0, 2) for j in (-2, 0, 2)}
  assert changed(dilated=4, pool=8) == {(4, 4)}
  assert {(4, 4)} < changed(centre=0, pool=8) <= reached
  assert len(changed(centre=0, dilated=4)) == 81
