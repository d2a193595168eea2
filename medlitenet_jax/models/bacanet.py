"""BACANet as it may be: a reconstruction after the abstract, not the authors' network.

Wu et al. (Boundary-aware convolutional attention network for liver segmentation in ultrasound
images, Scientific Reports 14:21529, 2024) publish no code. Known are a light backbone,
convolutional attention, a selective large kernel module for boundary features, supervision of the
boundary, an enhanced attention gate that hands body and boundary features to the decoder, and 7.56
million parameters. Not known are widths, depths, wiring and the weights of the loss.

So the parts here are published blocks. The encoder is MSCAN of the tiny size (Guo et al., SegNeXt,
2022), the module is that of LSKNet (Li et al., 2023), and the gate is that of Attention U-Net with
one more input. The wiring is ours, and the decoder is as wide as those parameters leave room for. A
table has to say of this network's row that it is a reconstruction. The names of the submodules are
the keys of a checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import knockout, ops
from medlitenet_jax.models.blocks import Coefficients, ConvMLP, DoubleConv, conv
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import (
  Depthwise,
  Norm,
  Pointwise,
  kernel_init,
  parameter,
  summarised,
)
from medlitenet_jax.models.tokens import drop_path, drop_rates
from medlitenet_jax.system.rules import number, several, whole

SIZES = Sizes(multiple=32, smallest=32)
STAGES = 4
STRIPS = (7, 11, 21)  # lengths in pixels
LAYER_SCALE = 1e-2  # that residual branches begin with
COUNT = whole(1, 4096)
RULES = {
  "depths": several(STAGES, COUNT),
  "mlp_ratios": several(STAGES, COUNT),
  "decoder_dims": several(STAGES - 1, COUNT),
  "drop_path": number(least=0, below=1),
}


class StripAttention(nn.Module):
  """Multiplies its input by what a 5x5 kernel and pairs of strips after it see.

  Attributes:
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.

  Reference: Guo et al., SegNeXt, 2022, equations 1 and 2.
  """

  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H, W, C]."""
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}

    def depthwise(x, size, name):
      return Depthwise(size=size, use_bias=True, name=name, **common)(x)

    seen = total = depthwise(x, (5, 5), "square")
    for length in STRIPS:
      strip = depthwise(seen, (1, length), f"strip{length}_across")
      total += depthwise(strip, (length, 1), f"strip{length}_down")
    return x * Pointwise(x.shape[-1], kernel_init=kernel_init, name="mix", **common)(total)


class SelectiveKernels(nn.Module):
  """Multiplies its input by what a small and a large kernel see, weighed at each pixel.

  The small one has 5x5 taps; the large one, of 7x7 taps three pixels apart, follows it.

  Attributes:
    form: form of the operations.
    dtype: compute dtype.

  Reference: Li et al., Large Selective Kernel Network for Remote Sensing, 2023.
  """

  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C], C even, to [B, H, W, C]."""
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    channels = x.shape[-1]
    near = Depthwise(size=(5, 5), use_bias=True, name="near", **common)(x)
    far = Depthwise(dilation=3, size=(7, 7), use_bias=True, name="far", **common)(near)
    near, far = (
      Pointwise(channels // 2, kernel_init=kernel_init, name=name, **common)(y)
      for y, name in ((near, "near_half"), (far, "far_half"))
    )
    both = jnp.concatenate([near, far], axis=-1)
    mean = jnp.mean(both, axis=-1, keepdims=True, dtype=jnp.float32).astype(self.dtype)
    summary = jnp.concatenate([mean, jnp.max(both, axis=-1, keepdims=True)], axis=-1)
    weights = nn.sigmoid(conv(2, 7, dtype=self.dtype, name="choose")(summary))
    chosen = near * weights[..., :1] + far * weights[..., 1:]
    return x * Pointwise(channels, kernel_init=kernel_init, name="out", **common)(chosen)


class Attention(nn.Module):
  """Adds to the input what a unit makes of it between two 1x1 convolutions.

  Attributes:
    unit: `StripAttention` or `SelectiveKernels`.
    form: form of the operations.
    dtype: compute dtype.

  Reference: Guo et al., Visual Attention Network, 2022, whose code adds the input.
  """

  unit: type[nn.Module]
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H, W, C]."""
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    before, after = (
      Pointwise(x.shape[-1], kernel_init=kernel_init, name=name, **common) for name in ("in", "out")
    )
    y = nn.gelu(before(x), approximate=False)
    return x + after(self.unit(name="unit", **common)(y))


