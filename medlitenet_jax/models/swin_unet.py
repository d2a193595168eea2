"""Swin-Unet: a U-Net whose encoder and decoder are transformers with shifted windows.

The plan is that of Cao et al., Swin-Unet, 2021, of the tiny size, and the blocks are those of Liu
et al., Swin Transformer, 2021. The authors start encoder and decoder from weights trained on
ImageNet. The names of the submodules are the keys of a checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from medlitenet_jax.models import knockout
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import Linear, Pointwise, parameter, summarised
from medlitenet_jax.models.tokens import TokenMLP, attend, drop_path, drop_rates
from medlitenet_jax.system.rules import number, several, whole

PATCH = 4  # pixels a side of a token of the first stage
STAGES = 4
COUNT = whole(1, 4096)
RULES = {
  "window": whole(2, 64),
  "dim": COUNT,
  "depths": several(STAGES, COUNT),
  "mlp_ratio": COUNT,
  "drop_path": number(least=0, below=1),
}
VARIANTS = {"base": {"window": 7}, "window_8": {"window": 8}}
EPSILON = 1e-5  # of a LayerNorm
Stages = tuple[tuple[Mapping[str, Any], ...], ...]  # fields of the blocks of each stage
_normal = nn.initializers.normal(0.02)


def to_windows(x, window: int):
  """Cuts a map into windows: [B, H, W, C] to [B, (H/w)(W/w), w w, C], both in row-major order."""
  chex.assert_rank(x, 4)
  b, h, w, c = x.shape
  x = x.reshape(b, h // window, window, w // window, window, c)
  return x.swapaxes(2, 3).reshape(b, -1, window * window, c)


def from_windows(x, height: int, width: int):
  """Puts windows together again.

  Args:
    x: [B, K, w w, C] as `to_windows` gives them.
    height: of the map.
    width: of the map.

  Returns:
    [B, height, width, C].
  """
  chex.assert_rank(x, 4)
  b, c, window = x.shape[0], x.shape[3], round(x.shape[2] ** 0.5)
  x = x.reshape(b, height // window, width // window, window, window, c)
  return x.swapaxes(2, 3).reshape(b, height, width, c)


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
  """Which tokens of a window of the shifted map are neighbours on the map itself.

  A map that is rolled up and to the left by `shift` has its first rows and columns at its end,
  where the last windows hold them beside rows and columns of the opposite side.

  Args:
    height: rows of the map, a multiple of window.
    width: columns, likewise.
    window: side of a window.
    shift: by how much the map is rolled, from 1 to window - 1.

  Returns:
    [K, w w, w w] bool for the K windows: whether a token may attend to another.
  """
  rows, columns = (np.arange(side) >= side - shift for side in (height, width))
  came_round = 2 * rows[:, None] + columns
  regions = np.asarray(to_windows(came_round[None, ..., None], window))[0, ..., 0]
  return regions[:, :, None] == regions[:, None, :]


def relative_positions(window: int) -> np.ndarray:
  """Number of the offset between two tokens of a window, among its (2 w - 1)^2 offsets.

  Args:
    window: side of a window.

  Returns:
    [w w, w w] integers. Offsets, from the second token to the first, are in row-major order.
  """
  places = np.stack(np.divmod(np.arange(window * window), window))
  down, right = places[:, :, None] - places[:, None, :] + window - 1
  return down * (2 * window - 1) + right


class WindowAttention(nn.Module):
  """Multi-head self-attention within windows, biased by the tokens' relative position.

  Attributes:
    heads: attention heads; must divide the channels.
    window: side of a window in tokens; must divide the map's sides.
    shift: by how much the windows are moved down and to the right, in tokens.
    dtype: compute dtype; the softmax is computed in float32.
  """

  heads: int
  window: int
  shift: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H, W, C]."""
    chex.assert_rank(x, 4)
    _, h, w, c = x.shape
    table_shape = ((2 * self.window - 1) ** 2, self.heads)
    table = parameter(self, "position_bias", _normal, table_shape)
    bias = table[relative_positions(self.window)].transpose(2, 0, 1)
    if self.shift:
      x = jnp.roll(x, (-self.shift, -self.shift), (1, 2))
      near = shift_mask(h, w, self.window, self.shift)[:, None]
      # The authors subtract 100, which the softmax makes as good as nothing too.
      bias = jnp.where(near, bias, -1e9)
    qkv = Linear(3 * c, self.dtype, _normal, name="qkv")(x)
    qkv = to_windows(qkv, self.window)
    qkv = qkv.reshape(*qkv.shape[:3], 3, self.heads, -1)
    queries, keys, values = (qkv[..., i, :, :] for i in range(3))
    y = attend(queries, keys, values, bias)
    y = from_windows(y.reshape(*y.shape[:3], c), h, w)
    if self.shift:
      y = jnp.roll(y, (self.shift, self.shift), (1, 2))
    return Linear(c, self.dtype, _normal, name="out")(y)


