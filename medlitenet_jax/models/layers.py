"""Building blocks shared by the encoder and the decoder.

All modules take and return [B, H, W, C] arrays in the compute dtype, `dtype`. Parameters are
float32, and BatchNorm computes its statistics in float32 whatever the compute dtype.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models import ops

DIAGNOSTICS = "diagnostics"  # collection of variables that `note` writes to

# SiLU, like ReLU, halves the variance; the factor 2 compensates for it (He et al., 2015).
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


_only_shapes = contextvars.ContextVar("_only_shapes", default=False)


@contextlib.contextmanager
def only_shapes() -> Iterator[None]:
  """Has `parameter` initialise with zeros, for a trace that asks for shapes: they trace fastest."""
  token = _only_shapes.set(True)
  try:
    yield
  finally:
    _only_shapes.reset(token)


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
  """A parameter of a module, as `module.param` gives it, but sooner.

  Where the parameter exists Flax traces its initialiser all the same, to compare shapes. That takes
  half of the time of tracing a network. Whoever loads parameters compares their shapes.

  Args:
    module: in its `__call__`.
    name: of the parameter.
    init: initialiser.
    shape: of the parameter.

  Returns:
    The parameter, float32.
  """
  if module.has_variable("params", name):
    return module.get_variable("params", name)
  return module.param(name, nn.initializers.zeros_init() if _only_shapes.get() else init, shape)


def note(module: nn.Module, name: str, value: Callable[[], jax.Array]) -> None:
  """Keeps a figure of a forward pass, if whoever runs the network asks for "diagnostics".

  Args:
    module: in its `__call__`.
    name: of the figure.
    value: computes it, a [B] array with a number for each photograph.
  """
  if module.is_mutable_collection(DIAGNOSTICS) and not module.is_initializing():
    module.sow(DIAGNOSTICS, name, value().astype(jnp.float32), reduce_fn=lambda _, new: new)


def average_pool(x, factor: int):
  """Means of factor x factor squares, computed in float32: [B, H, W, C] to [B, H/f, W/f, C]."""
  chex.assert_rank(x, 4)
  b, h, w, c = x.shape
  squares = x.reshape(b, h // factor, factor, w // factor, factor, c)
  return jnp.mean(squares, axis=(2, 4), dtype=jnp.float32).astype(x.dtype)


class Pointwise(nn.Module):
  """1x1 convolution.

  Attributes:
    features: output channels.
    use_bias: whether a bias is added.
    kernel_init: initialiser of the kernel [1, 1, C, features].
    bias_init: initialiser of the bias [features].
    form: form of the operation, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
    result_dtype: dtype of the result; None: the compute dtype.
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
    chex.assert_rank(x, 4)
    kernel = parameter(self, "kernel", self.kernel_init, (1, 1, x.shape[-1], self.features))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    y = ops.pointwise_conv(x, kernel, self.form, self.result_dtype)
    if not self.use_bias:
      return y
    # Added in float32: the bias's gradient is a sum over all pixels, far off in half precision.
    bias = parameter(self, "bias", self.bias_init, (self.features,))
    return (y + bias).astype(self.result_dtype or self.dtype)


class Linear(nn.Module):
  """Matrix product over the last axis plus a bias, added in float32 as in `Pointwise`.

  Attributes:
    features: output channels.
    dtype: compute dtype.
    kernel_init: initialiser of the kernel [C, features].
  """

  features: int
  dtype: jnp.dtype = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x):
    """Maps [..., C] to [..., features]."""
    shape = (x.shape[-1], self.features)
    kernel = parameter(self, "kernel", self.kernel_init, shape)
    bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.features,))
    return (jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype)) + bias).astype(self.dtype)


def _depthwise_init(key, shape, dtype=jnp.float32):
  """He initialisation of a depthwise kernel: each output depends on k * k inputs."""
  return jnp.sqrt(2.0 / (shape[0] * shape[1])) * jax.random.normal(key, shape, dtype)


