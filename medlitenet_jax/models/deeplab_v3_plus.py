"""DeepLabV3+ with a MobileNetV2 encoder at output stride 16.

Chen et al., ECCV 2018; Sandler et al., CVPR 2018. The plan is that of the popular PyTorch library
segmentation_models_pytorch, whose atrous convolutions are separable.
"""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import ops
from medlitenet_jax.models.blocks import ConvNormRelu
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import (
  Depthwise,
  MBConv,
  Norm,
  Pointwise,
  Stem,
  kernel_init,
  summarised,
)
from medlitenet_jax.system.rules import number, several, whole

SIZES = Sizes(multiple=16, smallest=16)  # four halvings
# Of MobileNetV2's seven stages: stride of the first block, dilation, and ratio of the wide layer.
# The last stage but one has stride 2 in a classifier; here its grid stays, and its kernels spread.
STRIDES = (1, 2, 2, 2, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 1, 2, 2)
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
SKIP_STAGE = 2  # whose features, at stride 4, the decoder sees
COUNT = whole(1, 4096)
DILATION = whole(1, 256)
RULES = {
  "encoder_dims": several(len(STRIDES) + 2, COUNT),
  "encoder_blocks": several(len(STRIDES), COUNT),
  "dim": COUNT,
  "skip_dim": COUNT,
  "dropout": number(least=0, below=1),
}


class Encoder(nn.Module):
  """MobileNetV2 without its classifier, at output stride 16.

  Attributes:
    dims: channels of the stem, of the seven stages and of the 1x1 convolution at the end.
    blocks: number of blocks of each stage.
    form: form of the operations.
    dtype: compute dtype.
  """

  dims: tuple[int, ...]
  blocks: tuple[int, ...]
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Encodes a photograph.

    Args:
      x: [B, H, W, 3].
      train: whether BatchNorm uses the batch's statistics.

    Returns:
      stages: the features of the seven stages, at strides 2, 4, 8 and, from the fourth on, 16.
      deep: [B, H / 16, W / 16, dims[-1]].
    """
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    first, *dims, last = self.dims
    x = Stem(first, name="stem", **common)(x)
    x = nn.relu6(Norm("stem", activate=False, name="stem_norm")(x, train=train))
    stages = []
    plan = zip(dims, self.blocks, STRIDES, DILATIONS, EXPANSIONS, strict=True)
    for stage, (dim, blocks, stride, dilation, expansion) in enumerate(plan, start=1):
      for block in range(1, blocks + 1):
        mbconv = MBConv(
          dim,
          stride if block == 1 else 1,
          dilation,
          expansion,
          relu6=True,
          name=f"stage{stage}_block{block}",
          **common,
        )
        x = mbconv(x, train=train)
      stages.append(x)
    x = Pointwise(last, use_bias=False, kernel_init=kernel_init, name="last", **common)(x)
    return stages, nn.relu6(Norm("last", activate=False, name="last_norm")(x, train=train))


class SeparableConv(nn.Module):
  """3x3 depthwise convolution, then a 1x1 convolution, BatchNorm and ReLU.

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
    # Taps farther away than the map is large lie off it all the same, and cost a wider frame.
    dilation = min(self.dilation, max(x.shape[1:3]))
    x = Depthwise(dilation=dilation, name="depthwise", **common)(x)
    return ConvNormRelu(self.features, 1, name="pointwise", **common)(x, train=train)


class AtrousPyramid(nn.Module):
  """A 1x1 convolution, separable ones at several dilations and the mean over the frame, fused.

  Attributes:
    features: channels of each branch and of the output.
    dilations: in pixels of the map.
    dropout: rate in training.
    form: form of the operations.
    dtype: compute dtype.
  """

  features: int
  dilations: tuple[int, ...]
  dropout: float = 0.0
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, h, w, C] to [B, h, w, features]."""
    chex.assert_rank(x, 4)
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    branches = [ConvNormRelu(self.features, 1, name="centre", **common)(x, train=train)]
    for dilation in self.dilations:
      branch = SeparableConv(self.features, dilation, name=f"dilation{dilation}", **common)
      branches.append(branch(x, train=train))
    mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
    mean = ConvNormRelu(self.features, 1, name="pool", **common)(mean, train=train)
    branches.append(jnp.broadcast_to(mean, branches[0].shape))
    x = jnp.concatenate(branches, axis=-1)
    x = ConvNormRelu(self.features, 1, name="fuse", **common)(x, train=train)
    return nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)


class DeepLabV3Plus(nn.Module):
  """DeepLabV3+ on MobileNetV2, for inputs whose sides are multiples of 16.

  Attributes:
    encoder_dims: channels of the stem, of the seven stages and at the encoder's end.
    encoder_blocks: number of blocks of each stage.
    dim: channels of the pyramid and the decoder.
    skip_dim: channels that the decoder sees of the stage at stride 4.
    dilations: of the pyramid, in pixels at stride 16.
    dropout: rate at the pyramid's end in training.
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype; parameters and logits are float32.
  """

  encoder_dims: tuple[int, ...] = (32, 16, 24, 32, 64, 96, 160, 320, 1280)
  encoder_blocks: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
  dim: int = 256
  skip_dim: int = 48
  dilations: tuple[int, ...] = (12, 24, 36)
  dropout: float = 0.5
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, H, W, 3] normalised photograph, H and W multiples of 16.
      train: whether BatchNorm uses the batch's statistics and dropout acts (RNG "dropout").

    Returns:
      "mask": [B, H, W, 1] float32 logits; above 0 is lesion.
      "features": in inference, the [B, D] float32 summary of what the encoder's stages see at
        strides 2, 4, 8 and 16.

    Raises:
      ValueError: if H or W is not accepted.
    """
    chex.assert_shape(image, (None, None, None, 3))
    SIZES.check(*image.shape[1:3])
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    encoder = Encoder(self.encoder_dims, self.encoder_blocks, name="encoder", **common)
    stages, x = encoder(image.astype(self.dtype), train=train)
    pyramid = AtrousPyramid(self.dim, self.dilations, self.dropout, name="aspp", **common)
    x = SeparableConv(self.dim, name="refine", **common)(pyramid(x, train=train), train=train)
    skip = ConvNormRelu(self.skip_dim, 1, name="skip", **common)
    seen = skip(stages[SKIP_STAGE - 1], train=train)
    x = jnp.concatenate([ops.enlarge_aligned(x, 4), seen], axis=-1)
    x = SeparableConv(self.dim, name="decoder", **common)(x, train=train)
    logits = Pointwise(1, result_dtype=jnp.float32, name="head", **common)(x)
    outputs = {"mask": ops.enlarge_aligned(logits, 4)}
    # Of the stages at one stride the last before the dilated ones.
    seen_by = [stages[i] for i in (0, 1, 2, 4)]
    return outputs if train else {**outputs, "features": summarised(seen_by)}


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.deeplab_v3_plus`: (is its value valid, which values are)}."""
  dilations = fields["dilations"]
  return {
    **{name: rule.verdict(fields[name]) for name, rule in RULES.items()},
    "dilations": (
      all(map(DILATION.holds, dilations)) and len(dilations) == len(set(dilations)),
      f"takes different numbers, each {DILATION.takes}",
    ),
  }


ENTRY = Entry(DeepLabV3Plus, rules=rules, sizes=lambda fields: SIZES, expanded=("encoder",))
