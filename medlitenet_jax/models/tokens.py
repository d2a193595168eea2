"""Parts of transformers that the networks of other papers share.

Modules take and return arrays in the compute dtype; parameters are float32.
"""

import math
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

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
