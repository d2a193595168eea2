"""Global context at the bottleneck: the cross-scale token mixer and the local-global fusion."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medlitenet_jax.models import ops
from medlitenet_jax.models.layers import Linear, Pointwise, average_pool, note, parameter

MAX_TEMPERATURE = 20.0  # bound of the logits of normalised attention


def sincos_positions(height: int, width: int, dim: int, cycles: float = 16.0) -> np.ndarray:
  """Positional encoding of a grid: sin y, cos y, sin x and cos x, a quarter of the channels each.

  Positions are relative to the frame (0 to 1), so a place in the photograph keeps its encoding when
  the input size changes.

  Args:
    height: rows of the grid.
    width: columns of the grid.
    dim: channels, a multiple of 4.
    cycles: highest frequency, in cycles a frame; the lowest is half a cycle. A grid of n places
      tells frequencies up to n / 2 apart.

  Returns:
    [height * width, dim] float32, in row-major order.

  Raises:
    ValueError: if dim is not a multiple of 4.

  Reference: Vaswani et al., 2017, section 3.5, in two dimensions.
  """
  if dim % 4:
    raise ValueError(f"the positional encoding needs a multiple of 4 channels, not {dim}")
  frequencies = 2 * np.pi * 2.0 ** np.linspace(-1, np.log2(cycles), dim // 4)
  y, x = ((np.arange(n) + 0.5) / n for n in (height, width))
  y, x = (grid.reshape(-1, 1) * frequencies for grid in np.meshgrid(y, x, indexing="ij"))
  return np.concatenate([np.sin(y), np.cos(y), np.sin(x), np.cos(x)], axis=1).astype(np.float32)


class BoundaryBiasedAttention(nn.Module):
  """Multi-head self-attention that favours tokens on a boundary (`boundary`, b below).

    softmax(q k^T / sqrt(d_head) + w_head * b_key) v

  Normalised, queries and keys have the length 1, and q k^T is multiplied by a learned temperature
  of each head, which stays under `MAX_TEMPERATURE`. Logits that grow without bound make the softmax
  choose one key, and then nothing else moves it (query-key normalisation, Henry et al., 2020).

  Attributes:
    heads: attention heads; must divide the channels.
    normalised: whether queries and keys are.
    contrast: whether queries and keys come from tokens that are standardised over the frame, each
      channel by itself: what differs little in a photograph of low contrast then differs as much
      as elsewhere.
    dtype: compute dtype; the softmax is computed in float32.
  """

  heads: int
  normalised: bool = False
  contrast: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, boundary=None):
    """Applies attention.

    Args:
      x: [B, N, D] tokens.
      boundary: [B, N] boundary strength of each token, or None for plain self-attention.

    Returns:
      [B, N, D] in the compute dtype.
    """
    chex.assert_rank(x, 3)
    if boundary is not None:
      chex.assert_shape(boundary, x.shape[:2])
    b, n, d = x.shape
    if self.contrast:
      guide = Linear(2 * d, self.dtype, name="queries_and_keys")(_standardised(x))
      q, k = jnp.split(guide.reshape(b, n, 2 * self.heads, -1), 2, axis=2)
      v = Linear(d, self.dtype, name="values")(x).reshape(b, n, self.heads, -1)
    else:
      qkv = Linear(3 * d, self.dtype, name="qkv")(x).reshape(b, n, 3, self.heads, -1)
      q, k, v = (qkv[:, :, i] for i in range(3))
    # Written out because jax.nn.dot_product_attention does not support float16 on a CPU.
    if self.normalised:
      q, k = (_unit_length(part).astype(self.dtype) for part in (q, k))
    logits = ops.wide_einsum("bnhd,bmhd->bhnm", q, k)
    if self.normalised:
      temperature = parameter(self, "temperature", nn.initializers.zeros_init(), (self.heads,))
      logits *= MAX_TEMPERATURE * nn.sigmoid(temperature)[:, None, None]
    else:
      logits /= np.sqrt(d // self.heads)
    if boundary is not None:
      weight = parameter(self, "boundary_weight", nn.initializers.constant(0.5), (self.heads,))
      logits += weight[:, None, None] * boundary[:, None, None, :]
    attention = nn.softmax(logits)
    note(self, "entropy", lambda: _entropy(attention))
    attention = attention.astype(self.dtype)
    y = ops.wide_einsum("bhnm,bmhd->bnhd", attention, v).astype(self.dtype)
    return Linear(d, self.dtype, name="out")(y.reshape(b, n, d))


def _standardised(x):
  """[B, N, D] tokens, float32, with a mean of 0 and a deviation of 1 over the tokens."""
  x = x.astype(jnp.float32)
  x -= jnp.mean(x, axis=1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=1, keepdims=True) + 1e-5)


def _unit_length(x):
  """Vectors along the last axis, float32, with a length of 1."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _entropy(attention):
  """Mean entropy of [B, H, N, M] attention, as a fraction of that of a uniform one: [B]."""
  bits = -jnp.sum(attention * jnp.log(jnp.maximum(attention, 1e-30)), axis=-1)
  return jnp.mean(bits, axis=(1, 2)) / np.log(attention.shape[-1])


