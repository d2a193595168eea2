"""Building blocks shared by the encoder and the decoder.

All modules take and return [B, H, W, C] arrays in `dtype`, the compute dtype; parameters are
float32, and BatchNorm takes its statistics in float32 whatever the compute dtype.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models import ops

# SiLU, like ReLU, halves the variance; the factor 2 makes up for it (He et al., 2015).
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class Pointwise(nn.Module):
  """1x1 convolution.

  Attributes:
    features: output channels.
    use_bias: whether a bias is added.
    kernel_init: initialiser of the kernel [1, 1, C, features].
    bias_init: initialiser of the bias [features].
    form: form of the operation, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
    result_dtype: of the result, the compute dtype for None.
  """

  features: int
  use_bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros_init()
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32
  result_dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H, W, features]."""
    kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    y = ops.pointwise_conv(x, kernel, self.form, self.result_dtype)
    if not self.use_bias:
      return y
    # Added in float32: in half precision its gradient, a sum over all pixels, would be far off.
    bias = self.param("bias", self.bias_init, (self.features,))
    return (y + bias).astype(self.result_dtype or self.dtype)


class Linear(nn.Module):
  """Matrix product over the last axis, and a bias added in float32 as in `Pointwise`.

  Attributes:
    features: output channels.
    dtype: compute dtype.
  """

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [..., C] to [..., features]."""
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
    return (jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype)) + bias).astype(self.dtype)


def _depthwise_init(key, shape, dtype=jnp.float32):
  """He initialisation of a depthwise kernel, whose every output sees k * k inputs."""
  return jnp.sqrt(2.0 / (shape[0] * shape[1])) * jax.random.normal(key, shape, dtype)


class Depthwise(nn.Module):
  """3x3 depthwise convolution without bias.

  Attributes:
    stride: step, in pixels.
    dilation: distance between taps, in pixels.
    kernel_init: initialiser of the kernel [3, 3, 1, C].
    form: form of the operation, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
  """

  stride: int = 1
  dilation: int = 1
  kernel_init: Callable = _depthwise_init
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), C]."""
    kernel = self.param("kernel", self.kernel_init, (3, 3, 1, x.shape[-1]))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    return ops.depthwise_conv(x, kernel, self.stride, self.dilation, self.form)


class Stem(nn.Module):
  """3x3 convolution with stride 2 and without bias, of a photograph's few channels.

  Attributes:
    features: output channels.
    form: form of the operation, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
  """

  features: int
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), features]."""
    shape = (3, 3, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    return ops.downsampling_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.form)


class Norm(nn.Module):
  """BatchNorm over the batch and all pixels, optionally followed by SiLU.

  Attributes:
    folds_into: name of the convolution beside it whose result is all that it sees, so that it can
      be folded into it; None: it cannot.
    activate: whether SiLU follows.
    momentum: share of the running statistics that a batch leaves as it was.
    epsilon: added to the variance.
  """

  folds_into: str | None = None
  activate: bool = True
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Normalises by the batch's statistics in training, by the running ones otherwise.

    Without statistics among its variables, see `fold_batch_norm`, only the bias is left to add.
    """
    shape = (x.shape[-1],)
    bias = self.param("bias", nn.initializers.zeros_init(), shape)
    if not self.is_initializing() and not self.has_variable("batch_stats", "mean"):
      y = x.astype(jnp.float32) + bias
      return (nn.silu(y) if self.activate else y).astype(x.dtype)
    scale = self.param("scale", nn.initializers.ones_init(), shape)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    variance = self.variable("batch_stats", "var", jnp.ones, shape)
    if train:
      y, batch_mean, batch_variance = ops.batch_norm(x, scale, bias, self.epsilon, self.activate)
      if not self.is_initializing():
        mean.value += (1 - self.momentum) * (batch_mean - mean.value)
        variance.value += (1 - self.momentum) * (batch_variance - variance.value)
      return y
    factor = scale * jax.lax.rsqrt(variance.value + self.epsilon)
    y = x.astype(jnp.float32) * factor + (bias - mean.value * factor)
    return (nn.silu(y) if self.activate else y).astype(x.dtype)


