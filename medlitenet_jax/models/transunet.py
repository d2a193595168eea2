"""TransUNet: a ResNet-50 stem, a vision transformer on its 1/16 map, and a decoder with skips.

The plan and the numbers are those of R50-ViT-B/16 in Chen et al., TransUNet, 2021; the stem is the
one of Kolesnikov et al., Big Transfer, 2020, with activations after the convolutions. The authors
start from weights trained on ImageNet-21k. The names of the submodules are the keys of a
checkpoint.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from medlitenet_jax.models import knockout, ops
from medlitenet_jax.models.blocks import ConvNormRelu, DoubleConv, conv
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import Pointwise, kernel_init, parameter, summarised
from medlitenet_jax.models.tokens import TransformerLayer
from medlitenet_jax.system.rules import number, several, whole

STRIDE = 16  # pixels a side that a token stands for
GROUPS = 32  # of a GroupNorm
COUNT = whole(1, 4096)
SIDE = whole(2 * STRIDE, 4096)
RULES = {
  "units": several(3, COUNT),
  "heads": COUNT,
  "layers": COUNT,
  "mlp_dim": COUNT,
  "decoder_dims": several(5, COUNT),
  "dropout": number(least=0, below=1),
}
VARIANTS = {"base": {"image_size": 224}, "size_256": {"image_size": 256}}


def standardised(kernel):
  """A kernel [h, w, C, C'] whose weights for each output have a mean of 0 and a variance of 1.

  The variance is the biased one, with 1e-5 added to it.

  Reference: Qiao et al., Weight Standardization, 2019.
  """
  chex.assert_rank(kernel, 4)
  centred = kernel - jnp.mean(kernel, axis=(0, 1, 2))
  return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=(0, 1, 2)) + 1e-5)


class StandardisedConv(nn.Module):
  """Convolution without bias by a standardised kernel, padded by half its reach on each side.

  Attributes:
    features: output channels.
    side: of the kernel in pixels, odd.
    stride: distance between outputs in pixels.
    dtype: compute dtype; the kernel is standardised in float32.
  """

  features: int
  side: int = 1
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    chex.assert_rank(x, 4)
    shape = (self.side, self.side, x.shape[-1], self.features)
    kernel = standardised(parameter(self, "kernel", kernel_init, shape))
    if self.side == 1:
      # On a CPU the gradient of the product takes about half as long as that of XLA's convolution.
      every = x[:, :: self.stride, :: self.stride].astype(self.dtype)
      return ops.pointwise_conv(every, kernel.astype(self.dtype))
    reach = (self.side - 1) // 2
    return lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      window_strides=(self.stride, self.stride),
      padding=((reach, reach), (reach, reach)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Bottleneck(nn.Module):
  """Residual unit of three standardised convolutions, 1x1, 3x3 and 1x1, each with GroupNorm.

  Attributes:
    features: output channels, four times those of the first two convolutions.
    stride: of the 3x3 convolution, in pixels.
    dtype: compute dtype.
  """

  features: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    shortcut = x
    if self.stride != 1 or x.shape[-1] != self.features:
      project = StandardisedConv(
        self.features, stride=self.stride, dtype=self.dtype, name="projection"
      )
      # As the authors have it: this norm alone takes each channel by itself.
      norm = nn.GroupNorm(self.features, epsilon=1e-5, dtype=self.dtype, name="projection_norm")
      shortcut = norm(project(x))
    middle = self.features // 4
    for i, (features, side) in enumerate(((middle, 1), (middle, 3), (self.features, 1)), start=1):
      stride = self.stride if side == 3 else 1
      x = StandardisedConv(features, side, stride, self.dtype, name=f"conv{i}")(x)
      x = nn.GroupNorm(GROUPS, epsilon=1e-6, dtype=self.dtype, name=f"norm{i}")(x)
      x = nn.relu(x if i < 3 else x + shortcut)
    return x


class Backbone(nn.Module):
  """The stem and three stages of ResNet-50.

  Attributes:
    width: channels of the stem; the stages have 4, 8 and 16 times as many.
    units: residual units in each stage.
    dtype: compute dtype.
  """

  width: int
  units: tuple[int, ...]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Extracts features.

    Args:
      x: [B, S, S, 3], S a multiple of 16.

    Returns:
      The maps of the stem and the stages: [B, S/2, S/2, width], [B, S/4 - 1, S/4 - 1, 4 width],
      [B, S/8, S/8, 8 width] and [B, S/16, S/16, 16 width]. The second has lost a pixel because the
      max-pooling before it is not padded.
    """
    x = StandardisedConv(self.width, 7, 2, self.dtype, name="stem")(x)
    x = nn.relu(nn.GroupNorm(GROUPS, epsilon=1e-6, dtype=self.dtype, name="stem_norm")(x))
    maps = [x]
    x = nn.max_pool(x, (3, 3), (2, 2))
    for stage, units in enumerate(self.units, start=1):
      for i in range(units):
        stride = 2 if stage > 1 and i == 0 else 1
        features = self.width * 2 ** (stage + 1)
        x = Bottleneck(features, stride, self.dtype, name=f"stage{stage}_unit{i + 1}")(x)
      maps.append(x)
    return maps


class Transformer(nn.Module):
  """Vision transformer whose tokens are the places of a map, without one for the class.

  Attributes:
    dim: channels of a token.
    layers: number of layers.
    heads: attention heads.
    mlp_dim: hidden channels of the feed-forward networks.
    dropout: rate on the tokens and in the feed-forward networks in training.
    dtype: compute dtype.

  Reference: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021.
  """

  dim: int
  layers: int
  heads: int
  mlp_dim: int
  dropout: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, h, w, C] to [B, h, w, dim]; h and w are those that it was initialised with."""
    b, h, w, _ = x.shape
    x = Pointwise(self.dim, dtype=self.dtype, name="embed")(x)
    positions = parameter(self, "positions", nn.initializers.normal(0.02), (h, w, self.dim))
    x = (x + positions).astype(self.dtype).reshape(b, h * w, self.dim)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    for i in range(self.layers):
      layer = TransformerLayer(
        self.heads, self.mlp_dim, self.dropout, dtype=self.dtype, name=f"layer{i + 1}"
      )
      x = layer(x, train=train)
    x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
    return x.reshape(b, h, w, self.dim)


class TransUNet(nn.Module):
  """The whole network, for square inputs of one size: its positions are learned.

  Attributes:
    image_size: side of the inputs in pixels, a multiple of 16.
    width: channels of the stem.
    units: residual units in each of the three stages.
    dim: channels of a token.
    layers: transformer layers.
    heads: attention heads.
    mlp_dim: hidden channels of the feed-forward networks.
    decoder_dims: channels of the decoder's first convolution and of its four stages, deepest first.
    dropout: rate in the transformer in training.
    dtype: compute dtype; parameters and logits are float32.
  """

  image_size: int = 224
  width: int = 64
  units: tuple[int, ...] = (3, 4, 9)
  dim: int = 768
  layers: int = 12
  heads: int = 12
  mlp_dim: int = 3072
  decoder_dims: tuple[int, ...] = (512, 256, 128, 64, 16)
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, image_size, image_size, 3] normalised photograph.
      train: whether BatchNorm uses the batch's statistics and dropout acts (RNG "dropout").

    Returns:
      "mask": [B, image_size, image_size, 1] float32 logits; above 0 is lesion.
      "features": in inference, the [B, D] float32 summary of what the stem and the first two stages
        see, up to stride 8.

    Raises:
      ValueError: if the image has another size.
    """
    chex.assert_shape(image, (None, None, None, 3))
    sizes({"image_size": self.image_size}).check(*image.shape[1:3])
    *skips, x = Backbone(self.width, self.units, self.dtype, name="backbone")(image)
    x = Transformer(
      self.dim,
      self.layers,
      self.heads,
      self.mlp_dim,
      self.dropout,
      self.dtype,
      name="transformer",
    )(x, train=train)
    first, *dims = self.decoder_dims
    x = ConvNormRelu(first, dtype=self.dtype, name="decoder_input")(x, train=train)
    for stage, (dim, skip) in enumerate(itertools.zip_longest(dims, reversed(skips)), start=1):
      x = ops.enlarge_aligned(x, 2)
      if skip is not None:
        # The pixel that the max-pooling took: at the right and at the bottom, as the authors do.
        lost = (0, x.shape[1] - skip.shape[1])
        x = jnp.concatenate([x, jnp.pad(skip, ((0, 0), lost, lost, (0, 0)))], axis=-1)
      x = DoubleConv(dim, dtype=self.dtype, name=f"decoder{stage}")(x, train=train)
    # In float32, for logits that are not rounded.
    outputs = {"mask": conv(1, kernel_init=nn.initializers.lecun_normal(), name="head")(x)}
    return outputs if train else {**outputs, "features": summarised(skips)}