def _relative_size(branch, stream):
  """Root mean square of a branch over that of what it is added to, both [B, ...]: [B]."""
  squares = (
    jnp.mean(jnp.square(x.astype(jnp.float32)), axis=tuple(range(1, x.ndim)))
    for x in (branch, stream)
  )
  return jnp.sqrt(next(squares) / next(squares))


class TransformerLayer(nn.Module):
  """Pre-norm layer: attention and feed-forward, each with LayerNorm and a residual connection.

  Attributes:
    heads: attention heads.
    mlp_ratio: ratio of the feed-forward network's hidden channels to the token's channels.
    dropout: rate on both residual branches in training.
    normalised: whether the attention normalises queries and keys.
    contrast: whether they come from standardised tokens.
    attends: whether there is attention; without it each token is by itself.
    dtype: compute dtype; LayerNorm computes in float32.
  """

  heads: int
  mlp_ratio: int
  dropout: float = 0.0
  normalised: bool = False
  contrast: bool = False
  attends: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, boundary=None, *, train: bool):
    """Maps [B, N, D] tokens, with [B, N] boundary strengths or None, to [B, N, D]."""
    drop = nn.Dropout(self.dropout, deterministic=not train)
    if self.attends:
      y = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x)
      y = BoundaryBiasedAttention(
        self.heads, self.normalised, self.contrast, self.dtype, name="attention"
      )(y, boundary)
      note(self, "attention_size", functools.partial(_relative_size, y, x))
      x = x + drop(y)
    y = nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(x)
    y = Linear(self.mlp_ratio * x.shape[-1], self.dtype, name="mlp_in")(y)
    y = Linear(x.shape[-1], self.dtype, name="mlp_out")(nn.gelu(y))
    note(self, "mlp_size", functools.partial(_relative_size, y, x))
    return x + drop(y)


