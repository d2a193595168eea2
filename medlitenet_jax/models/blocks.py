"""Building blocks that the networks of other papers share.

Modules take and return [B, H, W, C] arrays in the compute dtype; parameters are float32.
"""

import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models.layers import Norm

# Of kernels that ReLU follows (He et al., 2015).
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
  features: int,
  side: int = 3,
  *,
  stride: int = 1,
  dilation: int = 1,
  use_bias: bool = True,
  dtype: jnp.dtype = jnp.float32,
  name: str | None = None,
) -> nn.Conv:
  """A convolution that is padded by half its reach on each side.

  So do those that the networks' authors used. Flax's own "SAME" has a pixel less on the left where
  there is a stride.

  Args:
    features: output channels.
    side: of the kernel in pixels, odd.
    stride: distance between outputs in pixels.
    dilation: distance between taps in pixels.
    use_bias: whether a bias is added.
    dtype: compute dtype.
    name: of the submodule.

  Returns:
    The module: [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
  """
  reach = dilation * (side - 1) // 2
  return nn.Conv(
    features,
    (side, side),
    (stride, stride),
    padding=((reach, reach), (reach, reach)),
    kernel_dilation=(dilation, dilation),
    use_bias=use_bias,
    kernel_init=he_normal,
    dtype=dtype,
    name=name,
  )


class ConvNormRelu(nn.Module):
  """Convolution, BatchNorm and ReLU.

  Attributes:
    features: output channels.
    side: of the kernel in pixels, odd.
    stride: distance between outputs in pixels.
    dilation: distance between taps in pixels.
    use_bias: whether the convolution has a bias, which the norm then takes away again.
    dtype: compute dtype.
  """

  features: int
  side: int = 3
  stride: int = 1
  dilation: int = 1
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    x = conv(
      self.features,
      self.side,
      stride=self.stride,
      dilation=self.dilation,
      use_bias=self.use_bias,
      dtype=self.dtype,
      name="conv",
    )(x)
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
