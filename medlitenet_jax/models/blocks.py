"""Building blocks that the networks of other papers share.

Modules take and return [B, H, W, C] arrays in the compute dtype; parameters are float32.
"""

from collections.abc import Callable, Sequence

import chex
import flax.linen as nn
import jax
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
  kernel_init: Callable = he_normal,
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
    kernel_init: initialiser of the kernel [side, side, C, features].
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
    kernel_init=kernel_init,
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
    # An output meets one of the four taps, so its inputs are a quarter of the usual count.
    init = nn.initializers.variance_scaling(4.0, "fan_in", "normal")
    kernel = self.param("kernel", init, (2, 2, c, self.features))
    bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
    turned = kernel[::-1, ::-1].astype(self.dtype)
    y = jnp.einsum("bhwc,pqcf->bhpwqf", x.astype(self.dtype), turned)
    return (y.reshape(b, 2 * h, 2 * w, self.features) + bias).astype(self.dtype)
