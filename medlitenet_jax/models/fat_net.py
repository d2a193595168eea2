"""FAT-Net: a residual network beside a vision transformer, and adapted skips.

The plan is that of Wu et al., FAT-Net, Medical Image Analysis, 2022: ResNet-34 (He et al., 2016)
without its max-pooling, and the layers of the tiny DeiT (Touvron et al., 2021) without its
positions, extra tokens and last norm. The authors start both from weights trained on ImageNet. They
also build a decoder for the finest level that nothing calls; it is left out. The names of the
submodules are the keys of a checkpoint.
"""

import functools
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import knockout
from medlitenet_jax.models.blocks import ConvNormRelu, DoublingConv, conv
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import Norm, Pointwise, summarised
from medlitenet_jax.models.tokens import TransformerLayer
from medlitenet_jax.system.rules import several, whole

PATCH = 16  # pixels a side of a token, and the stride of the last stage
SIZES = Sizes(multiple=PATCH, smallest=PATCH)
STAGES = 4
REDUCTION = 16  # ratio of the channels to those of the gate's hidden layer
COUNT = whole(1, 4096)
RULES = {
  "units": several(STAGES, COUNT),
  "layers": COUNT,
  "heads": COUNT,
  "mlp_ratio": COUNT,
  "adaptations": several(STAGES - 1, COUNT),
}
_normal, _lecun = nn.initializers.truncated_normal(0.02), nn.initializers.lecun_normal()


def _normed(x, features: int, side: int, name: str, *, stride: int = 1, train: bool, dtype):
  """A convolution and its BatchNorm, as submodules of the one that calls it."""
  x = conv(features, side, stride=stride, use_bias=False, dtype=dtype, name=name)(x)
  return Norm(name, activate=False, name=f"{name}_norm")(x, train=train)


class ResidualUnit(nn.Module):
  """Two 3x3 convolutions with BatchNorm, added to the input: the unit of ResNet-34.

  Attributes:
    features: output channels.
    stride: of the first convolution, in pixels.
    dtype: compute dtype.
  """

  features: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    normed = functools.partial(_normed, features=self.features, train=train, dtype=self.dtype)
    y = nn.relu(normed(x, side=3, stride=self.stride, name="conv1"))
    y = normed(y, side=3, name="conv2")
    if x.shape != y.shape:
      x = normed(x, side=1, stride=self.stride, name="projection")
    return nn.relu(x + y)


class ResNet(nn.Module):
  """ResNet-34 without max-pooling and classifier, so that its last stage has stride 16.

  Attributes:
    width: channels of the stem and the first stage; each stage has twice those of the one before.
    units: residual units in each of the four stages.
    dtype: compute dtype.
  """

  width: int
  units: tuple[int, ...]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, 3] to the features of the stages, at strides 2, 4, 8 and 16."""
    x = nn.relu(_normed(x, self.width, 7, "stem", stride=2, train=train, dtype=self.dtype))
    maps = []
    for stage, units in enumerate(self.units, start=1):
      for i in range(1, units + 1):
        stride = 2 if stage > 1 and i == 1 else 1
        features = self.width * 2 ** (stage - 1)
        unit = ResidualUnit(features, stride, self.dtype, name=f"stage{stage}_unit{i}")
        x = unit(x, train=train)
      maps.append(x)
    return maps


class Transformer(nn.Module):
  """Vision transformer that is not told where a token lies, so that it takes any grid.

  Attributes:
    dim: channels of a token.
    layers: number of layers.
    heads: attention heads.
    mlp_ratio: ratio of the feed-forward networks' hidden channels to `dim`.
    dtype: compute dtype.
  """

  dim: int
  layers: int
  heads: int
  mlp_ratio: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, 3] to [B, H / 16, W / 16, dim]."""
    x = nn.Conv(self.dim, (PATCH, PATCH), PATCH, dtype=self.dtype, name="embed")(x)
    shape = x.shape
    x = x.reshape(shape[0], -1, self.dim)
    for i in range(1, self.layers + 1):
      layer = TransformerLayer(
        self.heads,
        self.mlp_ratio * self.dim,
        joint=True,
        kernel_init=_normal,
        dtype=self.dtype,
        name=f"layer{i}",
      )
      x = layer(x, train=train)
    return x.reshape(shape)