class Depthwise(nn.Module):
  """Depthwise convolution.

  Attributes:
    stride: distance between outputs, in pixels.
    dilation: distance between taps, in pixels.
    kernel_init: initialiser of the kernel [*size, 1, C].
    zero_sum: whether the mean of the kernel's taps is taken away from each, so that an even area
      gives 0 whatever the kernel becomes.
    size: height and width of the kernel, odd.
    use_bias: whether a bias is added.
    form: form of the operation, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
  """

  stride: int = 1
  dilation: int = 1
  kernel_init: Callable = _depthwise_init
  zero_sum: bool = False
  size: tuple[int, int] = (3, 3)
  use_bias: bool = False
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), C]."""
    chex.assert_rank(x, 4)
    kernel = parameter(self, "kernel", self.kernel_init, (*self.size, 1, x.shape[-1]))
    if self.zero_sum:
      kernel -= jnp.mean(kernel, axis=(0, 1))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    y = ops.depthwise_conv(x, kernel, self.stride, self.dilation, self.form)
    if not self.use_bias:
      return y
    # In float32, as in `Pointwise`.
    bias = parameter(self, "bias", nn.initializers.zeros_init(), (x.shape[-1],))
    return (y + bias).astype(self.dtype)


class Stem(nn.Module):
  """3x3 convolution with stride 2 and no bias, for the few channels of a photograph.

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
    chex.assert_rank(x, 4)
    shape = (3, 3, x.shape[-1], self.features)
    kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), shape)
    return ops.downsampling_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.form)


class Norm(nn.Module):
  """BatchNorm over the batch and all pixels, optionally followed by SiLU.

  Attributes:
    folds_into: name of the sibling convolution whose result is this norm's only input, so that the
      norm can be folded into it; None: it cannot be folded.
    activate: whether SiLU follows.
    momentum: weight of the old value when the running statistics are updated.
    epsilon: number added to the variance.
  """

  folds_into: str | None = None
  activate: bool = True
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Normalises [B, H, W, C] with the batch's statistics in training, else the running ones.

    Training that may not change the collection "batch_stats" uses the running ones, too. If its
    variables hold no statistics, it was folded (`fold_batch_norm`) and only adds its bias.
    """
    chex.assert_rank(x, 4)
    shape = (x.shape[-1],)
    bias = parameter(self, "bias", nn.initializers.zeros_init(), shape)
    if not self.is_initializing() and not self.has_variable("batch_stats", "mean"):
      y = x.astype(jnp.float32) + bias
      return (nn.silu(y) if self.activate else y).astype(x.dtype)
    scale = parameter(self, "scale", nn.initializers.ones_init(), shape)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    variance = self.variable("batch_stats", "var", jnp.ones, shape)
    if train and (self.is_initializing() or self.is_mutable_collection("batch_stats")):
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
  2018): a non-linearity in the narrow layer would lose information.

  Attributes:
    features: output channels.
    stride: stride of the depthwise convolution.
    dilation: dilation of the depthwise convolution; 1 with stride 2.
    expansion: ratio of the wide layer's channels to the input channels; 1: there is no wide layer.
    relu6: whether ReLU6 stands in place of SiLU, as in MobileNetV2 itself.
    form: form of the operations.
    dtype: compute dtype.
  """

  features: int
  stride: int = 1
  dilation: int = 1
  expansion: int = 6
  relu6: bool = False
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    chex.assert_rank(x, 4)
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}

    def activated(y, name):
      y = Norm(name, activate=not self.relu6, name=f"{name}_norm")(y, train=train)
      return nn.relu6(y) if self.relu6 else y

    y = x
    if self.expansion > 1:
      wide = self.expansion * x.shape[-1]
      expand = Pointwise(wide, use_bias=False, kernel_init=kernel_init, name="expand", **common)
      y = activated(expand(y), "expand")
    y = activated(Depthwise(self.stride, self.dilation, name="depthwise", **common)(y), "depthwise")
    y = Pointwise(self.features, use_bias=False, name="project", **common)(y)
    y = Norm("project", activate=False, name="project_norm")(y, train=train)
    return x + y if x.shape == y.shape else y