def sizes(fields: Mapping[str, Any]) -> Sizes:
  """One alone, for the positions are learned."""
  return Sizes(STRIDE, 2 * STRIDE, only=(fields["image_size"],))


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.transunet`: (is its value valid, which values are)}."""
  size, width, heads, dim = (fields[name] for name in ("image_size", "width", "heads", "dim"))
  return {
    **{name: rule.verdict(fields[name]) for name, rule in RULES.items()},
    "image_size": (
      SIDE.holds(size) and size % STRIDE == 0,
      f"takes {SIDE.takes}, a multiple of {STRIDE}",
    ),
    "width": (
      COUNT.holds(width) and width % GROUPS == 0,
      f"takes {COUNT.takes}, a multiple of {GROUPS}",
    ),
    "dim": (
      COUNT.holds(dim) and COUNT.holds(heads) and dim % heads == 0,
      f"takes {COUNT.takes}, a multiple of heads, {heads}",
    ),
  }


ENTRY = Entry(
  TransUNet,
  variants=VARIANTS,
  rules=rules,
  sizes=sizes,
  parts={
    "backbone": ("backbone",),
    "transformer": ("transformer",),
    "decoder": ("decoder_input", *(f"decoder{stage}" for stage in range(1, 5))),
    "head": ("head",),
  },
  expanded=("backbone",),
  knockouts={"attention": {"*/attention": knockout.zero}},
)
