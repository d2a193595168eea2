"""U-Net with BatchNorm, as most comparisons have it.

The plan is that of Ronneberger et al. (MICCAI 2015). Unlike theirs, convolutions are padded, so
that the mask has the size of the photograph, and BatchNorm stands before every ReLU.
"""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import ops
from medlitenet_jax.models.blocks import DoubleConv, DoublingConv, contract
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import Pointwise, summarised
from medlitenet_jax.system.rules import whole

SIZES = Sizes(multiple=16, smallest=16)  # four halvings
VARIANTS: dict[str, dict[str, Any]] = {"base": {}, "bilinear": {"bilinear": True}}
WIDTH = whole(1, 1024)


class UNet(nn.Module):
  """U-Net of five levels, for inputs whose sides are multiples of 16.

  Attributes:
    width: channels of the finest level; each level below has twice as many.
    bilinear: whether the decoder enlarges by interpolation, the corner pixels on each other. The
      bridge and each stage of the decoder then end with half as many channels, and a stage has its
      own number between its two convolutions. False: by transposed convolutions.
    dtype: compute dtype; parameters and logits are float32.
  """

  width: int = 64
  bilinear: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, H, W, 3] normalised photograph, H and W multiples of 16.
      train: whether BatchNorm uses the batch's statistics.

    Returns:
      "mask": [B, H, W, 1] float32 logits; above 0 is lesion.
      "features": in inference, the [B, D] float32 summary of what the encoder hands to the decoder.

    Raises:
      ValueError: if H or W is not accepted.
    """
    chex.assert_shape(image, (None, None, None, 3))
    SIZES.check(*image.shape[1:3])
    share = 2 if self.bilinear else 1
    widths = [self.width * 2**level for level in range(5)]
    *skips, x = contract(
      image.astype(self.dtype),
      [*widths[:-1], widths[-1] // share],
      use_bias=False,
      train=train,
      dtype=self.dtype,
    )
    for stage, skip in enumerate(reversed(skips), start=1):
      width = skip.shape[-1]
      if self.bilinear:
        x = ops.enlarge_aligned(x, 2)
      else:
        x = DoublingConv(width, dtype=self.dtype, name=f"up{stage}")(x)
      features = width // share if stage < len(skips) else width
      block = DoubleConv(features, middle=width, dtype=self.dtype, name=f"decoder{stage}")
      x = block(jnp.concatenate([skip, x], axis=-1), train=train)
    logits = Pointwise(1, dtype=self.dtype, result_dtype=jnp.float32, name="head")(x)
    outputs = {"mask": logits}
    return outputs if train else {**outputs, "features": summarised(skips)}


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.unet`: (is its value valid, which values are)}."""
  return {"width": WIDTH.verdict(fields["width"])}


ENTRY = Entry(UNet, variants=VARIANTS, rules=rules, sizes=lambda fields: SIZES)
