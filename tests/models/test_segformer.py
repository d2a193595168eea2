"""What is special in SegFormer: its coarser keys and its decoder."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.models.layers import Norm
from medlitenet_jax.models.segformer import Decoder, EfficientAttention, Encoder, SegFormer
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.models.tokens import attend


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


def test_the_decoder_joins_the_coarsest_map_first(randomise):
  maps, module = [normal(1, 8 // 2**i, 8 // 2**i, 2 + i) for i in range(4)], Decoder(3)

  def enlarged(x):
    side = len(x[0])
    places = np.clip((np.arange(8) + 0.5) * side / 8 - 0.5, 0, side - 1)
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side)))
    return np.einsum("Hh,bhwc,Ww->bHWc", weights, x, weights)

  init = functools.partial(module.init, train=False)
  variables = randomise(jax.eval_shape(init, jax.random.key(0), maps))
  params, stats = variables["params"], variables["batch_stats"]["fuse_norm"]
  wide = [enlarged(dense(maps[i], params[f"stage{i + 1}"])) for i in (3, 2, 1, 0)]
  y = np.concatenate(wide, -1) @ params["fuse"]["kernel"][0, 0]
  y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["fuse_norm"]["scale"]
  expected = np.maximum(y + params["fuse_norm"]["bias"], 0)
  found = jax.jit(functools.partial(module.apply, train=False))(variables, maps)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_norms_and_the_rates_of_left_out_branches():
  epsilons, rates = set(), {}

  def note(next_call, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.LayerNorm | Norm):
      epsilons.add((re.sub(r"^stage\d_", "", module.name), module.epsilon))
    if hasattr(module, "drop_rate"):
      rates[module.name] = module.drop_rate
    return next_call(*args, **kwargs)

  model = SegFormer((4, 4, 6, 8), (1, 2, 1, 1), (1, 2, 3, 2), 2, decoder_dim=6, drop_path=0.2)
  with nn.intercept_methods(note):
    inspect_model(model, 32)
  assert epsilons == {
    *((f"{name}_norm", 1e-5) for name in ("embed", "reduce", "fuse")),
    *((name, 1e-6) for name in ("attention_norm", "mlp_norm", "norm")),
  }
  blocks = ("stage1_block1", "stage2_block1", "stage2_block2", "stage3_block1", "stage4_block1")
  expected = dict(zip(blocks, np.arange(5) * 0.05, strict=True))
  assert rates == pytest.approx(expected)
