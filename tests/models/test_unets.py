"""U-Net, U-Net++ and Attention U-Net: their sizes, their switches and what is special in each."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checked_folds import check_folds

from medlitenet_jax.models.attention_unet import Coefficients, GridCoefficients
from medlitenet_jax.models.blocks import DoublingConv
from medlitenet_jax.models.knockout import expand
from medlitenet_jax.models.registry import (
  NETWORKS,
  create_model,
  model_loss_weights,
  model_sizes,
  resolve_model,
)
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.models.unet_plus_plus import Node, mean_probability
from medlitenet_jax.system.errors import InputError

# Exact numbers of parameters, those of the published networks.
PARAMETERS = {
  ("unet", "base"): 31_037_633,
  ("unet", "bilinear"): 17_262_977,
  ("unet_plus_plus", "base"): 9_042_177,
  ("unet_plus_plus", "batch_norm"): 9_163_329,
  ("attention_unet", "base"): 34_878_573,
  ("attention_unet", "oktay"): 35_202_956,
  ("attention_unet", "oktay_2"): 8_808_396,
  ("attention_unet", "oktay_4"): 2_205_932,
}
# One of each plan, for what is compiled.
PLANS = [
  ("unet", {}),
  ("unet", {"bilinear": True}),
  ("unet_plus_plus", {"deep_supervision": True}),
  ("unet_plus_plus", {"batch_norm": True, "dropout": 0.0}),
  ("attention_unet", {}),
  ("attention_unet", {"grid": True}),
]
NAMES = ("unet", "unet_plus_plus", "attention_unet")


def fields(name, variant="base", **own):
  return {"name": name, "variant": variant, name: own}


def small(name, dtype=jnp.float32, **own):
  return create_model(fields(name, **{"width": 4, **own}), dtype)


def parameters_of(model):
  """Sizes of the parameters by path."""
  leaves = jax.tree_util.tree_leaves_with_path(inspect_model(model, 32).shapes["params"])
  return {"/".join(key.key for key in path): leaf.size for path, leaf in leaves}


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("name", "variant"), PARAMETERS)
def test_parameter_counts(name, variant):
  model = create_model(fields(name, variant), jnp.float32)
  assert sum(parameters_of(model).values()) == PARAMETERS[name, variant]


def test_every_variant_is_counted():
  assert {(name, variant) for name in NAMES for variant in NETWORKS[name].variants} == set(
    PARAMETERS
  )


@pytest.mark.parametrize(("name", "own"), PLANS)
def test_outputs(name, own):
  image = jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.float32)
  variables = inspect_model(small(name, **own), 32).shapes
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
  seen = {
    dtype: jax.eval_shape(small(name, dtype, **own).apply, variables, image)
    for dtype in (jnp.float32, jnp.bfloat16)
  }
  step = functools.partial(
    small(name, jnp.bfloat16, **own).apply,
    train=True,
    mutable=["batch_stats"],
    rngs={"dropout": jax.random.key(0)},
  )
  trained, _ = jax.eval_shape(step, variables, image)
  deep = trained.pop("deep", {})
  assert set(trained) == {"mask"}
  assert set(deep) == ({"head1", "head2", "head3"} if own.get("deep_supervision") else set())
  for found in seen.values():
    assert set(found) == {"mask", "features"}
    assert found["features"].shape == (2, 2 * 15 * 4)  # of 4 + 8 + 16 + 32 channels
  for logits in (trained["mask"], *deep.values(), *(found["mask"] for found in seen.values())):
    assert logits.shape == (2, 32, 48, 1) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(24, 32), (32, 8), (0, 16), (100, 64)])
def test_other_sizes_are_refused(name, size):
  with pytest.raises(ValueError, match="multiples of 16 from 16 up"):
    model_sizes(resolve_model(fields(name))).check(*size)
  with pytest.raises(ValueError, match="multiples of 16 from 16 up"):
    jax.eval_shape(small(name).init, jax.random.key(0), jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize(("name", "own"), PLANS)
def test_the_smallest_size_is_taken(name, own):
  image, model = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32), small(name, **own)
  found = jax.eval_shape(model.apply, inspect_model(model, 32).shapes, image)
  assert found["mask"].shape == (1, 16, 16, 1)


@pytest.mark.parametrize(
  ("name", "field", "value"),
  [
    ("unet", "width", 0),
    ("unet", "width", 1.5),
    ("unet_plus_plus", "width", 5000),
    ("unet_plus_plus", "dropout", 1.0),
    ("unet_plus_plus", "dropout", "half"),
    ("attention_unet", "width", 7),
    ("attention_unet", "gate", True),
  ],
)
def test_wrong_values_are_refused(name, field, value):
  with pytest.raises(InputError, match=f"config.model.*({field}|wrong type)"):
    resolve_model(fields(name, **{field: value}))


def test_a_bilinear_unet_enlarges_without_parameters_and_is_narrower():
  whole, bilinear = parameters_of(small("unet")), parameters_of(small("unet", bilinear=True))
  assert {p for p in whole if p not in bilinear} == {
    f"up{stage}/{leaf}" for stage in (1, 2, 3, 4) for leaf in ("kernel", "bias")
  }
  assert set(bilinear) < set(whole)
  changed = {p.split("/")[0] for p in bilinear if bilinear[p] != whole[p]}
  # The bridge ends with half; so do the first stages, the last of which hands fewer to the fourth.
  assert changed == {"bridge", "decoder1", "decoder2", "decoder3"}


def test_deep_supervision_adds_three_heads_and_a_term():
  whole = create_model(fields("unet_plus_plus"), jnp.float32)
  deep = create_model(fields("unet_plus_plus", deep_supervision=True), jnp.float32)
  added = {p: n for p, n in parameters_of(deep).items() if p not in parameters_of(whole)}
  assert added == {f"head{i}/{p}": n for i in (1, 2, 3) for p, n in (("kernel", 32), ("bias", 1))}
  assert sum(parameters_of(deep).values()) == 9_042_276
  for own, weight in (({}, 0.0), ({"deep_supervision": True}, 1.0)):
    resolved = resolve_model(fields("unet_plus_plus", **own))
    assert model_loss_weights(resolved) == {"deep": weight}


def test_batch_norm_replaces_transposed_convolutions_and_adds_norms():
  plain = set(parameters_of(small("unet_plus_plus")))
  normed = set(parameters_of(small("unet_plus_plus", batch_norm=True)))
  assert {path.split("/")[0][:2] for path in plain - normed} == {"up"}
  assert {path.split("/")[1][:4] for path in normed - plain} == {"norm"}
  assert len(normed - plain) == 15 * 2 * 2 and len(plain - normed) == 10 * 2


@pytest.mark.parametrize(("grid", "gates"), [(False, 4), (True, 3)])
def test_each_gate_can_be_silenced(grid, gates):
  paths = inspect_model(small("attention_unet", grid=grid), 32).paths
  found = expand(NETWORKS["attention_unet"].knockouts, paths)
  singles = [f"gate{i}" for i in range(1, gates + 1)]
  assert set(found) == {"gates", "skips", *singles, *(f"{gate}/coefficients" for gate in singles)}


def test_a_doubling_convolution_is_the_transposed_one(randomise):
  x = normal(2, 3, 5, 4)
  ours, theirs = DoublingConv(6), nn.ConvTranspose(6, (2, 2), (2, 2), padding="VALID")
  shapes, same = (jax.eval_shape(m.init, jax.random.key(0), x) for m in (ours, theirs))
  assert shapes == same
  variables = randomise(shapes)
  np.testing.assert_allclose(
    ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5
  )


def _normed(x, variables, name):
  """A 1x1 convolution and its BatchNorm with running statistics, in NumPy."""
  own, norm = (variables["params"][n] for n in (name, f"{name}_norm"))
  stats = variables["batch_stats"][f"{name}_norm"]
  y = x @ own["kernel"][0, 0] + own["bias"]
  return (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]


def test_coefficients_follow_their_equation(randomise):
  skip, signal = normal(2, 3, 4, 6), normal(2, 3, 4, 5, seed=1)
  module = Coefficients(3)
  run = functools.partial(module.apply, train=False)
  init = functools.partial(module.init, train=False)
  variables = randomise(jax.eval_shape(init, jax.random.key(0), skip, signal))
  both = _normed(skip, variables, "skip") + _normed(signal, variables, "signal")
  expected = sigmoid(_normed(np.maximum(both, 0), variables, "psi"))
  found = jax.jit(run)(variables, skip, signal)
  assert found.shape == (2, 3, 4, 1) and np.std(expected) > 0.05
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_grid_coefficients_follow_their_equation(randomise):
  skip, signal = normal(2, 4, 6, 3), normal(2, 2, 3, 5, seed=1)
  module = GridCoefficients()
  variables = randomise(jax.eval_shape(module.init, jax.random.key(0), skip, signal))
  own = variables["params"]
  squares = skip.reshape(2, 2, 2, 3, 2, 3)
  both = np.einsum("bhpwqc,pqcf->bhwf", squares, own["skip"]["kernel"])
  both = both + signal @ own["signal"]["kernel"][0, 0] + own["signal"]["bias"]
  score = np.maximum(both, 0) @ own["psi"]["kernel"][0, 0] + own["psi"]["bias"]
  coarse = sigmoid(score)[..., 0]
  rows, columns = ((np.arange(2 * n) + 0.5) / 2 - 0.5 for n in (2, 3))
  tall = np.stack(
    [[np.interp(rows, np.arange(2), column) for column in image.T] for image in coarse]
  )  # [B, w, H]
  expected = np.stack(
    [[np.interp(columns, np.arange(3), row) for row in image.T] for image in tall]
  )
  found = jax.jit(module.apply)(variables, skip, signal)
  assert np.std(expected) > 0.02
  np.testing.assert_allclose(found[..., 0], expected, rtol=1e-4, atol=1e-5)


def test_nodes_see_their_chain_and_the_node_below(randomise):
  """x(i, j) of [x(i, 0) to x(i, j - 1), enlarged x(i + 1, j - 1)]."""
  model = small("unet_plus_plus", width=2, batch_norm=True, dropout=0.0)
  variables = randomise(inspect_model(model, 32).shapes)
  inputs, outputs = {}, {}

  def note(next_call, args, kwargs, context):
    y = next_call(*args, **kwargs)
    if isinstance(context.module, Node):
      place = tuple(map(int, context.module.name[1:].split("_")))
      inputs[place], outputs[place] = args[0], y
    return y

  @jax.jit
  def look(image):
    with nn.intercept_methods(note):
      model.apply(variables, image)
    return dict(inputs), dict(outputs)

  image = normal(1, 32, 32, 3)
  seen, said = jax.device_get(look(image))
  assert set(said) == {(i, j) for i in range(5) for j in range(5 - i)}
  for (level, place), x in seen.items():
    if place:
      below = said[level + 1, place - 1]
      side = below.shape[1]
      weights = np.maximum(
        0, 1 - np.abs(np.linspace(0, side - 1, 2 * side)[:, None] - np.arange(side))
      )
      enlarged = np.einsum("Hh,bhwc,Ww->bHWc", weights, below, weights)
      expected = np.concatenate([*(said[level, j] for j in range(place)), enlarged], -1)
    elif level:
      above = said[level - 1, 0]
      b, h, w, c = above.shape
      expected = above.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    else:
      expected = image
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4, err_msg=f"{level} {place}")


def test_mean_probability():
  """Also where float32 has no probability but 0 or 1."""
  logits = [np.append(normal(40, seed=seed) * 3, far) for seed, far in enumerate((1e4, -1e4, 300))]
  logits = [np.append(z, 1e4).astype(np.float32) for z in logits]
  mean = np.mean([1 / (1 + np.exp(-np.clip(z.astype(float), -500, 500))) for z in logits], axis=0)
  found = np.asarray(jax.jit(mean_probability)(logits))
  np.testing.assert_allclose(sigmoid(found[:-1]), mean[:-1], rtol=1e-5)
  np.testing.assert_allclose(found[-2:], [np.log(2), 1e4], rtol=1e-5)


@pytest.mark.parametrize(("name", "own"), PLANS)
def test_norms_fold_into_the_convolutions_that_they_follow(name, own):
  check_folds(small(name, **own))


@pytest.mark.parametrize(("name", "own"), PLANS)
def test_every_parameter_learns(name, own, randomise):
  model = small(name, **own)
  structure = inspect_model(model, 32)
  variables = {group: tree for group, tree in randomise(structure.shapes).items() if tree}
  image, truth = normal(2, 32, 32, 3), (normal(2, 32, 32, 1, seed=1) > 0).astype(np.float32)

  @jax.jit
  def gradient(variables):
    def loss(params):
      outputs, updated = model.apply(
        {**variables, "params": params},
        image,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
      )
      logits = [outputs["mask"], *outputs.get("deep", {}).values()]
      return sum(jnp.mean((z - truth) ** 2) for z in logits), updated

    return jax.grad(loss, has_aux=True)(variables["params"])

  grads, updated = gradient(variables)
  # The norm after a convolution takes its bias away again, and one that came in by 1x1.
  idle = {"/".join((*fold.convolution, "bias")) for fold in structure.folds}
  idle |= {f"gate{i}/out_norm/bias" for i in (1, 2, 3)}
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    path = "/".join(key.key for key in path)
    assert np.all(np.isfinite(leaf)), path
    assert np.any(np.abs(leaf) > 1e-8) or path in idle, path
  for before, after in zip(
    jax.tree.leaves(variables.get("batch_stats", {})),
    jax.tree.leaves(updated.get("batch_stats", {})),
    strict=True,
  ):
    assert np.any(before != after)


def test_nodes_begin_with_as_much_variance_as_they_are_given():
  x = normal(1, 16, 16, 80)
  node = Node(16)
  params = jax.jit(functools.partial(node.init, train=False))(jax.random.key(0), x)
  y = jax.jit(functools.partial(node.apply, train=False))(params, x)
  assert 0.6 < np.mean(y**2) / np.mean(x**2) < 1.6


def test_dropout_acts_in_training_alone(randomise):
  node, x = Node(4, dropout=0.5), normal(1, 6, 6, 3)
  variables = randomise(node.init(jax.random.key(0), x, train=False))
  first, second = (
    node.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 2)
  )
  assert np.any(first != second)
  whole = node.apply(variables, x, train=False)
  none = node.clone(dropout=0.0).apply(variables, x, train=True)
  np.testing.assert_array_equal(whole, none)


def test_deep_supervision_scores_by_the_mean_of_the_heads(randomise):
  """The three heads of training, and that of the mask, make the mask of inference."""
  model = small("unet_plus_plus", width=1, deep_supervision=True, dropout=0.0)
  variables = {"params": randomise(inspect_model(model, 16).shapes["params"])}
  image = normal(1, 16, 16, 3)
  trained, seen = jax.jit(
    lambda v: (model.apply(v, image, train=True), model.apply(v, image)["mask"])
  )(variables)
  heads = [trained["mask"], *trained["deep"].values()]
  mean = np.mean([sigmoid(np.asarray(z, np.float64)) for z in heads], axis=0)
  assert len({float(np.sum(z)) for z in heads}) == 4
  np.testing.assert_allclose(sigmoid(seen), mean, rtol=1e-4)