class MBConv(nn.Module):
  """Inverted residual block: expand 1x1, depthwise 3x3, project 1x1 (paper III-B).

  BatchNorm follows every convolution and SiLU all but the last, as in MobileNetV2 (Sandler et al.,
  2018), where a non-linearity in the narrow layer loses information.

  Attributes:
    features: output channels.
    stride: of the depthwise convolution.
    expansion: channels of the wide layer over input channels.
    form: form of the operations.
    dtype: compute dtype.
  """

  features: int
  stride: int = 1
  expansion: int = 6
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    wide = self.expansion * x.shape[-1]
    y = Pointwise(wide, use_bias=False, kernel_init=kernel_init, name="expand", **common)(x)
    y = Norm("expand", name="expand_norm")(y, train=train)
    y = Depthwise(self.stride, name="depthwise", **common)(y)
    y = Norm("depthwise", name="depthwise_norm")(y, train=train)
    y = Pointwise(self.features, use_bias=False, name="project", **common)(y)
    y = Norm("project", activate=False, name="project_norm")(y, train=train)
    return x + y if x.shape == y.shape else y


class SeparableConv(nn.Module):
  """Depthwise 3x3 then pointwise 1x1, BatchNorm and SiLU after the pair.

  Attributes:
    features: output channels.
    dilation: of the depthwise convolution.
    form: form of the operations.
    dtype: compute dtype.
  """

  features: int
  dilation: int = 1
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, H, W, features]."""
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    x = Depthwise(dilation=self.dilation, name="depthwise", **common)(x)
    x = Pointwise(
      self.features, use_bias=False, kernel_init=kernel_init, name="pointwise", **common
    )(x)
    return Norm("pointwise", name="norm")(x, train=train)


class SCSE(nn.Module):
  """Concurrent spatial and channel squeeze and excitation.

  The channel gate sees the mean of each channel, the spatial gate the channels of each pixel; the
  two recalibrated maps are added.

  Reference: Roy et al., MICCAI 2018.

  Attributes:
    reduction: channels over channels of the channel gate's hidden layer.
    form: form of the operations.
    dtype: compute dtype.
  """

  reduction: int = 4
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Recalibrates [B, H, W, C]."""
    channels = x.shape[-1]
    pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
    hidden = Linear(max(channels // self.reduction, 4), self.dtype, name="squeeze")(pooled)
    channel = nn.sigmoid(Linear(channels, self.dtype, name="excite")(nn.relu(hidden)))
    spatial = nn.sigmoid(Pointwise(1, form=self.form, dtype=self.dtype, name="spatial")(x))
    # In float32, for the gradient of the channel gate is a sum over all pixels.
    gate = channel[:, None, None, :].astype(jnp.float32) + spatial
    return (x * gate).astype(self.dtype)


class ASPP(nn.Module):
  """Atrous spatial pyramid pooling at the bottleneck (paper III-E).

  Each branch is a 3x3 dilated convolution, depthwise to stay inside the parameter budget, and a
  1x1 convolution to `branch_dim` channels; one more branch carries the mean over the image. All
  are concatenated and fused by a 1x1 convolution.

  Attributes:
    features: output channels.
    branch_dim: channels of each branch.
    dilations: of the dilated branches, in pixels of the bottleneck.
    form: form of the operations.
    dtype: compute dtype.
  """

  features: int
  branch_dim: int
  dilations: tuple[int, ...]
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, h, w, C] to [B, h, w, features]."""
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    branches = [
      SeparableConv(self.branch_dim, dilation=d, name=f"dilation{d}", **common)(x, train=train)
      for d in self.dilations
    ]
    pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
    # No BatchNorm on this branch: its statistics would rest on one value an image.
    pooled = nn.silu(Pointwise(self.branch_dim, name="pool", **common)(pooled))
    spread = jnp.broadcast_to(pooled.astype(jnp.float32), (*x.shape[:3], self.branch_dim))
    branches.append(spread.astype(self.dtype))
    x = jnp.concatenate(branches, axis=-1)
    x = Pointwise(self.features, use_bias=False, kernel_init=kernel_init, name="fuse", **common)(x)
    return Norm("fuse", name="fuse_norm")(x, train=train)
