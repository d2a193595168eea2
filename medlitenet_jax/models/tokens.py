"""Parts of transformers that the networks of other papers share.

Modules take and return arrays in the compute dtype; parameters are float32.
"""

import math
from collections.abc import Callable, Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medlitenet_jax.models import ops
from medlitenet_jax.models.layers import Linear


def attend(queries, keys, values, bias: jax.Array | None = None) -> jax.Array:
  """Multi-head attention, softmax(q k^T / sqrt(D) + bias) v, with logits and softmax in float32.

  Args:
    queries: [..., N, heads, D], any float dtype.
    keys: [..., M, heads, D] of the same.
    values: the same.
    bias: float32, to be added to the [..., heads, N, M] logits; None: nothing.

  Returns:
    [..., N, heads, D] in that dtype.

  Reference: Vaswani et al., 2017.
  """
  chex.assert_equal_shape([keys, values])
  logits = ops.wide_einsum("...qhd,...khd->...hqk", queries, keys) / math.sqrt(queries.shape[-1])
  if bias is not None:
    logits += bias
  attention = nn.softmax(logits).astype(values.dtype)
  return ops.wide_einsum("...hqk,...khd->...qhd", attention, values).astype(values.dtype)


class TokenMLP(nn.Module):
  """Two linear layers with an exact GELU between them, applied to each token.

  Attributes:
    hidden: channels between the two.
    dropout: rate after each of them in training.
    kernel_init: initialiser of their kernels.
    dtype: compute dtype.
  """

  hidden: int
  dropout: float = 0.0
  kernel_init: Callable = nn.initializers.lecun_normal()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [..., C] to [..., C]."""
    drop = nn.Dropout(self.dropout, deterministic=not train)
    wide, narrow = (
      Linear(features, self.dtype, self.kernel_init, name=name)
      for features, name in ((self.hidden, "in"), (x.shape[-1], "out"))
    )
    return drop(narrow(drop(nn.gelu(wide(x), approximate=False))))


class SelfAttention(nn.Module):
  """Multi-head self-attention.

  Attributes:
    heads: attention heads; must divide the channels.
    joint: whether one linear layer, "qkv", gives queries, keys and values; else each has its own.
    kernel_init: initialiser of the kernels.
    dtype: compute dtype; the softmax is computed in float32.
  """

  heads: int
  joint: bool = False
  kernel_init: Callable = nn.initializers.xavier_uniform()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, N, D] tokens to [B, N, D]."""
    chex.assert_rank(x, 3)
    dim = x.shape[-1]

    def linear(features, name):
      return Linear(features, self.dtype, self.kernel_init, name=name)

    if self.joint:
      parts = jnp.split(linear(3 * dim, "qkv")(x), 3, axis=-1)
    else:
      parts = [linear(dim, name)(x) for name in ("query", "key", "value")]
    parts = [part.reshape(*x.shape[:2], self.heads, -1) for part in parts]
    return linear(dim, "out")(attend(*parts).reshape(x.shape))


class TransformerLayer(nn.Module):
  """Attention and a feed-forward network, each after a LayerNorm and with a residual connection.

  Attributes:
    heads: attention heads.
    mlp_dim: hidden channels of the feed-forward network.
    dropout: rate in the feed-forward network in training.
    joint: whether one linear layer gives queries, keys and values.
    kernel_init: initialiser of the linear layers' kernels.
    dtype: compute dtype.

  Reference: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021.
  """

  heads: int
  mlp_dim: int
  dropout: float = 0.0
  joint: bool = False
  kernel_init: Callable = nn.initializers.xavier_uniform()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, N, D] tokens to [B, N, D]."""
    init = self.kernel_init
    y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="attention_norm")(x)
    x = x + SelfAttention(self.heads, self.joint, init, self.dtype, name="attention")(y)
    y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="mlp_norm")(x)
    return x + TokenMLP(self.mlp_dim, self.dropout, init, self.dtype, name="mlp")(y, train=train)


def drop_path(rate: float, *, train: bool) -> nn.Dropout:
  """Leaves out a residual branch in training, for each photograph by itself.

  Args:
    rate: how often; what remains is scaled up, so that the expectation stays.
    train: whether it does; RNG "dropout".

  Returns:
    The module: [B, H, W, C] to [B, H, W, C].

  Reference: Huang et al., Deep Networks with Stochastic Depth, 2016.
  """
  return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)


def drop_rates(most: float, depths: Sequence[int]) -> list[list[float]]:
  """How often each block leaves out a residual branch: from 0 at the first, growing linearly.

  Args:
    most: rate of the last block.
    depths: blocks in each stage.

  Returns:
    The rates of the blocks of each stage.
  """
  rates = iter(np.linspace(0, most, sum(depths)).tolist())
  return [[next(rates) for _ in range(depth)] for depth in depths]
