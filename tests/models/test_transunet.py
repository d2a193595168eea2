"""TransUNet: its size, its standardised kernels, its skips and its logits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checked_folds import check_folds

from medlitenet_jax.models.knockout import expand, silencing
from medlitenet_jax.models.layers import Norm
from medlitenet_jax.models.registry import NETWORKS, create_model, model_sizes, resolve_model
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.models.transunet import Backbone, Bottleneck, StandardisedConv, standardised
from medlitenet_jax.system.errors import InputError

# Exact numbers of parameters: a 16th of the side squared, times 768, are positions.
PARAMETERS = {"base": (224, 105_275_921), "size_256": (256, 105_322_001)}
SMALL = {
  "image_size": 48,
  "width": 32,
  "units": (1, 2, 1),
  "dim": 16,
  "layers": 2,
  "heads": 2,
  "mlp_dim": 24,
  "decoder_dims": (12, 8, 8, 6, 4),
}


def fields(variant="base", **own):
  return {"name": "transunet", "variant": variant, "transunet": own}


def small(dtype=jnp.float32, **own):
  return create_model(fields(**{**SMALL, **own}), dtype)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def norm(x, groups, epsilon):
  """GroupNorm without scale and bias, in NumPy."""
  parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
  mean, variance = (f(parts, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
  return ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


@pytest.mark.parametrize("variant", NETWORKS["transunet"].variants)
def test_parameter_counts(variant):
  size, total = PARAMETERS[variant]
  model = create_model(fields(variant), jnp.float32)
  shapes = inspect_model(model, size).shapes["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total
  assert shapes["transformer"]["positions"].shape == (size // 16, size // 16, 768)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outputs(dtype):
  image = jax.ShapeDtypeStruct((2, 48, 48, 3), jnp.float32)
  model, variables = small(dtype), inspect_model(small(), 48).shapes
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
  step = functools.partial(
    model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
  )
  trained, _ = jax.eval_shape(step, variables, image)
  seen = jax.eval_shape(model.apply, variables, image)
  assert set(trained) == {"mask"} and set(seen) == {"mask", "features"}
  assert seen["features"].shape == (2, 2 * (32 + 128 + 256))
  for outputs in (trained, seen):
    assert outputs["mask"].shape == (2, 48, 48, 1)
    assert {leaf.dtype for leaf in outputs.values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
  ("own", "size"),
  [({}, (256, 256)), ({}, (224, 256)), ({"image_size": 64}, (224, 224)), ({}, (0, 224))],
)
def test_other_sizes_are_refused(own, size):
  takes = f"only sides of {own.get('image_size', 224)} pixels"
  with pytest.raises(ValueError, match=takes):
    model_sizes(resolve_model(fields(**own))).check(*size)
  with pytest.raises(ValueError, match=takes):
    model = create_model(fields(**own), jnp.float32)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize("size", [32, 80])
def test_any_multiple_of_16_can_be_its_size(size):
  model = small(image_size=size, units=(1, 1, 1), layers=1)
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  found = jax.eval_shape(model.apply, inspect_model(model, size).shapes, image)
  assert found["mask"].shape == (1, size, size, 1)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("image_size", 100),
    ("image_size", 16),
    ("image_size", 224.0),
    ("width", 48),
    ("width", 0),
    ("units", (3, 4)),
    ("units", (3, 0, 9)),
    ("dim", 770),
    ("heads", 0),
    ("layers", 0),
    ("mlp_dim", 1.5),
    ("decoder_dims", (512, 256, 128, 64)),
    ("dropout", 1.0),
    ("dropout", -0.1),
  ],
)
def test_wrong_values_are_refused(field, value):
  with pytest.raises(InputError, match=f"config.model.transunet.{field}"):
    resolve_model(fields(**{field: value}))


def test_kernels_are_standardised_as_numpy_does():
  kernel = 3 + 1e-2 * normal(3, 3, 4, 5)  # so little spread that the 1e-5 counts
  flat = kernel.astype(np.float64).reshape(-1, 5)
  expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
  found = np.asarray(standardised(jnp.asarray(kernel))).reshape(-1, 5)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
  assert np.all(flat.var(0) / (flat.var(0) + 1e-5) < 0.95)


@pytest.mark.parametrize(("side", "stride"), [(1, 2), (3, 1), (3, 2), (7, 2)])
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
  [(64, 2, 1e-3), (64, 1, 1e-3), (128, 1, 1.0)],  # the small ones show what is added to variances
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
  for size, sides in ((224, (112, 55, 28, 14)), (256, (128, 63, 32, 16)), (48, (24, 11, 6, 3))):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    maps, _ = jax.eval_shape(
      functools.partial(Backbone(32, (1, 1, 1)).init_with_output, jax.random.key(0)), image
    )
    channels = (32, 128, 256, 512)
    assert [x.shape for x in maps] == [
      (1, side, side, dim) for side, dim in zip(sides, channels, strict=True)
    ]


def test_skips_follow_the_enlarged_map_and_are_padded_at_the_end(randomise):
  model = small(units=(1, 1, 1), layers=1)
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
    image = jax.ShapeDtypeStruct((1, 48, 48, 3), jnp.float32)
    jax.eval_shape(small(width=64).init, jax.random.key(0), image)
  assert norms == {
    ("GroupNorm", 1e-6, 32),
    ("projection", 1e-5, "each"),
    ("LayerNorm", 1e-6, None),
    ("Norm", 1e-5, None),
  }


def test_norms_fold_into_the_convolutions_that_they_follow():
  check_folds(small(), 48)


def test_every_attention_can_be_silenced(randomise):
  model = small()
  structure = inspect_model(model, 48)
  found = expand(NETWORKS["transunet"].knockouts, structure.paths)
  assert list(found) == ["attention", *(f"transformer/layer{i}/attention" for i in (1, 2))]
  variables = randomise(structure.shapes)
  silent = jax.tree_util.tree_map_with_path(
    lambda path, x: 0 * x if "out" in (k.key for k in path) and _in_attention(path) else x,
    variables,
  )

  @jax.jit
  def run(variables, on):
    with silencing([found["attention"]], on):
      return model.apply(variables, normal(1, 48, 48, 3))["mask"]

  off, on = (np.array([value]) for value in (False, True))
  np.testing.assert_array_equal(run(variables, off), run(silent, on))
  assert np.any(run(variables, on) != run(variables, off))


def _in_attention(path):
  return any(key.key == "attention" for key in path)


def test_every_parameter_learns_and_only_training_drops(randomise):
  model = small(units=(1, 1, 1), layers=1)
  variables = randomise(inspect_model(model, 48).shapes)
  image, truth = normal(2, 48, 48, 3), (normal(2, 48, 48, 1, seed=1) > 0).astype(np.float32)

  @jax.jit
  def gradient(params, key):
    def loss(params):
      outputs, updated = model.apply(
        {**variables, "params": params},
        image,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
      )
      return jnp.mean((outputs["mask"] - truth) ** 2), updated

    return jax.value_and_grad(loss, has_aux=True)(params)

  (first, updated), grads = gradient(variables["params"], jax.random.key(0))
  (second, _), _ = gradient(variables["params"], jax.random.key(1))
  assert first != second  # by another dropout
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    name = "/".join(key.key for key in path)
    assert np.all(np.isfinite(leaf)), name
    # A key's bias adds the same to all logits of a query.
    assert np.any(np.abs(leaf) > 1e-8) or name.endswith("key/bias"), name
  for before, after in zip(
    *map(jax.tree.leaves, (variables["batch_stats"], updated["batch_stats"])), strict=True
  ):
    assert np.any(before != after)
  # Descends: a step along the gradient lowers the loss under the same dropout.
  size = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads))
  step = jax.tree.map(lambda p, g: p - 1e-3 * first / size * g, variables["params"], grads)
  assert gradient(step, jax.random.key(0))[0][0] < first