class ChannelGate(nn.Module):
  """Squeeze and excitation: weighs each channel by a function of the means of all.

  Attributes:
    dtype: compute dtype.

  Reference: Hu et al., Squeeze-and-Excitation Networks, 2018.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Gates [B, H, W, C]; the shape stays."""
    chex.assert_rank(x, 4)
    narrow, wide = (
      nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)
      for features, name in ((x.shape[-1] // REDUCTION, "squeeze"), (x.shape[-1], "excite"))
    )
    mean = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
    # In float32, because the gradient of the gate is a sum over all pixels.
    gate = nn.sigmoid(wide(nn.relu(narrow(mean))).astype(jnp.float32))
    return (x * gate[:, None, None]).astype(self.dtype)


class Adaptation(nn.Module):
  """Feature adaptation: relu(A x) + relu(B x), A a 3x3 and B a 1x1 convolution.

  No norm follows, so kernels begin with half the variance that usually suits a ReLU: with all of it
  the sum's mean square would be 2.6 times that of x, and hundreds of times after six applications.

  Attributes:
    repeats: how often it is applied, each time with the same kernels.
    dtype: compute dtype.
  """

  repeats: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H, W, C]."""
    wide, narrow = (
      conv(x.shape[-1], side, kernel_init=_lecun, dtype=self.dtype, name=name)
      for side, name in ((3, "conv3"), (1, "conv1"))
    )
    for _ in range(self.repeats):
      x = nn.relu(wide(x)) + nn.relu(narrow(x))
    return x


class DecoderStage(nn.Module):
  """Narrows to a quarter of the channels, doubles the map, and widens again.

  Attributes:
    features: output channels.
    dtype: compute dtype.

  Reference: Chaurasia and Culurciello, LinkNet, 2017.
  """

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
    narrow = x.shape[-1] // 4
    # The authors' convolutions have biases, which the norms take away again.
    reduce = ConvNormRelu(narrow, 1, use_bias=True, dtype=self.dtype, name="reduce")
    x = DoublingConv(narrow, 3, self.dtype, name="up")(reduce(x, train=train))
    x = nn.relu(Norm("up", activate=False, name="up_norm")(x, train=train))
    widen = ConvNormRelu(self.features, 1, use_bias=True, dtype=self.dtype, name="widen")
    return widen(x, train=train)


class FATNet(nn.Module):
  """The whole network, for inputs whose sides are multiples of 16.

  The authors' own takes 224x224 only, because it writes the grid of 14x14 tokens out; nothing else
  depends on it.

  Attributes:
    width: channels of the residual network's stem, a multiple of 4.
    units: residual units in each of its four stages.
    dim: channels of a token.
    layers: transformer layers.
    heads: attention heads.
    mlp_ratio: ratio of the feed-forward networks' hidden channels to `dim`.
    adaptations: how often the skips at strides 2, 4 and 8 are adapted.
    dtype: compute dtype; parameters and logits are float32.
  """

  width: int = 64
  units: tuple[int, ...] = (3, 4, 6, 3)
  dim: int = 192
  layers: int = 12
  heads: int = 3
  mlp_ratio: int = 4
  adaptations: tuple[int, ...] = (6, 4, 2)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, H, W, 3] normalised photograph, H and W multiples of 16.
      train: whether BatchNorm uses the batch's statistics.

    Returns:
      "mask": [B, H, W, 1] float32 logits; above 0 is lesion.
      "features": in inference, the [B, D] float32 summary of what the first three stages of the
        residual network see, up to stride 8.

    Raises:
      ValueError: if H or W is not accepted.
    """
    chex.assert_shape(image, (None, None, None, 3))
    SIZES.check(*image.shape[1:3])
    image = image.astype(self.dtype)
    *skips, deep = ResNet(self.width, self.units, self.dtype, name="resnet")(image, train=train)
    transformer = Transformer(
      self.dim, self.layers, self.heads, self.mlp_ratio, self.dtype, name="transformer"
    )
    tokens = transformer(image, train=train)
    x = self._fuse(deep, tokens)
    for level in (3, 2, 1):
      skip, repeats = skips[level - 1], self.adaptations[level - 1]
      stage = DecoderStage(skip.shape[-1], self.dtype, name=f"decoder{level}")
      adapt = Adaptation(repeats, self.dtype, name=f"adapt{level}")
      x = stage(x, train=train) + adapt(skip)
    outputs = {"mask": self._score(x)}
    return outputs if train else {**outputs, "features": summarised(skips)}

  @nn.nowrap
  def _fuse(self, deep, tokens):
    """Joins the maps of both branches, [B, h, w, 8 width] and [B, h, w, dim], to the first's."""
    features = deep.shape[-1]
    tokens = Pointwise(features, dtype=self.dtype, name="align")(tokens)
    x = ChannelGate(self.dtype, name="gate")(jnp.concatenate([deep, tokens], axis=-1))
    return Pointwise(features, dtype=self.dtype, name="fuse")(x)

  @nn.nowrap
  def _score(self, x):
    """Maps [B, H, W, width] to [B, 2H, 2W, 1] float32 logits."""
    half = self.width // 2
    x = nn.relu(DoublingConv(half, 4, self.dtype, name="head_up")(x))
    x = nn.relu(conv(half, dtype=self.dtype, name="head_conv")(x))
    # In float32, for logits that are not rounded.
    return conv(1, kernel_init=_lecun, name="head")(x)


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.fat_net`: (is its value valid, which values are)}."""
  width, dim, heads = (fields[name] for name in ("width", "dim", "heads"))
  return {
    **{name: rule.verdict(fields[name]) for name, rule in RULES.items()},
    "width": (COUNT.holds(width) and width % 4 == 0, f"takes {COUNT.takes}, a multiple of 4"),
    "dim": (
      COUNT.holds(dim) and COUNT.holds(heads) and dim % heads == 0,
      f"takes {COUNT.takes}, a multiple of heads, {heads}",
    ),
  }


ENTRY = Entry(
  FATNet,
  rules=rules,
  sizes=lambda fields: SIZES,
  parts={
    "resnet": ("resnet",),
    "transformer": ("transformer",),
    "fusion": ("align", "gate", "fuse"),
    "adaptation": ("adapt1", "adapt2", "adapt3"),
    "decoder": ("decoder1", "decoder2", "decoder3"),
    "head": ("head_up", "head_conv", "head"),
  },
  expanded=("resnet",),
  knockouts={
    "attention": {"*/attention": knockout.zero},
    "transformer": {"align": knockout.zero},
    "gate": {"gate": knockout.unchanged},
    "adaptation": {"adapt?": knockout.unchanged},
  },
)
