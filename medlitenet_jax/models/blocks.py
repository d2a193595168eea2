"""Building blocks that the networks of other papers share.

Modules take and return [B, H, W, C] arrays in the compute dtype; parameters are float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models.layers import Norm, Pointwise, kernel_init


def conv(
  features: int,
  *,
  use_bias: bool = True,
  kernel_init: Callable = kernel_init,
  dtype: jnp.dtype = jnp.float32,
  name: str | None = None,
) -> nn.Conv:
  """A 3x3 convolution, padded by a pixel on each side.

  Args:
    features: output channels.
    use_bias: whether a bias is added.
    kernel_init: initialiser of the kernel [3, 3, C, features].
    dtype: compute dtype.
    name: of the submodule.

  Returns:
    The module: [B, H, W, C] to [B, H, W, features].
  """
  return nn.Conv(
    features, (3, 3), use_bias=use_bias, kernel_init=kernel_init, dtype=dtype, name=name
  )


class ConvNormRelu(nn.Module):
  """Convolution, BatchNorm and ReLU.

  Attributes:
    features: output channels.
    side: of the kernel in pixels, 1 or 3.
    use_bias: whether the convolution has a bias, which the norm then takes away again.
    form: form of a 1x1 convolution, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
  """

  features: int
  side: int = 3
  use_bias: bool = False
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, H, W, features]."""
    own: dict[str, Any] = {"use_bias": self.use_bias, "dtype": self.dtype, "name": "conv"}
    if self.side == 1:
      x = Pointwise(self.features, kernel_init=kernel_init, form=self.form, **own)(x)
    else:
      x = conv(self.features, **own)(x)
    return nn.relu(Norm("conv", activate=False, name="norm")(x, train=train))


class DoubleConv(nn.Module):
  """Two 3x3 convolutions, each with BatchNorm and ReLU: a level of the U-Net and its kin.

  Attributes:
    features: output channels.
    middle: channels between the two; None: as many as `features`.
    use_bias: whether the convolutions have a bias.
    dtype: compute dtype.
  """

  features: int
  middle: int | None = None
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, H, W, features]."""
    for i, features in enumerate((self.middle or self.features, self.features), start=1):
      block = ConvNormRelu(features, use_bias=self.use_bias, dtype=self.dtype, name=f"conv{i}")
      x = block(x, train=train)
    return x


def halve(x: jax.Array) -> jax.Array:
  """Maxima of 2x2 squares: [B, H, W, C] to [B, H / 2, W / 2, C], H and W even.

  On a CPU the gradient of `nn.max_pool` takes longer than that of the convolution before it. Where
  values of a square are equal, they share the gradient.
  """
  chex.assert_rank(x, 4)
  x = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def contract(
  x: jax.Array, widths: Sequence[int], *, use_bias: bool, train: bool, dtype: jnp.dtype
) -> list[jax.Array]:
  """The contracting path of a U-Net, as submodules of the network that calls it.

  They are named "encoder1", "encoder2" and so on, and the last "bridge".

  Args:
    x: [B, H, W, C], H and W multiples of 2 to the number of levels but one.
    widths: channels of each level, finest first.
    use_bias: whether the convolutions have a bias.
    train: whether BatchNorm uses the batch's statistics.
    dtype: compute dtype.

  Returns:
    The features of each level, [B, H / 2^i, W / 2^i, widths[i]].
  """
  features: list[jax.Array] = []
  for level, width in enumerate(widths, start=1):
    name = "bridge" if level == len(widths) else f"encoder{level}"
    block = DoubleConv(width, use_bias=use_bias, dtype=dtype, name=name)
    x = block(halve(x) if features else x, train=train)
    features.append(x)
  return features


class DoublingConv(nn.Module):
  """2x2 transposed convolution with stride 2: every pixel becomes a square of 2x2.

  Squares do not overlap, so it is one matrix product, whose gradient takes a CPU a twentieth of the
  time that `nn.ConvTranspose`'s does. The kernel lies as there.

  Attributes:
    features: output channels.
    dtype: compute dtype.
  """

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
    chex.assert_rank(x, 4)
    b, h, w, c = x.shape
    init = nn.initializers.glorot_uniform()
    kernel = self.param("kernel", init, (2, 2, c, self.features))
    bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
    turned = kernel[::-1, ::-1].astype(self.dtype)
    y = jnp.einsum("bhwc,pqcf->bhpwqf", x.astype(self.dtype), turned)
    return (y.reshape(b, 2 * h, 2 * w, self.features) + bias).astype(self.dtype)
