"""SegFormer: a transformer of four stages without positions, and a decoder of linear layers.

The plan is that of Xie et al., SegFormer, NeurIPS 2021, of the smallest size, B0. The authors start
the encoder from weights trained on ImageNet. The names of the submodules are the keys of a
checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import knockout, ops
from medlitenet_jax.models.blocks import ConvMLP, conv
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import Linear, Norm, Pointwise, kernel_init, summarised
from medlitenet_jax.models.tokens import attend, drop_path, drop_rates
from medlitenet_jax.system.rules import number, several, whole

SIZES = Sizes(multiple=32, smallest=32)
PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))  # sides and strides of the stages' embeddings, in pixels
# The last stage's map is half as fine as that of the stage before it, and so on: with these, the
# keys and values of all stages are on the grid of the last one.
REDUCTIONS = (8, 4, 2, 1)
STAGES = 4
EPSILON = 1e-6  # of the blocks' and the stages' LayerNorm; the others have 1e-5
COUNT, RATE = whole(1, 4096), number(least=0, below=1)
RULES = {
  "dims": several(STAGES, COUNT),
  "depths": several(STAGES, COUNT),
  "mlp_ratio": COUNT,
  "decoder_dim": COUNT,
  "drop_path": RATE,
  "dropout": RATE,
}
_normal = nn.initializers.truncated_normal(0.02)


class EfficientAttention(nn.Module):
  """Multi-head self-attention whose keys and values come from a coarser map.

  Attributes:
    heads: attention heads; must divide the channels.
    reduction: ratio of the map's sides to those of the coarser one; 1: it is the map itself.
    dtype: compute dtype; the softmax is computed in float32.

  Reference: Wang et al., Pyramid Vision Transformer, 2021, whose coarser map is the same.
  """

  heads: int
  reduction: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H, W, C], H and W multiples of the reduction."""
    chex.assert_rank(x, 4)
    b, channels = len(x), x.shape[-1]

    def split(y):
      return y.reshape(b, -1, self.heads, channels // self.heads)

    queries = split(Linear(channels, self.dtype, _normal, name="query")(x))
    seen = x
    if self.reduction > 1:
      squares = (self.reduction, self.reduction)
      reduce = nn.Conv(
        channels, squares, squares, kernel_init=kernel_init, dtype=self.dtype, name="reduce"
      )
      seen = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="reduce_norm")(reduce(x))
    joint = Linear(2 * channels, self.dtype, _normal, name="keys_and_values")(seen)
    keys, values = map(split, jnp.split(joint, 2, axis=-1))
    y = attend(queries, keys, values).reshape(x.shape)
    return Linear(channels, self.dtype, _normal, name="out")(y)


class Block(nn.Module):
  """Attention and a feed-forward network, each after a LayerNorm and with a residual connection.

  The feed-forward network's depthwise convolution tells a token where it lies, by the zeros around
  the map.

  Attributes:
    heads: attention heads.
    reduction: of the attention.
    mlp_ratio: ratio of the feed-forward network's hidden channels to the token's channels.
    drop_rate: how often a residual branch is left out in training.
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
  """

  heads: int
  reduction: int
  mlp_ratio: int
  drop_rate: float
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, H, W, C]."""
    drop = drop_path(self.drop_rate, train=train)
    attention = EfficientAttention(self.heads, self.reduction, self.dtype, name="attention")
    y = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="attention_norm")(x)
    x = x + drop(attention(y))
    y = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="mlp_norm")(x)
    hidden = self.mlp_ratio * x.shape[-1]
    return x + drop(ConvMLP(hidden, _normal, self.form, self.dtype, name="mlp")(y))


class Encoder(nn.Module):
  """Four stages, each an embedding of overlapping patches and some blocks.

  Attributes:
    dims: channels of the stages.
    depths: blocks in each stage.
    heads: attention heads in each stage.
    mlp_ratio: ratio of the feed-forward networks' hidden channels to the token's channels.
    drop_path: how often the last block leaves out a residual branch in training; the rate grows
      linearly from 0 at the first.
    form: form of the operations.
    dtype: compute dtype.
  """

  dims: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  mlp_ratio: int
  drop_path: float
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, 3] to the maps of the stages, at strides 4, 8, 16 and 32."""
    maps = []
    for stage, (side, stride) in enumerate(PATCHES):
      name = f"stage{stage + 1}"
      embed = conv(self.dims[stage], side, stride=stride, dtype=self.dtype, name=f"{name}_embed")
      x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"{name}_embed_norm")(embed(x))
      for i, rate in enumerate(drop_rates(self.drop_path, self.depths)[stage], start=1):
        block = Block(
          self.heads[stage],
          REDUCTIONS[stage],
          self.mlp_ratio,
          rate,
          self.form,
          self.dtype,
          name=f"{name}_block{i}",
        )
        x = block(x, train=train)
      x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name=f"{name}_norm")(x)
      maps.append(x)
    return maps