class Block(nn.Module):
  """Attention and a feed-forward network, each after a BatchNorm and with a scaled residual.

  Attributes:
    mlp_ratio: ratio of the feed-forward network's hidden channels to the map's.
    drop_rate: how often a residual branch is left out in training.
    form: form of the operations.
    dtype: compute dtype.
  """

  mlp_ratio: int
  drop_rate: float
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, H, W, C]."""
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    drop, channels = drop_path(self.drop_rate, train=train), x.shape[-1]
    layers = {
      "attention": Attention(StripAttention, name="attention", **common),
      "mlp": ConvMLP(self.mlp_ratio * channels, kernel_init, name="mlp", **common),
    }
    for name, layer in layers.items():
      # Not foldable: its input is a sum, not what a convolution gives.
      y = layer(Norm(activate=False, name=f"{name}_norm")(x, train=train))
      start = nn.initializers.constant(LAYER_SCALE)
      scale = parameter(self, f"{name}_scale", start, (channels,))
      x = x + drop((scale * y).astype(self.dtype))
    return x


class Encoder(nn.Module):
  """MSCAN: four stages of blocks, each on a grid half as fine as the one before.

  Attributes:
    dims: channels of the stages.
    depths: blocks in each stage.
    mlp_ratios: of the blocks of each stage.
    drop_path: how often the last block leaves out a residual branch in training; the rate grows
      linearly from 0 at the first.
    form: form of the operations.
    dtype: compute dtype.
  """

  dims: tuple[int, ...]
  depths: tuple[int, ...]
  mlp_ratios: tuple[int, ...]
  drop_path: float
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, 3] to the maps of the stages, at strides 4, 8, 16 and 32."""

    def halved(x, features, name):
      x = conv(features, 3, stride=2, dtype=self.dtype, name=name)(x)
      return Norm(name, activate=False, name=f"{name}_norm")(x, train=train)

    x = nn.gelu(halved(x, self.dims[0] // 2, "stem"), approximate=False)
    maps = []
    rates = drop_rates(self.drop_path, self.depths)
    for stage, (dim, ratio, own) in enumerate(zip(self.dims, self.mlp_ratios, rates, strict=True)):
      name = f"stage{stage + 1}"
      x = halved(x, dim, f"{name}_embed")
      for i, rate in enumerate(own, start=1):
        x = Block(ratio, rate, self.form, self.dtype, name=f"{name}_block{i}")(x, train=train)
      x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"{name}_norm")(x)
      maps.append(x)
    return maps


class DecoderStage(nn.Module):
  """Doubles the map, gates the skip by the body and the boundary, and convolves all three twice.

  Attributes:
    features: output channels.
    form: form of the operations.
    dtype: compute dtype.
  """

  features: int
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, skip, boundary, *, train: bool):
    """Decodes one stage.

    Args:
      x: [B, h, w, D] features of the stage before: the body.
      skip: [B, 2h, 2w, C] features of the encoder.
      boundary: [B, 2h, 2w, C] boundary features of the skip.
      train: whether BatchNorm uses the batch's statistics.

    Returns:
      [B, 2h, 2w, features].
    """
    x = ops.upsample2x(x, self.form)
    gate = Coefficients(skip.shape[-1] // 2, self.form, self.dtype, name="gate")
    x = jnp.concatenate([skip * gate(skip, x, boundary, train=train), boundary, x], axis=-1)
    return DoubleConv(self.features, dtype=self.dtype, name="convs")(x, train=train)


class BACANet(nn.Module):
  """The whole network, for inputs whose sides are multiples of 32; see the top of the file.

  Attributes:
    dims: channels of the encoder's four stages, even numbers.
    depths: blocks in each stage.
    mlp_ratios: ratio of the feed-forward networks' hidden channels to the map's, in each stage.
    decoder_dims: channels of the decoder's three stages, coarsest first.
    drop_path: how often the encoder's last block leaves out a residual branch in training; the rate
      grows linearly from 0 at the first.
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype; parameters and logits are float32.
  """

  dims: tuple[int, ...] = (32, 64, 160, 256)
  depths: tuple[int, ...] = (3, 3, 5, 2)
  mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
  decoder_dims: tuple[int, ...] = (288, 192, 64)
  drop_path: float = 0.1
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, H, W, 3] normalised photograph, H and W multiples of 32.
      train: whether BatchNorm uses the batch's statistics and residual branches are left out (RNG
        "dropout").

    Returns:
      "mask": [B, H, W, 1] float32 logits, interpolated from stride 4; above 0 is lesion.
      "boundaries": for each of the encoder's first three stages, the [B, h, w, 1] float32 logits of
        the mask's border being in a cell, at strides 4, 8 and 16.
      "features": in inference, the [B, D] float32 summary of what these stages see.

    Raises:
      ValueError: if H or W is not accepted.
    """
    chex.assert_shape(image, (None, None, None, 3))
    SIZES.check(*image.shape[1:3])
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    encoder = Encoder(
      self.dims, self.depths, self.mlp_ratios, self.drop_path, name="encoder", **common
    )
    *skips, x = encoder(image.astype(self.dtype), train=train)
    boundaries = {}
    for level in (3, 2, 1):
      skip, dim = skips[level - 1], self.decoder_dims[3 - level]
      edges = Attention(SelectiveKernels, name=f"boundary{level}", **common)(skip)
      score = Pointwise(1, result_dtype=jnp.float32, name=f"boundary{level}_head", **common)
      boundaries[f"stage{level}"] = score(edges)
      stage = DecoderStage(dim, name=f"decoder{level}", **common)
      x = stage(x, skip, edges, train=train)
    logits = Pointwise(1, result_dtype=jnp.float32, name="head", **common)(x)
    outputs = {"mask": ops.enlarge(logits, *image.shape[1:3]), "boundaries": boundaries}
    return outputs if train else {**outputs, "features": summarised(skips)}


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.bacanet`: (is its value valid, which values are)}."""
  dims = fields["dims"]
  even = several(STAGES, COUNT).holds(dims) and all(dim % 2 == 0 for dim in dims)
  return {
    **{name: rule.verdict(fields[name]) for name, rule in RULES.items()},
    "dims": (even, f"takes {STAGES} even numbers, each {COUNT.takes}"),
  }


ENTRY = Entry(
  BACANet,
  rules=rules,
  sizes=lambda fields: SIZES,
  # Theirs is not known; this is the weight that MedLiteNet's boundary maps have.
  loss_weights=lambda fields: {"boundaries": 0.2},
  parts={
    "encoder": ("encoder",),
    "boundary": tuple(f"boundary{level}{end}" for level in (1, 2, 3) for end in ("", "_head")),
    "decoder": ("decoder1", "decoder2", "decoder3"),
    "head": ("head",),
  },
  expanded=("encoder",),
  knockouts={
    "attention": {"encoder/*/attention": knockout.unchanged},
    "boundary": {"boundary?": knockout.zero},
    "gate": {"*/gate": knockout.even},
  },
)
