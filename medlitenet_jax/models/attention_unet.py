"""Attention U-Net: gates choose what of each skip reaches the decoder (Oktay et al., MIDL 2018).

Two networks go by this name. Most tables mean the one that gates all four levels at their own
resolution. The authors' own has gates on a coarser grid, at the three lower levels, and sums up the
decoder's stages for the mask; here it is their plan in two dimensions.
"""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models import knockout, ops
from medlitenet_jax.models.blocks import Coefficients, ConvNormRelu, DoubleConv, contract
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import Norm, Pointwise, kernel_init, summarised
from medlitenet_jax.system.rules import whole

SIZES = Sizes(multiple=16, smallest=16)  # four halvings
# The authors divide the channels by a "feature scale" of 1, 2 or 4.
VARIANTS: dict[str, dict[str, Any]] = {
  "base": {},
  "oktay": {"grid": True},
  "oktay_2": {"grid": True, "width": 32},
  "oktay_4": {"grid": True, "width": 16},
}
WIDTH = whole(2, 1024)


def _pointwise(features: int, form: str, dtype: jnp.dtype, name: str) -> Pointwise:
  return Pointwise(features, kernel_init=kernel_init, form=form, dtype=dtype, name=name)


class GridCoefficients(nn.Module):
  """The same from a signal on a grid half as fine, without norms: the authors' own.

  sigmoid(psi relu(A skip + B signal)), enlarged to the skip's grid, where A is a 2x2 convolution
  with stride 2, and B and psi are 1x1 convolutions, psi to one channel.

  Attributes:
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
  """

  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, skip, signal):
    """Maps [B, H, W, C] and [B, H / 2, W / 2, D] to [B, H, W, 1] from 0 to 1."""
    channels = skip.shape[-1]
    coarse = nn.Conv(
      channels,
      (2, 2),
      (2, 2),
      padding="VALID",
      use_bias=False,
      kernel_init=kernel_init,
      dtype=self.dtype,
      name="skip",
    )(skip)
    signal = _pointwise(channels, self.form, self.dtype, "signal")(signal)
    chex.assert_equal_shape([coarse, signal])
    score = _pointwise(1, self.form, self.dtype, "psi")(nn.relu(coarse + signal))
    return ops.upsample2x(nn.sigmoid(score), self.form)


class Gate(nn.Module):
  """Multiplies a skip by its coefficients.

  Attributes:
    form: form of the operations.
    dtype: compute dtype.
  """

  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, skip, signal, *, train: bool):
    """Gates [B, H, W, C] by a signal [B, H, W, D]; the shape stays."""
    score = Coefficients(skip.shape[-1] // 2, self.form, self.dtype, name="coefficients")
    return skip * score(skip, signal, train=train)


class GridGate(nn.Module):
  """Multiplies a skip by its coefficients, then convolves it twice with 1x1 kernels.

  Attributes:
    form: form of the operations.
    dtype: compute dtype.
  """

  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, skip, signal, *, train: bool):
    """Gates [B, H, W, C] by a signal [B, H / 2, W / 2, D]; the shape stays."""
    x = skip * GridCoefficients(self.form, self.dtype, name="coefficients")(skip, signal)
    x = _pointwise(x.shape[-1], self.form, self.dtype, "out")(x)
    x = Norm("out", activate=False, name="out_norm")(x, train=train)
    combine = ConvNormRelu(x.shape[-1], 1, True, self.form, self.dtype, name="combine")
    return combine(x, train=train)


def _nearest2x(x: jax.Array) -> jax.Array:
  """Repeats every pixel: [B, H, W, C] to [B, 2H, 2W, C]."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class AttentionUNet(nn.Module):
  """Attention U-Net of five levels, for inputs whose sides are multiples of 16.

  Attributes:
    width: channels of the finest level, an even number; each level below has twice as many.
    grid: whether it is the authors' own network, see the top of the file.
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype; parameters and logits are float32.
  """

  width: int = 64
  grid: bool = False
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, H, W, 3] normalised photograph, H and W multiples of 16.
      train: whether BatchNorm uses the batch's statistics.

    Returns:
      "mask": [B, H, W, 1] float32 logits; above 0 is lesion.
      "features": in inference, the [B, D] float32 summary of what the encoder hands to the gates.

    Raises:
      ValueError: if H or W is not accepted.
    """
    chex.assert_shape(image, (None, None, None, 3))
    SIZES.check(*image.shape[1:3])
    *skips, x = contract(
      image.astype(self.dtype),
      [self.width * 2**level for level in range(5)],
      use_bias=True,
      train=train,
      dtype=self.dtype,
    )
    decode = self._decode_on_grids if self.grid else self._decode
    outputs = {"mask": decode(x, skips[::-1], train=train)}
    return outputs if train else {**outputs, "features": summarised(skips)}

  @nn.nowrap
  def _decode(self, x, skips, *, train: bool) -> jax.Array:
    """Logits from the bridge's features and those of the levels, coarsest first."""
    for stage, skip in enumerate(skips, start=1):
      width = skip.shape[-1]
      up = ConvNormRelu(width, use_bias=True, dtype=self.dtype, name=f"up{stage}")
      x = up(_nearest2x(x), train=train)
      skip = Gate(self.form, self.dtype, name=f"gate{stage}")(skip, x, train=train)
      x = self._join(stage, skip, x, train=train)
    return self._head("head")(x)

  @nn.nowrap
  def _decode_on_grids(self, x, skips, *, train: bool) -> jax.Array:
    """The same of the authors' own network."""
    height, width = skips[-1].shape[1:3]
    signal = ConvNormRelu(x.shape[-1], 1, True, self.form, self.dtype, name="signal")
    guide = signal(x, train=train)
    scores = []
    for stage, skip in enumerate(skips, start=1):
      if stage < len(skips):  # the finest level is not gated
        gate = GridGate(self.form, self.dtype, name=f"gate{stage}")
        skip = gate(skip, guide, train=train)
      x = guide = self._join(stage, skip, ops.upsample2x(x, self.form), train=train)
      scores.append(ops.enlarge(self._head(f"head{stage}")(x), height, width))
    return self._head("head")(jnp.concatenate(scores[::-1], axis=-1))

  @nn.nowrap
  def _join(self, stage: int, skip, x, *, train: bool) -> jax.Array:
    block = DoubleConv(skip.shape[-1], use_bias=True, dtype=self.dtype, name=f"decoder{stage}")
    return block(jnp.concatenate([skip, x], axis=-1), train=train)

  @nn.nowrap
  def _head(self, name: str) -> Pointwise:
    return Pointwise(1, form=self.form, dtype=self.dtype, result_dtype=jnp.float32, name=name)


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.attention_unet`: (is its value valid, which values are)}."""
  width = fields["width"]
  holds = WIDTH.holds(width) and width % 2 == 0
  return {"width": (holds, f"takes {WIDTH.takes}, an even one")}


ENTRY = Entry(
  AttentionUNet,
  variants=VARIANTS,
  rules=rules,
  sizes=lambda fields: SIZES,
  knockouts={
    "gates": {"gate?/coefficients": knockout.even},
    "skips": {"gate?": knockout.zero},
  },
)