class Decoder(nn.Module):
  """Brings the maps to one width and one grid, and fuses them.

  Attributes:
    dim: channels.
    form: form of the operations.
    dtype: compute dtype.
  """

  dim: int
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps, *, train: bool):
    """Maps those of the encoder, [B, H/4, W/4, C] the first, to [B, H/4, W/4, dim]."""
    height = maps[0].shape[1]
    wide = []
    # The coarsest first: so the authors' weights of the fusion lie. Kernels begin by the number of
    # inputs, as the authors' do, so that maps of few channels weigh as much as others.
    for stage, x in reversed(list(enumerate(maps, start=1))):
      x = Linear(self.dim, self.dtype, name=f"stage{stage}")(x)
      wide.append(ops.enlarge_by(x, height // x.shape[1]) if stage > 1 else x)
    x = Pointwise(
      self.dim,
      use_bias=False,
      kernel_init=kernel_init,
      form=self.form,
      dtype=self.dtype,
      name="fuse",
    )(jnp.concatenate(wide, axis=-1))
    return nn.relu(Norm("fuse", activate=False, name="fuse_norm")(x, train=train))


class SegFormer(nn.Module):
  """The whole network, for inputs whose sides are multiples of 32.

  Attributes:
    dims: channels of the encoder's four stages.
    depths: blocks in each stage.
    heads: attention heads in each stage.
    mlp_ratio: ratio of the feed-forward networks' hidden channels to the token's channels.
    decoder_dim: channels of the decoder.
    drop_path: how often the encoder's last block leaves out a residual branch in training; the rate
      grows linearly from 0 at the first.
    dropout: rate of the decoder's channels in training, before the head.
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype; parameters and logits are float32.
  """

  dims: tuple[int, ...] = (32, 64, 160, 256)
  depths: tuple[int, ...] = (2, 2, 2, 2)
  heads: tuple[int, ...] = (1, 2, 5, 8)
  mlp_ratio: int = 4
  decoder_dim: int = 256
  drop_path: float = 0.1
  dropout: float = 0.1
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, H, W, 3] normalised photograph, H and W multiples of 32.
      train: whether BatchNorm uses the batch's statistics, and residual branches and channels are
        left out (RNG "dropout").

    Returns:
      "mask": [B, H, W, 1] float32 logits, interpolated from stride 4; above 0 is lesion.
      "features": in inference, the [B, D] float32 summary of what the first three stages see, up to
        stride 16.

    Raises:
      ValueError: if H or W is not accepted.
    """
    chex.assert_shape(image, (None, None, None, 3))
    SIZES.check(*image.shape[1:3])
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    encoder = Encoder(
      self.dims,
      self.depths,
      self.heads,
      self.mlp_ratio,
      self.drop_path,
      name="encoder",
      **common,
    )
    maps = encoder(image.astype(self.dtype), train=train)
    x = Decoder(self.decoder_dim, name="decoder", **common)(maps, train=train)
    # Whole channels, which neighbours could not stand in for.
    x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
    logits = Pointwise(1, result_dtype=jnp.float32, name="head", **common)(x)
    outputs = {"mask": ops.enlarge(logits, *image.shape[1:3])}
    return outputs if train else {**outputs, "features": summarised(maps[:-1])}


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.segformer`: (is its value valid, which values are)}."""
  dims, heads = fields["dims"], fields["heads"]
  fits = all(several(STAGES, COUNT).holds(values) for values in (dims, heads))
  fits = fits and all(dim % own == 0 for dim, own in zip(dims, heads, strict=True))
  return {
    **{name: rule.verdict(fields[name]) for name, rule in RULES.items()},
    "heads": (fits, f"takes four divisors of dims, {dims}"),
  }


ENTRY = Entry(
  SegFormer,
  rules=rules,
  sizes=lambda fields: SIZES,
  parts={"encoder": ("encoder",), "decoder": ("decoder",), "head": ("head",)},
  expanded=("encoder", "decoder"),
  knockouts={
    "attention": {"*/attention": knockout.zero},
    "mlp": {"*/mlp": knockout.zero},
    "stages": {"decoder/stage?": knockout.zero},
  },
)
