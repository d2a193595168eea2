"""Folded networks against the original networks, with statistics as after training."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import MODEL, compiled_as_by_launch, shapes_of

from configs.base import get_config
from medlitenet_jax.models.fold import Fold, fold_batch_norm, fold_loaded
from medlitenet_jax.models.layers import ASPP, MBConv, Norm, Pointwise, SeparableConv
from medlitenet_jax.models.medlitenet.boundary import BoundaryGate
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.models.structure import inspect_model


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def init(module, x, **options):
  return jax.jit(functools.partial(module.init, **options))(jax.random.key(0), x)


def names(tree):
  return {key.key for path, _ in jax.tree_util.tree_leaves_with_path(tree) for key in path}


def small_network(**change):
  fields = get_config().model.to_dict()
  return create_model({**fields, "medlitenet": {**MODEL, **change}}, jnp.float32)


class Wrapped(nn.Module):
  """A block that can be called like a network."""

  block: nn.Module

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    return self.block(x, train=train)


def folded_variables(model, variables, size):
  return fold_batch_norm(variables, inspect_model(model, size).folds)


@pytest.mark.parametrize(
  "block", [MBConv(6, stride=2), MBConv(4), SeparableConv(6), ASPP(6, 5, (1, 2))], ids=str
)
def test_a_folded_block_computes_the_same(randomise, block):
  block, x = Wrapped(block), normal(2, 8, 8, 3)
  variables = randomise(shapes_of(block, x))
  folded = folded_variables(block, variables, 8)
  assert set(folded) == {"params"} and "scale" not in names(folded)
  expected = block.apply(variables, x)
  np.testing.assert_allclose(block.apply(folded, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [{}, {"aspp": False, "mixer": False}], ids=str)
def test_a_folded_network_gives_the_same_probabilities(randomise, change):
  model = small_network(**change)
  x = normal(2, 64, 64, 3)
  variables = randomise(shapes_of(model, x))

  def probs(variables, x):
    folded = folded_variables(model, variables, 64)
    return *(jax.nn.sigmoid(model.apply(own, x)["mask"]) for own in (variables, folded)), folded

  with compiled_as_by_launch():
    expected, found, folded = jax.jit(probs)(variables, x)
  assert np.std(expected) > 0.02
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  assert set(folded) == {"params"}
  assert not {"scale", "mean", "var"} & names(folded["params"]["encoder"])


def test_loaded_variables_are_folded_alike(randomise):
  model = small_network()
  variables = randomise(shapes_of(model, normal(2, 64, 64, 3)))
  folds = inspect_model(model, 64).folds
  with compiled_as_by_launch():
    expected = jax.jit(functools.partial(fold_batch_norm, folds=folds))(variables)
    found = fold_loaded(variables, folds)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
  jax.tree.map(close, found, expected)


def test_folding_saves_one_multiplication_per_value(randomise):
  """The folded program has no statistics and no products with them."""
  block, x = Wrapped(SeparableConv(6)), normal(1, 8, 8, 3)
  variables = randomise(shapes_of(block, x))
  count = {
    name: str(jax.make_jaxpr(lambda own: block.apply(own, x))(own)).count(" mul ")
    for name, own in (("whole", variables), ("folded", folded_variables(block, variables, 8)))
  }
  assert count["folded"] < count["whole"]


class Mixed(nn.Module):
  """A convolution with a bias and its norm, and a norm whose input is a sum."""

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    y = Pointwise(6, name="first")(x)
    y = Norm("first", name="after")(y, train=train)
    y = y + Pointwise(6, use_bias=False, name="second")(x)
    return Norm(name="alone")(y, train=train)


def test_a_norm_without_folds_into_stays_and_a_bias_is_folded_too(randomise):
  model, x = Mixed(), normal(2, 8, 8, 3)
  variables = randomise(shapes_of(model, x))
  folded = folded_variables(model, variables, 8)
  assert set(folded["batch_stats"]) == {"alone"} and set(folded["params"]["after"]) == {"bias"}
  assert "scale" in folded["params"]["alone"]
  np.testing.assert_allclose(
    model.apply(folded, x), model.apply(variables, x), rtol=1e-4, atol=1e-4
  )


def test_a_network_without_norms_stays_as_it_is():
  variables = init(BoundaryGate(), normal(1, 4, 4, 3))
  assert fold_batch_norm(variables, ()) == variables


def test_a_norm_whose_convolution_is_missing_is_an_error():
  variables = init(Norm(), normal(1, 4, 4, 3), train=False)
  tree = {group: {"stray": leaves} for group, leaves in variables.items()}
  with pytest.raises(KeyError, match="convolution"):
    fold_batch_norm(tree, [Fold(("stray",), ("convolution",), 1e-5)])