class SwinBlock(nn.Module):
  """Window attention and a feed-forward network, each after a LayerNorm and with a residual.

  Attributes:
    heads: attention heads.
    window: side of a window in tokens.
    shifted: whether the windows are moved by half their side. They are not on a map that has a side
      of one window.
    mlp_ratio: ratio of the feed-forward network's hidden channels to the token's channels.
    drop_rate: how often a residual branch is left out in training.
    dtype: compute dtype.
  """

  heads: int
  window: int
  shifted: bool
  mlp_ratio: int
  drop_rate: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, H, W, C]."""
    drop = drop_path(self.drop_rate, train=train)
    shift = self.window // 2 if self.shifted and min(x.shape[1:3]) > self.window else 0
    y = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="attention_norm")(x)
    y = WindowAttention(self.heads, self.window, shift, self.dtype, name="attention")(y)
    x = x + drop(y)
    y = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="mlp_norm")(x)
    hidden = self.mlp_ratio * x.shape[-1]
    y = TokenMLP(hidden, kernel_init=_normal, dtype=self.dtype, name="mlp")(y, train=train)
    return x + drop(y)


class PatchMerging(nn.Module):
  """Halves the sides of a map and doubles its channels: 2x2 tokens become one.

  Attributes:
    dtype: compute dtype.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H/2, W/2, 2 C]."""
    chex.assert_rank(x, 4)
    b, h, w, c = x.shape
    # Of the four tokens, the lower left one comes second: columns, then rows.
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(b, h // 2, w // 2, 4 * c)
    x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(x)
    return nn.Dense(2 * c, use_bias=False, kernel_init=_normal, dtype=self.dtype, name="linear")(x)


class PatchExpanding(nn.Module):
  """Enlarges a map: a linear layer gives the channels of f x f tokens for each one.

  Attributes:
    factor: f, of the sides.
    features: output channels.
    dtype: compute dtype.
  """

  factor: int
  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] to [B, f H, f W, features]."""
    chex.assert_rank(x, 4)
    b, h, w, _ = x.shape
    f = self.factor
    x = nn.Dense(
      f * f * self.features, use_bias=False, kernel_init=_normal, dtype=self.dtype, name="linear"
    )(x)
    x = x.reshape(b, h, w, f, f, self.features).swapaxes(2, 3)
    x = x.reshape(b, f * h, f * w, self.features)
    return nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(x)


