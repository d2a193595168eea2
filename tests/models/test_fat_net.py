"""What is special in FAT-Net: the maps that it joins and its adapted skips."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.models.fat_net import (
  Adaptation,
  ChannelGate,
  DecoderStage,
  FATNet,
  ResNet,
  Transformer,
)
from medlitenet_jax.models.fold import Fold, fold_batch_norm
from medlitenet_jax.models.layers import Norm
from medlitenet_jax.models.structure import inspect_model


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_both_branches_end_on_one_grid_and_hold_it_for_any_shape():
  image = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)

  def shapes(module):
    init = functools.partial(module.init_with_output, train=False)
    return jax.eval_shape(init, jax.random.key(0), image)[0]

  maps = shapes(ResNet(4, (1, 1, 1, 1)))
  assert [x.shape[1:] for x in maps] == [(32, 48, 4), (16, 24, 8), (8, 12, 16), (4, 6, 32)]
  assert shapes(Transformer(6, 1, 2, 2)).shape == (1, 4, 6, 6)


def test_tokens_do_not_know_where_they_lie(randomise):
  """Patches that change places take their tokens with them."""
  module, image = Transformer(6, 1, 2, 2), normal(1, 32, 32, 3)
  run = jax.jit(functools.partial(module.apply, train=False))
  init = functools.partial(module.init, train=False)
  variables = randomise(jax.eval_shape(init, jax.random.key(0), image))
  turned = np.roll(image, 16, axis=1)
  np.testing.assert_allclose(
    run(variables, turned), np.roll(run(variables, image), 1, axis=1), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("repeats", [1, 3])
def test_an_adaptation_is_its_definition(repeats, randomise):
  x, module = normal(2, 4, 5, 3), Adaptation(repeats)
  params = randomise(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
  expected = x
  for _ in range(repeats):
    padded = np.pad(expected, ((0, 0), (1, 1), (1, 1), (0, 0)))
    wide = sum(
      padded[:, i : i + 4, j : j + 5] @ params["conv3"]["kernel"][i, j] for i, j in np.ndindex(3, 3)
    )
    narrow = expected @ params["conv1"]["kernel"][0, 0]
    parts = ((wide, "conv3"), (narrow, "conv1"))
    expected = sum(np.maximum(part + params[name]["bias"], 0) for part, name in parts)
  np.testing.assert_allclose(
    jax.jit(module.apply)({"params": params}, x), expected, rtol=1e-4, atol=1e-5
  )


def test_the_gate_is_its_definition(randomise):
  x, module = normal(2, 3, 4, 32), ChannelGate()
  params = randomise(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
  assert {name: set(own) for name, own in params.items()} == {
    "squeeze": {"kernel"},
    "excite": {"kernel"},
  }
  hidden = np.maximum(x.mean((1, 2)) @ params["squeeze"]["kernel"], 0)
  assert hidden.shape == (2, 2)
  gate = 1 / (1 + np.exp(-hidden @ params["excite"]["kernel"]))
  expected = x * gate[:, None, None]
  np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-6)


def test_a_stage_of_the_decoder_is_the_same_once_folded(randomise):
  """A transposed convolution too, whose kernel lies as that of another."""
  x, module = normal(2, 3, 4, 8), DecoderStage(5)
  init = functools.partial(module.init, train=False)
  variables = randomise(jax.eval_shape(init, jax.random.key(0), x))
  pairs = [(("reduce", "norm"), ("reduce", "conv")), (("up_norm",), ("up",))]
  pairs.append((("widen", "norm"), ("widen", "conv")))
  folded = fold_batch_norm(variables, [Fold(*pair, 1e-5) for pair in pairs])
  assert "batch_stats" not in folded

  @jax.jit
  def run(*networks):
    return [module.apply(own, x, train=False) for own in networks]

  plain, other = run(variables, folded)
  assert plain.shape == (2, 6, 8, 5)
  np.testing.assert_allclose(plain, other, rtol=1e-4, atol=1e-5)


def test_adapted_skips_start_about_as_large_as_skips():
  """No norm follows them."""
  x = np.maximum(normal(2, 8, 8, 32), 0)
  y, _ = jax.jit(Adaptation(6).init_with_output)(jax.random.key(0), x)
  assert 0.25 < np.std(y) / np.std(x) < 4


def test_what_norms_add_to_variances():
  epsilons = set()

  def note(next_call, args, kwargs, context):
    if isinstance(context.module, nn.LayerNorm | Norm):
      epsilons.add((type(context.module).__name__, context.module.epsilon))
    return next_call(*args, **kwargs)

  model = FATNet(4, (1, 1, 1, 1), dim=6, layers=1, heads=2, mlp_ratio=2, adaptations=(1, 1, 1))
  with nn.intercept_methods(note):
    inspect_model(model, 16)
  assert epsilons == {("LayerNorm", 1e-6), ("Norm", 1e-5)}