class SeparableConv(nn.Module):
  """Depthwise 3x3, then pointwise 1x1, then BatchNorm and SiLU.

  Attributes:
    features: output channels.
    dilation: dilation of the depthwise convolution.
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

  The channel gate depends on the mean of each channel, the spatial gate on the channels of each
  pixel. The two gated maps are added.

  Reference: Roy et al., MICCAI 2018.

  Attributes:
    reduction: ratio of the input channels to those of the channel gate's hidden layer (at least 4).
    form: form of the operations.
    dtype: compute dtype.
  """

  reduction: int = 4
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Gates [B, H, W, C]; the shape stays."""
    chex.assert_rank(x, 4)
    channels = x.shape[-1]
    pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
    hidden = Linear(max(channels // self.reduction, 4), self.dtype, name="squeeze")(pooled)
    channel = nn.sigmoid(Linear(channels, self.dtype, name="excite")(nn.relu(hidden)))
    spatial = nn.sigmoid(Pointwise(1, form=self.form, dtype=self.dtype, name="spatial")(x))
    # In float32, because the gradient of the channel gate is a sum over all pixels.
    gate = channel[:, None, None, :].astype(jnp.float32) + spatial
    return (x * gate).astype(self.dtype)


class ASPP(nn.Module):
  """Atrous spatial pyramid pooling at the bottleneck (paper III-E).

  Each dilated branch is a 3x3 convolution, depthwise to save parameters, and a 1x1 convolution to
  `branch_dim` channels. One more branch carries the mean over the image. A 1x1 convolution fuses
  the concatenated branches.

  Attributes:
    features: output channels.
    branch_dim: channels of each branch.
    dilations: dilation of each dilated branch, in pixels of a grid.
    grid: side of that grid; on another, dilations grow and shrink with it, to at least 1. 0: they
      are in pixels of whatever grid there is.
    form: form of the operations.
    dtype: compute dtype.
  """

  features: int
  branch_dim: int
  dilations: tuple[int, ...]
  grid: int = 0
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, h, w, C] to [B, h, w, features]."""
    chex.assert_rank(x, 4)
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    scale = min(x.shape[1:3]) / self.grid if self.grid else 1
    branches = [
      SeparableConv(
        self.branch_dim, dilation=max(1, round(d * scale)), name=f"dilation{d}", **common
      )(x, train=train)
      for d in self.dilations
    ]
    pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
    # No BatchNorm on this branch: its statistics would rest on one value per image.
    pooled = nn.silu(Pointwise(self.branch_dim, name="pool", **common)(pooled))
    spread = jnp.broadcast_to(pooled.astype(jnp.float32), (*x.shape[:3], self.branch_dim))
    branches.append(spread.astype(self.dtype))
    x = jnp.concatenate(branches, axis=-1)
    x = Pointwise(self.features, use_bias=False, kernel_init=kernel_init, name="fuse", **common)(x)
    return Norm("fuse", name="fuse_norm")(x, train=train)


class ClassHead(nn.Module):
  """Tells what class a photograph is of, from the mean of its features.

  Attributes:
    classes: number of classes.
    dtype: compute dtype.
  """

  classes: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, h, w, C] features to [B, classes] float32 logits."""
    chex.assert_rank(x, 4)
    pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    pooled = nn.LayerNorm(dtype=self.dtype, name="norm")(pooled)
    return Linear(self.classes, self.dtype, name="logits")(pooled).astype(jnp.float32)


def summarised(maps: Sequence[jax.Array]) -> jax.Array:
  """Summarises feature maps by the mean and the spread of every channel.

  Args:
    maps: [B, h, w, C] each, of any sizes and numbers of channels.

  Returns:
    [B, D] float32, D twice the number of all channels: their means, then the logarithms of their
    standard deviations.
  """
  chex.assert_rank(maps, 4)
  wide = [features.astype(jnp.float32) for features in maps]
  means = [jnp.mean(features, axis=(1, 2)) for features in wide]
  spreads = [jnp.log(jnp.std(features, axis=(1, 2)) + 1e-3) for features in wide]
  return jnp.concatenate([*means, *spreads], axis=-1)
