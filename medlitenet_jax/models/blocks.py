"""Building blocks that the networks of other papers share.

Modules take and return [B, H, W, C] arrays in the compute dtype; parameters are float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from medlitenet_jax.models import ops
from medlitenet_jax.models.layers import Depthwise, Norm, Pointwise, kernel_init, parameter


def conv(
  features: int,
  side: int = 3,
  *,
  stride: int = 1,
  use_bias: bool = True,
  kernel_init: Callable = kernel_init,
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
    use_bias: whether a bias is added.
    kernel_init: initialiser of the kernel [side, side, C, features]; the default suits a ReLU or a
      norm after it, and no layer of few features.
    dtype: compute dtype.
    name: of the submodule.

  Returns:
    The module: [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
  """
  return nn.Conv(
    features,
    (side, side),
    (stride, stride),
    padding=((side // 2, side // 2), (side // 2, side // 2)),
    use_bias=use_bias,
    kernel_init=kernel_init,
    dtype=dtype,
    name=name,
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


class ConvMLP(nn.Module):
  """Two 1x1 convolutions with a depthwise 3x3 one and an exact GELU between them, all with biases.

  Attributes:
    hidden: channels between.
    kernel_init: initialiser of the kernels of the 1x1 convolutions.
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
  """

  hidden: int
  kernel_init: Callable = nn.initializers.lecun_normal()
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H, W, C]."""
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    wide, narrow = (
      Pointwise(features, kernel_init=self.kernel_init, name=name, **common)
      for features, name in ((self.hidden, "in"), (x.shape[-1], "out"))
    )
    x = Depthwise(use_bias=True, name="depthwise", **common)(wide(x))
    return narrow(nn.gelu(x, approximate=False))


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
  """Transposed convolution with stride 2, padded so that it doubles the map.

  A quarter of the taps meets the outputs of each parity, which are a convolution of the input by
  these taps. The gradient of that takes a CPU about a twentieth of the time that
  `nn.ConvTranspose`'s does. The kernel lies as there.

  Attributes:
    features: output channels.
    side: of the kernel, 2, 3 or 4 pixels; it is padded as PyTorch's is with `padding` of 0, 1 and 1
      and, for 3, `output_padding` of 1.
    dtype: compute dtype.
  """

  features: int
  side: int = 2
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
    chex.assert_rank(x, 4)
    b, h, w, c = x.shape
    init = nn.initializers.glorot_uniform()
    kernel = parameter(self, "kernel", init, (self.side, self.side, c, self.features))
    bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.features,))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    parities = [
      (kernel[rows, columns], (above, left))
      for rows, above in map(self._taps, (0, 1))
      for columns, left in map(self._taps, (0, 1))
    ]
    if self.side == 2:  # each has one tap, so they are one matrix product
      y = ops.pointwise_conv(x, jnp.concatenate([taps for taps, _ in parities], axis=-1))
    else:
      y = jnp.concatenate([_convolve(x, *parity) for parity in parities], axis=-1)
    y = y.reshape(b, h, w, 2, 2, self.features).swapaxes(2, 3)
    return (y.reshape(b, 2 * h, 2 * w, self.features) + bias).astype(self.dtype)

  @nn.nowrap
  def _taps(self, parity: int) -> tuple[slice, int]:
    """Rows of the kernel that outputs 2 i + parity see, the first by input i minus the number."""
    own = self.side - 1 - parity - (self.side - 1) // 2  # the tap that meets input i
    return slice(own % 2, None, 2), own // 2


def _convolve(x, kernel, before: tuple[int, int]):
  """Convolves [B, H, W, C] and keeps its size; the kernel reaches `before` up and to the left."""
  sides = zip(kernel.shape[:2], before, strict=True)
  zeros = [(near, side - 1 - near) for side, near in sides]
  return lax.conv_general_dilated(
    x, kernel, (1, 1), zeros, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


class Coefficients(nn.Module):
  """How much of each pixel of a skip passes, from the skip and signals on the same grid.

  sigmoid(N(psi relu(N(A skip) + N(B signal) + ...))), where A, B and psi are 1x1 convolutions, psi
  to one channel, and each N is a BatchNorm.

  Attributes:
    features: channels between.
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.

  Reference: Oktay et al., Attention U-Net, 2018.
  """

  features: int
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, skip, signal, boundary=None, *, train: bool):
    """Scores pixels.

    Args:
      skip: [B, H, W, C].
      signal: [B, H, W, D].
      boundary: [B, H, W, E], a further signal, or None.
      train: whether BatchNorm uses the batch's statistics.

    Returns:
      [B, H, W, 1] from 0 to 1.
    """
    given = {"skip": skip, "signal": signal, "boundary": boundary}
    inputs = {name: x for name, x in given.items() if x is not None}
    chex.assert_equal_shape_prefix(list(inputs.values()), 3)

    def normed(x, features, name):
      own: dict[str, Any] = {"form": self.form, "dtype": self.dtype, "name": name}
      x = Pointwise(features, kernel_init=kernel_init, **own)(x)
      return Norm(name, activate=False, name=f"{name}_norm")(x, train=train)

    joined = [normed(x, self.features, name) for name, x in inputs.items()]
    return nn.sigmoid(normed(nn.relu(functools.reduce(jnp.add, joined)), 1, "psi"))
