"""A silenced part is one that adds nothing, and the rest of the network is as it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import REDUCED, resolved

from medlitenet_jax.inference.knockout import create_silenced, network_knockouts
from medlitenet_jax.models.forward import lesion_probs
from medlitenet_jax.models.knockout import even, expand, is_module, unchanged, zero
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.models.structure import inspect_model

SIZE = 64


@pytest.fixture(scope="module")
def network():
  """Model, random variables, photographs, and the maps and figures of every knock-out by name."""
  fields = resolved(
    **REDUCED, model__variant="paper_literal", model__medlitenet__mixer_layers=2
  ).model.to_dict()
  model = create_model(fields, jnp.float32)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ("scale", "var"):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) or 1)).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, inspect_model(model, SIZE).shapes)
  image = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
  knockouts = network_knockouts(model, fields, SIZE)
  maps, figures = create_silenced(model, variables, list(knockouts.values()))({SIZE: image})
  by_name = dict(zip(["whole", *knockouts], np.moveaxis(np.asarray(maps), 1, 0), strict=True))
  return model, variables, image, by_name, figures


def with_zeros(variables, *chosen):
  """The variables with zeros in the parameters whose path holds all parts of one of the choices."""

  def clear(path, leaf):
    names = [key.key for key in path]
    return np.zeros_like(leaf) if any(set(c) <= set(names) for c in chosen) else leaf

  return jax.tree_util.tree_map_with_path(clear, variables)


@pytest.mark.parametrize(
  ("name", "chosen"),
  [
    ("whole", []),
    ("attention", [("attention", "out")]),
    ("mixer/layer2/attention", [("layer2", "attention", "out")]),
    ("token_mlp", [("mlp_out",)]),
    ("boundary_bias", [("boundary_weight",)]),
    ("gate_boundary", [("boundary", "laplacian")]),
    ("boundary", [("boundary", "laplacian"), ("boundary_weight",)]),
    ("gate_context", [("gate", "context"), ("encoder_gate", "context")]),
    (
      "mixer",
      [("align",), ("mix",), ("fine_return",), ("gate", "context"), ("encoder_gate", "context")],
    ),
  ],
)
def test_silencing_does_what_parameters_of_zero_do(network, name, chosen):
  model, variables, image, maps, _ = network
  run = jax.jit(functools.partial(lesion_probs, model))
  expected = run(with_zeros(variables, *chosen), image)
  np.testing.assert_allclose(maps[name], expected, atol=2e-6)
  if name != "whole":
    assert np.abs(maps[name] - maps["whole"]).max() > 1e-4


def test_figures_of_the_forward_pass_are_those_of_each_photograph(network):
  figures = network[-1]
  assert {"mixer/layer1/attention/entropy", "encoder_gate/boundary_share"} <= figures.keys()
  for name, values in figures.items():
    assert values.shape == (2,) and np.isfinite(values).all() and np.all(values > 0), name
  entropy = figures["mixer/layer1/attention/entropy"]
  assert np.all(entropy < 1) and entropy[0] != entropy[1]


def test_what_stands_in_for_an_output():
  x, y = np.ones((1, 2, 2, 3), np.float32), np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
  assert not np.any(zero(x, y)) and np.array_equal(unchanged(x, y), x)
  np.testing.assert_allclose(even(x, y), np.broadcast_to(y.mean((1, 2), keepdims=True), y.shape))
  with pytest.raises(AssertionError):
    unchanged(x[..., :2], y)


def test_single_modules_follow_what_silences_several():
  named = {"all": {"*/b": zero, "c": zero, "e": zero}, "b": {"*/b": zero}, "c2": {"c": zero}}
  found = expand({**named, "d": {"d": zero}}, ["a", "a/b", "x/b", "c", "e"])
  assert list(found) == ["all", "e", "b", "a/b", "x/b", "c2"]
  assert [name for name in found if is_module(name, found[name])] == ["e", "a/b", "x/b"]