class CrossScaleMixer(nn.Module):
  """Lets the tokens of the two deepest encoder stages attend to each other (paper III-C, Fig. 4).

  Both maps are projected to `dim` channels and get a positional encoding plus a learned code for
  their scale. The joint sequence passes through the transformer layers.

  Attributes:
    dim: channels of a token.
    layers: transformer layers.
    heads: attention heads.
    mlp_ratio: ratio of the feed-forward networks' hidden channels to `dim`.
    dropout: rate in training.
    cross_scale: whether stage-3 tokens take part.
    attends: whether the layers have attention.
    pooled: whether the stage-3 map is first average-pooled to the grid of stage 4.
    normalised: whether a LayerNorm precedes the positional encoding, and queries and keys are
      normalised.
    contrast: whether queries and keys come from standardised tokens.
    cycles: highest frequency of the positional encoding, in cycles a frame.
    form: form of the operations.
    dtype: compute dtype.
  """

  dim: int
  layers: int
  heads: int
  mlp_ratio: int
  dropout: float = 0.0
  cross_scale: bool = True
  attends: bool = True
  pooled: bool = True
  normalised: bool = False
  contrast: bool = False
  cycles: float = 16.0
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, deep, fine, boundary=None, *, train: bool):
    """Mixes the tokens of both scales.

    Args:
      deep: [B, h, w, C4] stage-4 features.
      fine: [B, 2h, 2w, C3] stage-3 features.
      boundary: [B, k h, k w, 1] strength of the boundary, for any integer k, or None.
      train: whether dropout acts.

    Returns:
      context: [B, h, w, dim], the global features F_trans.
      fine_context: the mixed stage-3 tokens, [B, 2h, 2w, dim] or, pooled, [B, h, w, dim]; None
        without `cross_scale`.
    """
    chex.assert_rank([deep, fine], 4)
    b, h, w, _ = deep.shape
    if boundary is not None:
      chex.assert_shape(boundary, (b, None, None, 1))
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    maps = [Pointwise(self.dim, name="project_deep", **common)(deep)]
    if self.cross_scale:
      source = average_pool(fine, fine.shape[1] // h) if self.pooled else fine
      maps.append(Pointwise(self.dim, name="project_fine", **common)(source))
    codes = parameter(self, "scale_code", nn.initializers.normal(0.02), (len(maps), self.dim))
    tokens = []
    for name, grid, code in zip(("deep", "fine"), maps, codes, strict=False):
      scale = grid.reshape(b, -1, self.dim)
      if self.normalised:
        scale = nn.LayerNorm(dtype=self.dtype, name=f"{name}_norm")(scale)
      positions = sincos_positions(grid.shape[1], grid.shape[2], self.dim, self.cycles)
      tokens.append((scale + (positions + code)).astype(self.dtype))
    x = jnp.concatenate(tokens, axis=1)
    if boundary is not None:
      boundary = jnp.concatenate([_strength(boundary, grid) for grid in maps], axis=1)
    for i in range(self.layers):
      x = TransformerLayer(
        self.heads,
        self.mlp_ratio,
        self.dropout,
        self.normalised,
        self.contrast,
        self.attends,
        dtype=self.dtype,
        name=f"layer{i + 1}",
      )(x, boundary, train=train)
    x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
    mixed = jnp.split(x, [h * w], axis=1)
    context, *fine_context = (
      part.reshape(grid.shape) for part, grid in zip(mixed, maps, strict=False)
    )
    return context, fine_context[0] if fine_context else None


def _strength(boundary, grid):
  """[B, h w] strength of a boundary in each cell of a [B, h, w, C] grid.

  It is standardised over the frame, so that the bias is equally strong in every photograph.
  """
  pooled = boundary.astype(jnp.float32)
  if boundary.shape[1] >= grid.shape[1]:
    pooled = average_pool(pooled, boundary.shape[1] // grid.shape[1])
  else:
    pooled = ops.enlarge(pooled, *grid.shape[1:3])
  norm = nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-5)
  return norm(pooled.reshape(len(pooled), -1))


class LocalGlobalFusion(nn.Module):
  """Joins convolution and transformer features after aligning their channels (eq. 5).

    F_lg = relu(W_1 [F_conv | F_trans] + b_1) + F_conv + F_trans

  Attributes:
    concatenate: whether to include the first term; False: only the sum of the two.
    form: form of the operations.
    dtype: compute dtype.
  """

  concatenate: bool = True
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, conv, context):
    """Fuses [B, h, w, C] convolution and [B, h, w, D] transformer features to [B, h, w, C]."""
    chex.assert_rank([conv, context], 4)
    chex.assert_equal_shape_prefix([conv, context], 3)
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    context = Pointwise(conv.shape[-1], name="align", **common)(context)
    note(self, "context_size", functools.partial(_relative_size, context, conv))
    fused = conv + context
    if self.concatenate:
      stacked = jnp.concatenate([conv, context], axis=-1)
      fused += nn.relu(Pointwise(conv.shape[-1], name="mix", **common)(stacked))
    return fused
