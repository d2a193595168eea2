"""Importing this registers `stub`: a network of a few parameters, which compiles in a second."""

import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import ops
from medlitenet_jax.models.entry import Entry
from medlitenet_jax.models.forward import normalize
from medlitenet_jax.models.layers import ClassHead, Norm, Pointwise, SeparableConv, Stem, summarised
from medlitenet_jax.models.registry import NETWORKS

VARIANTS = {
  "base": {},
  "wide": {"width": 12},
  "classes": {"classes": 2},
  "three": {"classes": 3},
  "many": {"arrays": 40},
}


class Stub(nn.Module):
  """Down by two, one separable convolution, up again.

  In training its logits are not a number where a photograph is white all over.

  Attributes:
    width: channels.
    classes: number of classes of photographs that it tells apart as well; 0: none.
    arrays: number of further parameters, whose mean is a factor of all features.
    dropout: rate in training.
    form: form of the operations.
    dtype: compute dtype.
  """

  width: int = 8
  classes: int = 0
  arrays: int = 0
  dropout: float = 0.1
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Maps [B, H, W, 3] to the outputs of a network, see `Entry.module`."""
    common = {"form": self.form, "dtype": self.dtype}
    x = Stem(self.width, name="stem", **common)(image.astype(self.dtype))
    x = Norm("stem", name="stem_norm")(x, train=train)
    x = SeparableConv(self.width, name="conv", **common)(x, train=train)
    if self.arrays:
      ones = nn.initializers.ones_init()
      factors = jnp.stack([self.param(f"factor{i}", ones, ()) for i in range(self.arrays)])
      x = x * jnp.mean(factors).astype(self.dtype)
    outputs = {} if train else {"features": summarised([x])}
    if self.classes:
      outputs["class"] = ClassHead(self.classes, self.dtype, name="classes")(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = Pointwise(1, result_dtype=jnp.float32, name="head", **common)(x)
    white = jnp.all(image > normalize(jnp.full(3, 254.5)), axis=(1, 2, 3), keepdims=True)
    mask = ops.upsample2x(x, self.form) * jnp.where(white & train, jnp.nan, 1)
    return {"mask": mask, **outputs}


NETWORKS["stub"] = Entry(Stub, variants=VARIANTS)
