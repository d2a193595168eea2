"""Folded networks against the networks they came from, with statistics as training leaves them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import MODEL, compiled_as_by_launch

from configs.base import get_config
from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.layers import ASPP, MBConv, Norm, SeparableConv
from medlitenet_jax.models.medlitenet.boundary import BoundaryGate
from medlitenet_jax.models.registry import create_model


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def init(module, x, **options):
  return jax.jit(functools.partial(module.init, **options))(jax.random.key(0), x)


def names(tree):
  return {key.key for path, _ in jax.tree_util.tree_leaves_with_path(tree) for key in path}


@pytest.mark.parametrize(
  "block", [MBConv(6, stride=2), MBConv(4), SeparableConv(6), ASPP(6, 5, (1, 2))], ids=str
)
def test_a_folded_block_computes_the_same(randomise, block):
  x = normal(2, 8, 8, 4)
  variables = randomise(init(block, x, train=False))
  folded = fold_batch_norm(variables)
  assert set(folded) == {"params"} and "scale" not in names(folded)
  expected = block.apply(variables, x, train=False)
  np.testing.assert_allclose(block.apply(folded, x, train=False), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [{}, {"aspp": False, "mixer": False}], ids=str)
def test_a_folded_network_gives_the_same_probabilities(randomise, change):
  model = create_model({**get_config().model.to_dict(), **MODEL, **change}, jnp.float32)
  x = normal(2, 64, 64, 3)
  variables = randomise(init(model, x))

  def probs(x):
    both = (variables, fold_batch_norm(variables))
    return [jax.nn.sigmoid(model.apply(own, x)) for own in both]

  with compiled_as_by_launch():
    expected, folded = jax.jit(probs)(x)
  assert np.std(expected) > 0.02
  np.testing.assert_allclose(folded, expected, rtol=0, atol=1e-5)
  assert not {"scale", "mean", "var"} & names(fold_batch_norm(variables)["params"]["encoder"])


def test_folding_needs_one_multiplication_less_for_each_value(randomise):
  """What the fold is for: no statistics are left in the program, nor products with them."""
  block, x = SeparableConv(6), normal(1, 8, 8, 4)
  variables = randomise(init(block, x, train=False))
  count = {
    name: str(jax.make_jaxpr(lambda own: block.apply(own, x, train=False))(own)).count(" mul ")
    for name, own in (("whole", variables), ("folded", fold_batch_norm(variables)))
  }
  assert count["folded"] < count["whole"]


def test_a_network_without_norms_stays_as_it_is():
  gate = BoundaryGate()
  variables = init(gate, normal(1, 4, 4, 3))
  assert fold_batch_norm(variables) == variables


def test_a_norm_without_its_convolution_is_an_error():
  variables = init(Norm(), normal(1, 4, 4, 3), train=False)
  tree = {group: {"stray_norm": leaves} for group, leaves in variables.items()}
  with pytest.raises(KeyError, match="stray"):
    fold_batch_norm(tree)