class Encoder(nn.Module):
  """Patches, and four stages with a merging of tokens after each but the last.

  Attributes:
    dim: channels of the first stage; each stage has twice those of the one before.
    stages: the fields of the blocks of each stage.
    dtype: compute dtype.
  """

  dim: int
  stages: Stages
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Extracts features.

    Args:
      x: [B, H, W, 3].
      train: whether residual branches are left out.

    Returns:
      What goes into the first three stages, [B, H/4, W/4, dim], [B, H/8, W/8, 2 dim] and
      [B, H/16, W/16, 4 dim], and what comes out of the last, [B, H/32, W/32, 8 dim].
    """
    x = nn.Conv(self.dim, (PATCH, PATCH), PATCH, dtype=self.dtype, name="embed")(x)
    x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="embed_norm")(x)
    skips = []
    for stage, blocks in enumerate(self.stages, start=1):
      if stage < STAGES:
        skips.append(x)
      for i, fields in enumerate(blocks, start=1):
        x = SwinBlock(**fields, dtype=self.dtype, name=f"stage{stage}_block{i}")(x, train=train)
      if stage < STAGES:
        x = PatchMerging(self.dtype, name=f"stage{stage}_merge")(x)
    return [*skips, nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(x)]


class Decoder(nn.Module):
  """Three stages, from the deepest but one up: an expansion, the skip, and the stage's blocks.

  Attributes:
    dim: channels of the first stage.
    stages: the fields of the blocks of each stage; those of the deepest are not used.
    dtype: compute dtype.
  """

  dim: int
  stages: Stages
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps, *, train: bool):
    """Maps the four of the encoder, [B, H/4, W/4, dim] the first, to [B, H, W, dim]."""
    *skips, x = maps
    for stage in range(STAGES - 1, 0, -1):
      dim, skip = self.dim * 2 ** (stage - 1), skips[stage - 1]
      x = PatchExpanding(2, dim, self.dtype, name=f"stage{stage}_expand")(x)
      join = Linear(dim, self.dtype, _normal, name=f"stage{stage}_join")
      x = join(jnp.concatenate([x, skip], axis=-1))
      for i, fields in enumerate(self.stages[stage - 1], start=1):
        x = SwinBlock(**fields, dtype=self.dtype, name=f"stage{stage}_block{i}")(x, train=train)
    x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(x)
    return PatchExpanding(PATCH, self.dim, self.dtype, name="expand")(x)


class SwinUnet(nn.Module):
  """The whole network, for inputs whose sides are multiples of 32 windows.

  Then the map of every stage is a whole number of windows. On smaller maps the authors' windows
  shrink, and with them the parameters.

  Attributes:
    window: side of a window in tokens.
    dim: channels of the first stage; each stage has twice those of the one before.
    depths: blocks in each of the four stages, of the encoder as of the decoder.
    heads: attention heads in each stage.
    mlp_ratio: ratio of the feed-forward networks' hidden channels to the token's channels.
    drop_path: how often the last block of the deepest stage leaves out a residual branch in
      training; the rate grows linearly from 0 at the first block. A stage of the decoder has the
      rates of the encoder's.
    dtype: compute dtype; parameters and logits are float32.
  """

  window: int = 7
  dim: int = 96
  depths: tuple[int, ...] = (2, 2, 2, 2)
  heads: tuple[int, ...] = (3, 6, 12, 24)
  mlp_ratio: int = 4
  drop_path: float = 0.2
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, H, W, 3] normalised photograph, H and W multiples of 32 windows.
      train: whether residual branches are left out (RNG "dropout").

    Returns:
      "mask": [B, H, W, 1] float32 logits; above 0 is lesion.
      "features": in inference, the [B, D] float32 summary of what goes into the first three stages,
        up to stride 16.

    Raises:
      ValueError: if H or W is not accepted.
    """
    chex.assert_shape(image, (None, None, None, 3))
    sizes({"window": self.window}).check(*image.shape[1:3])
    stages = self._stages()
    maps = Encoder(self.dim, stages, self.dtype, name="encoder")(image, train=train)
    x = Decoder(self.dim, stages, self.dtype, name="decoder")(maps, train=train)
    head = Pointwise(1, use_bias=False, dtype=self.dtype, result_dtype=jnp.float32, name="head")
    outputs = {"mask": head(x)}
    return outputs if train else {**outputs, "features": summarised(maps[:-1])}

  @nn.nowrap
  def _stages(self) -> Stages:
    """Fields of the blocks of each stage."""
    rates = drop_rates(self.drop_path, self.depths)
    return tuple(
      tuple(
        {
          "heads": heads,
          "window": self.window,
          "shifted": i % 2 == 1,
          "mlp_ratio": self.mlp_ratio,
          "drop_rate": rate,
        }
        for i, rate in enumerate(own)
      )
      for own, heads in zip(rates, self.heads, strict=True)
    )


def sizes(fields: Mapping[str, Any]) -> Sizes:
  """Multiples of 32 windows."""
  side = PATCH * 2 ** (STAGES - 1) * fields["window"]
  return Sizes(multiple=side, smallest=side)


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.swin_unet`: (is its value valid, which values are)}."""
  dim, heads = fields["dim"], fields["heads"]
  fits = COUNT.holds(dim) and several(STAGES, COUNT).holds(heads)
  fits = fits and all(dim * 2**stage % own == 0 for stage, own in enumerate(heads))
  return {
    **{name: rule.verdict(fields[name]) for name, rule in RULES.items()},
    "heads": (fits, f"takes four divisors of {dim} times 1, 2, 4 and 8"),
  }


ENTRY = Entry(
  SwinUnet,
  variants=VARIANTS,
  rules=rules,
  sizes=sizes,
  parts={"encoder": ("encoder",), "decoder": ("decoder",), "head": ("head",)},
  expanded=("encoder", "decoder"),
  knockouts={"attention": {"*/attention": knockout.zero}},
)
