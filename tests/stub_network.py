"""Importing this registers `stub`: a network of a few parameters, with norms and dropout."""

import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import ops
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import Norm, Pointwise, SeparableConv, Stem
from medlitenet_jax.models.registry import NETWORKS


class Stub(nn.Module):
  """Down by two, one separable convolution, up again.

  Attributes:
    dropout: rate in training.
    form: form of the operations.
    dtype: compute dtype.
  """

  dropout: float = 0.1
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Maps [B, H, W, 3] to {"mask": [B, H, W, 1] float32 logits}."""
    common = {"form": self.form, "dtype": self.dtype}
    x = Stem(8, name="stem", **common)(image)
    x = Norm("stem", name="stem_norm")(x, train=train)
    x = SeparableConv(8, name="conv", **common)(x, train=train)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = Pointwise(1, result_dtype=jnp.float32, name="head", **common)(x)
    return {"mask": ops.upsample2x(x, self.form)}


NETWORKS["stub"] = Entry(Stub, sizes=lambda fields: Sizes(multiple=2, smallest=16))
