"""DeepLabV3+: its size, its grid, its pyramid and its logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checked_folds import check_folds

from medlitenet_jax.models.deeplab_v3_plus import (
  SIZES,
  AtrousPyramid,
  Encoder,
  InvertedResidual,
  SeparableConv,
)
from medlitenet_jax.models.registry import create_model, resolve_model
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.system.errors import InputError

# Exact numbers of parameters, those of segmentation_models_pytorch: 2,223,872 are MobileNetV2's.
PARAMETERS = {
  "encoder": 2_223_872,
  "aspp": 4 * (1280 * 256 + 512) + (1280 * 256 + 512) + 3 * 9 * 1280 + 5 * 256 * 256 + 512,
  "refine": 9 * 256 + 256 * 256 + 512,
  "skip": 24 * 48 + 96,
  "decoder": 9 * 304 + 304 * 256 + 512,
  "head": 257,
}
SMALL = {
  "encoder_dims": (8, 8, 12, 16, 20, 24, 8, 8, 16),
  "encoder_blocks": (1, 1, 1, 1, 1, 2, 1),
  "dim": 8,
  "skip_dim": 4,
  "dilations": (1, 12),
}


def fields(**own):
  return {"name": "deeplab_v3_plus", "variant": "base", "deeplab_v3_plus": own}


def small(dtype=jnp.float32, **own):
  return create_model(fields(**{**SMALL, **own}), dtype)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_parameter_counts():
  shapes = inspect_model(create_model(fields(), jnp.float32), 32).shapes["params"]
  counts = {part: sum(leaf.size for leaf in jax.tree.leaves(shapes[part])) for part in shapes}
  assert counts == PARAMETERS
  assert sum(counts.values()) == 4_378_513


def test_outputs():
  image = jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.float32)
  variables = inspect_model(small(), 32).shapes
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
  seen = [
    jax.eval_shape(small(dtype).apply, variables, image) for dtype in (jnp.float32, jnp.bfloat16)
  ]
  step = functools.partial(
    small(jnp.bfloat16).apply,
    train=True,
    mutable=["batch_stats"],
    rngs={"dropout": jax.random.key(0)},
  )
  trained, _ = jax.eval_shape(step, variables, image)
  assert set(trained) == {"mask"}
  for found in seen:
    assert set(found) == {"mask", "features"}
    assert found["features"].shape == (2, 2 * (8 + 12 + 16 + 24))
  for logits in (trained["mask"], *(found["mask"] for found in seen)):
    assert logits.shape == (2, 64, 48, 1) and logits.dtype == jnp.float32


def test_the_encoder_stops_at_stride_16():
  encoder = Encoder(SMALL["encoder_dims"], SMALL["encoder_blocks"])
  image = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
  (stages, deep), _ = jax.eval_shape(
    functools.partial(encoder.init_with_output, train=False), jax.random.key(0), image
  )
  assert [64 // stage.shape[1] for stage in stages] == [2, 4, 8, 16, 16, 16, 16]
  assert deep.shape == (1, 4, 6, 16)


@pytest.mark.parametrize("size", [(24, 32), (32, 8), (0, 16), (100, 64)])
def test_other_sizes_are_refused(size):
  with pytest.raises(ValueError, match="multiples of 16 from 16 up"):
    SIZES.check(*size)
  with pytest.raises(ValueError, match="multiples of 16 from 16 up"):
    jax.eval_shape(small().init, jax.random.key(0), jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("encoder_dims", (8,) * 8),
    ("encoder_dims", (0,) * 9),
    ("encoder_blocks", (1,) * 6),
    ("encoder_blocks", (1, 1, 1, 1, 1, 1, 0)),
    ("dim", 0),
    ("skip_dim", 1.5),
    ("dilations", (12, 12)),
    ("dilations", (0,)),
    ("dropout", 1.0),
    ("width", 32),
  ],
)
def test_wrong_values_are_refused(field, value):
  with pytest.raises(InputError, match=f"config.model.deeplab_v3_plus.{field}"):
    resolve_model(fields(**{field: value}))


@pytest.mark.parametrize(
  ("own", "parts"),
  [
    ({"encoder_blocks": (1, 2, 1, 1, 1, 2, 1)}, {"encoder"}),
    ({"encoder_dims": (8, 8, 12, 16, 20, 24, 8, 8, 24)}, {"encoder", "aspp"}),
    ({"dim": 12}, {"aspp", "refine", "decoder", "head"}),
    ({"skip_dim": 8}, {"skip", "decoder"}),
    ({"dilations": (1, 2, 3)}, {"aspp"}),
  ],
)
def test_fields_change_their_part(own, parts):
  whole, other = (inspect_model(small(**f), 32).shapes["params"] for f in ({}, own))
  assert {part for part in whole if whole[part] != other[part]} == parts


def test_forms_are_passed_on():
  """The form of a CPU has no convolution of XLA's; the library's has nothing else."""
  image, own = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), inspect_model(small(), 32)
  programs = {
    form: str(jax.make_jaxpr(small().clone(form=form).apply)(own.shapes, image))
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
  module, x = InvertedResidual(features, 1, 2, expansion), 6 * normal(2, 4, 5, 4)
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


def test_norms_fold_into_the_convolutions_that_they_follow():
  check_folds(small())
  norms = [path for path in inspect_model(small(), 32).paths if path.endswith("norm")]
  assert len(inspect_model(small(), 32).folds) == len(norms)


def test_every_parameter_learns(randomise):
  model = small(dropout=0.1)
  variables = randomise(inspect_model(model, 32).shapes)
  image, truth = normal(2, 32, 32, 3), (normal(2, 32, 32, 1, seed=1) > 0).astype(np.float32)

  @jax.jit
  def gradient(variables):
    def loss(params):
      outputs, _ = model.apply(
        {**variables, "params": params},
        image,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
      )
      return jnp.mean((outputs["mask"] - truth) ** 2)

    return jax.grad(loss)(variables["params"])

  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables)):
    name = "/".join(key.key for key in path)
    assert np.all(np.isfinite(leaf)), name
    # A 1x1 convolution and its norm follow, which take the bias away again.
    assert np.any(np.abs(leaf) > 1e-8) or name.endswith("project_norm/bias"), name
