"""What is special in U-Net, U-Net++ and Attention U-Net."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from medlitenet_jax.models.attention_unet import GridCoefficients
from medlitenet_jax.models.blocks import Coefficients, DoublingConv
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.models.unet_plus_plus import Node, UNetPlusPlus, mean_probability


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


# Zeros before and after, of the rows and columns that the stride has spread out.
@pytest.mark.parametrize(("side", "zeros"), [(2, (1, 1)), (3, (1, 2)), (4, (2, 2))])
def test_a_doubling_convolution_is_the_transposed_one(side, zeros, randomise):
  x, ours = normal(2, 3, 5, 4), DoublingConv(6, side)
  theirs = nn.ConvTranspose(6, (side, side), (2, 2), padding=(zeros, zeros))
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
  model = UNetPlusPlus(2, batch_norm=True, dropout=0.0)
  variables = randomise(inspect_model(model, 16).shapes)
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

  image = normal(1, 16, 16, 3)
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
  model = UNetPlusPlus(1, dropout=0.0, deep_supervision=True)
  variables = {"params": randomise(inspect_model(model, 16).shapes["params"])}
  image = normal(1, 16, 16, 3)
  trained, seen = jax.jit(
    lambda v: (model.apply(v, image, train=True), model.apply(v, image)["mask"])
  )(variables)
  heads = [trained["mask"], *trained["deep"].values()]
  mean = np.mean([sigmoid(np.asarray(z, np.float64)) for z in heads], axis=0)
  assert len({float(np.sum(z)) for z in heads}) == 4
  np.testing.assert_allclose(sigmoid(seen), mean, rtol=1e-4)
