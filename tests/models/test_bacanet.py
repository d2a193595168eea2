"""What is special in BACANet's reconstruction: its published blocks and its boundary maps."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from medlitenet_jax.models.bacanet import BACANet, Block, SelectiveKernels, StripAttention
from medlitenet_jax.models.blocks import Coefficients
from medlitenet_jax.models.fold import Fold, fold_batch_norm
from medlitenet_jax.models.structure import inspect_model


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def pointwise(x, params):
  return x @ params["kernel"][0, 0] + params["bias"]


def convolve(x, params, dilation=1):
  """A convolution in NumPy; depthwise where its kernel has one input."""
  kernel = params["kernel"]
  height, width = kernel.shape[:2]
  reach = [dilation * (side // 2) for side in (height, width)]
  padded = np.pad(x, ((0, 0), *((r, r) for r in reach), (0, 0)))
  total = params["bias"]
  for i, j in np.ndindex(height, width):
    top, left = dilation * i, dilation * j
    seen = padded[:, top : top + x.shape[1], left : left + x.shape[2]]
    depthwise = kernel.shape[2] == 1
    total = total + (seen * kernel[i, j, 0] if depthwise else seen @ kernel[i, j])
  return total


def run(module, variables, *args, **kwargs):
  return jax.jit(functools.partial(module.apply, **kwargs))(variables, *args)


def test_strip_attention_is_its_definition(randomise):
  x, module = normal(2, 5, 6, 3), StripAttention()
  params = randomise(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
  seen = total = convolve(x, params["square"])
  for length in (7, 11, 21):
    across, down = params[f"strip{length}_across"], params[f"strip{length}_down"]
    assert across["kernel"].shape == (1, length, 1, 3) and down["kernel"].shape[:2] == (length, 1)
    total = total + convolve(convolve(seen, across), down)
  expected = x * pointwise(total, params["mix"])
  np.testing.assert_allclose(run(module, {"params": params}, x), expected, rtol=1e-3, atol=1e-4)


def test_selective_kernels_are_their_definition(randomise):
  x, module = normal(2, 6, 5, 4), SelectiveKernels()
  params = randomise(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
  near = convolve(x, params["near"])
  far = pointwise(convolve(near, params["far"], dilation=3), params["far_half"])
  near = pointwise(near, params["near_half"])
  both = np.concatenate([near, far], -1)
  summary = np.stack([both.mean(-1), both.max(-1)], -1)
  weights = sigmoid(convolve(summary, params["choose"]))
  expected = x * pointwise(near * weights[..., :1] + far * weights[..., 1:], params["out"])
  np.testing.assert_allclose(run(module, {"params": params}, x), expected, rtol=1e-3, atol=1e-4)


def test_coefficients_take_a_third_signal_and_fold(randomise):
  given, module = [normal(2, 3, 4, c, seed=c) for c in (4, 5, 3)], Coefficients(2)
  init = functools.partial(module.init, train=False)
  variables = randomise(jax.eval_shape(init, jax.random.key(0), *given))
  params, stats = variables["params"], variables["batch_stats"]
  assert params["psi"]["kernel"].shape == (1, 1, 2, 1)

  def normed(x, name):
    own, norm = stats[f"{name}_norm"], params[f"{name}_norm"]
    y = (pointwise(x, params[name]) - own["mean"]) / np.sqrt(own["var"] + 1e-5)
    return y * norm["scale"] + norm["bias"]

  names = ("skip", "signal", "boundary")
  joined = sum(normed(x, name) for x, name in zip(given, names, strict=True))
  expected = sigmoid(normed(np.maximum(joined, 0), "psi"))
  folds = [Fold((f"{name}_norm",), (name,), 1e-5) for name in (*names, "psi")]
  for own in (variables, fold_batch_norm(variables, folds)):
    found = module.apply(own, *given, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_residual_branches_start_small():
  @jax.jit
  def scales(key):
    params = Block(2, 0.0).init(key, normal(1, 4, 4, 6), train=False)["params"]
    return params["attention_scale"], params["mlp_scale"]

  np.testing.assert_allclose(scales(jax.random.key(0)), np.full((2, 6), 1e-2))


def test_norms_of_blocks_do_not_fold_and_the_rates_of_their_left_out_branches_grow():
  rates, epsilons = {}, set()

  def note(next_call, args, kwargs, context):
    if isinstance(context.module, Block):
      rates[context.module.name] = context.module.drop_rate
    if isinstance(context.module, nn.LayerNorm):
      epsilons.add(context.module.epsilon)
    return next_call(*args, **kwargs)

  widths = ((4, 4, 6, 8), (1, 2, 1, 1), (2, 1, 1, 1), (6, 4, 4))
  model = BACANet(*widths, drop_path=0.2, form="library")  # traces fastest
  with nn.intercept_methods(note):
    structure = inspect_model(model, 32)
  blocks = ("stage1_block1", "stage2_block1", "stage2_block2", "stage3_block1", "stage4_block1")
  assert rates == pytest.approx(dict(zip(blocks, np.arange(5) * 0.05, strict=True)))
  assert epsilons == {1e-5}
  norms = jax.tree_util.tree_leaves_with_path(structure.shapes["batch_stats"])
  paths = {tuple(key.key for key in path[:-1]) for path, _ in norms}
  assert paths - {fold.norm for fold in structure.folds} == {
    ("encoder", block, f"{part}_norm") for block in blocks for part in ("attention", "mlp")
  }
