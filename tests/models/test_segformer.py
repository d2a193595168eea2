"""What is special in SegFormer: its coarser keys and its decoder."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checked_learning import check_learning

from medlitenet_jax.models.fold import Fold, fold_batch_norm
from medlitenet_jax.models.layers import Norm
from medlitenet_jax.models.segformer import Decoder, EfficientAttention, Encoder, SegFormer
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.models.tokens import attend

MODEL = SegFormer((4, 4, 6, 8), (1, 1, 1, 1), (1, 2, 3, 2), mlp_ratio=2, decoder_dim=6)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(x, params):
  return x @ params["kernel"] + params["bias"]


def test_stages_and_their_keys():
  image, keys = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32), {}

  def note(next_call, args, kwargs, context):
    y = next_call(*args, **kwargs)
    if context.module.name == "keys_and_values":
      keys[context.module.path[0]] = y.shape[1:3]
    return y

  encoder = Encoder((4, 4, 6, 8), (1, 1, 1, 1), (1, 2, 3, 2), 2, 0.0)
  with nn.intercept_methods(note):
    init = functools.partial(encoder.init_with_output, train=False)
    maps, _ = jax.eval_shape(init, jax.random.key(0), image)
  assert [x.shape[1:] for x in maps] == [(16, 24, 4), (8, 12, 4), (4, 6, 6), (2, 3, 8)]
  # Those of all stages lie on the grid of the last one.
  assert keys == {f"stage{i}_block1": (2, 3) for i in range(1, 5)}


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_is_its_definition(reduction, randomise):
  x, module = normal(2, 4, 6, 8), EfficientAttention(2, reduction)
  params = randomise(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
  seen = x
  if reduction > 1:
    squares = x.reshape(2, 2, 2, 3, 2, 8)
    seen = np.einsum("bipjqc,pqcd->bijd", squares, params["reduce"]["kernel"])
    seen += params["reduce"]["bias"]
    seen = (seen - seen.mean(-1, keepdims=True)) / np.sqrt(seen.var(-1, keepdims=True) + 1e-5)
    seen = seen * params["reduce_norm"]["scale"] + params["reduce_norm"]["bias"]
  joint = dense(seen, params["keys_and_values"])
  parts = [dense(x, params["query"]), joint[..., :8], joint[..., 8:]]
  y = attend(*(part.reshape(2, -1, 2, 4) for part in parts)).reshape(x.shape)
  np.testing.assert_allclose(
    jax.jit(module.apply)({"params": params}, x), dense(y, params["out"]), rtol=1e-4, atol=1e-5
  )


def test_the_decoder_joins_the_coarsest_map_first_and_its_norm_folds(randomise):
  maps, module = [normal(1, 8 // 2**i, 8 // 2**i, 2 + i) for i in range(4)], Decoder(3)
  init = functools.partial(module.init, train=False)
  variables = randomise(jax.eval_shape(init, jax.random.key(0), maps))
  params, stats = variables["params"], variables["batch_stats"]["fuse_norm"]
  wide = [
    jax.image.resize(dense(maps[i], params[f"stage{i + 1}"]), (1, 8, 8, 3), "bilinear")
    for i in (3, 2, 1, 0)
  ]
  y = np.concatenate(wide, -1) @ params["fuse"]["kernel"][0, 0]
  y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["fuse_norm"]["scale"]
  expected = np.maximum(y + params["fuse_norm"]["bias"], 0)
  folded = fold_batch_norm(variables, [Fold(("fuse_norm",), ("fuse",), 1e-5)])

  @jax.jit
  def run(*networks):
    return [module.apply(own, maps, train=False) for own in networks]

  for found in run(variables, folded):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_norms_and_the_rates_of_left_out_branches():
  epsilons, rates = set(), {}

  def note(next_call, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.LayerNorm | Norm):
      epsilons.add((module.name.split("_", 1)[-1], module.epsilon))
    if hasattr(module, "drop_rate"):
      rates[module.name] = module.drop_rate
    return next_call(*args, **kwargs)

  model = MODEL.clone(depths=(1, 2, 1, 1), drop_path=0.2)
  with nn.intercept_methods(note):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  assert epsilons == {
    *((name, 1e-5) for name in ("embed_norm", "norm")),  # the latter of the decoder's fusion
    *((name, 1e-6) for name in ("norm",)),
  }
  blocks = ("stage1_block1", "stage2_block1", "stage2_block2", "stage3_block1", "stage4_block1")
  expected = dict(zip(blocks, np.arange(5) * 0.05, strict=True))
  assert rates == pytest.approx(expected)


def test_every_parameter_learns_and_a_few_steps_lower_the_loss(randomise):
  model = MODEL.clone(drop_path=0.0)
  # The norm of the fusion takes the biases before it away again. The maps of the frame, of 32
  # pixels, have one key, which the softmax gives all weight whatever it is.
  check_learning(
    model,
    randomise(inspect_model(model, 32).shapes),
    without_gradient=r"^decoder/stage\d/bias$|/attention/query/",
  )
