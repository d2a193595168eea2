"""U-Net++: a U-Net whose skips are dense chains of convolutions (Zhou et al., DLMIA 2018).

Node x(i, j) lies at level i, counted from the finest, and is the j-th of its chain. It sees all
nodes before it in its chain, and the one below, x(i + 1, j - 1), enlarged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models import ops
from medlitenet_jax.models.blocks import DoublingConv, conv, halve
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.layers import Norm, Pointwise, summarised
from medlitenet_jax.system.rules import number, whole

SIZES = Sizes(multiple=16, smallest=16)  # four halvings
LEVELS = 5
# The authors' plan in Keras, and a port to PyTorch that many comparisons use.
VARIANTS: dict[str, dict[str, Any]] = {
  "base": {},
  "batch_norm": {"batch_norm": True, "dropout": 0.0},
}
RULES = {"width": whole(1, 1024), "dropout": number(least=0, below=1)}


class Node(nn.Module):
  """Two 3x3 convolutions, each with ReLU and dropout.

  Attributes:
    features: output channels.
    batch_norm: whether BatchNorm stands before each ReLU.
    dropout: rate in training.
    dtype: compute dtype.
  """

  features: int
  batch_norm: bool = False
  dropout: float = 0.5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, C] to [B, H, W, features]."""
    for i in (1, 2):
      # By the inputs, which are up to five times the outputs: no norm would undo the growth.
      init = nn.initializers.he_normal()
      x = conv(self.features, kernel_init=init, dtype=self.dtype, name=f"conv{i}")(x)
      if self.batch_norm:
        x = Norm(f"conv{i}", activate=False, name=f"norm{i}")(x, train=train)
      x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{i}")(nn.relu(x))
    return x


def mean_probability(logits: Sequence[jax.Array]) -> jax.Array:
  """The logit of the mean of several probabilities.

  Args:
    logits: of each, float32 arrays of one shape.

  Returns:
    The same shape, float32; finite where all logits are, however large.
  """
  chex.assert_equal_shape(logits)
  stacked = jnp.stack(logits)
  lesion = jax.nn.logsumexp(nn.log_sigmoid(stacked), axis=0)
  return lesion - jax.nn.logsumexp(nn.log_sigmoid(-stacked), axis=0)


class UNetPlusPlus(nn.Module):
  """U-Net++ of five levels, for inputs whose sides are multiples of 16.

  The authors' L2 penalty of 1e-4 is not part of the network; see `config.optim.weight_decay`.

  Attributes:
    width: channels of the finest level; each level below has twice as many.
    batch_norm: whether nodes have BatchNorm, and maps are enlarged by interpolation, the corner
      pixels on each other. False: neither; transposed convolutions enlarge.
    dropout: rate after each ReLU in training.
    deep_supervision: whether x(0, 1) to x(0, 3) have heads too. In inference the mask is then the
      mean of all four heads' probabilities, the authors' "accurate mode".
    dtype: compute dtype; parameters and logits are float32.
  """

  width: int = 32
  batch_norm: bool = False
  dropout: float = 0.5
  deep_supervision: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, H, W, 3] normalised photograph, H and W multiples of 16.
      train: whether BatchNorm uses the batch's statistics and dropout acts (RNG "dropout").

    Returns:
      "mask": [B, H, W, 1] float32 logits; above 0 is lesion.
      "deep": with `deep_supervision` in training, {"head1", "head2", "head3"}: the [B, H, W, 1]
        float32 logits of the heads of x(0, 1) to x(0, 3); "mask" is then that of x(0, 4).
      "features": in inference, the [B, D] float32 summary of x(0, 0) to x(3, 0).

    Raises:
      ValueError: if H or W is not accepted.
    """
    chex.assert_shape(image, (None, None, None, 3))
    SIZES.check(*image.shape[1:3])
    chains: list[list[jax.Array]] = []  # by level
    x = image.astype(self.dtype)
    for level in range(LEVELS):
      x = self._node(level, 0)(halve(x) if level else x, train=train)
      chains.append([x])
    for place in range(1, LEVELS):
      for level in range(LEVELS - place):
        # The chain below has grown to x(level + 1, place - 1) and no further.
        below = self._enlarge(chains[level + 1][place - 1], level, place)
        x = jnp.concatenate([*chains[level], below], axis=-1)
        chains[level].append(self._node(level, place)(x, train=train))
    outputs: dict[str, Any] = {"mask": self._head("head")(chains[0][-1])}
    if self.deep_supervision:
      deep = {f"head{i}": self._head(f"head{i}")(chains[0][i]) for i in range(1, LEVELS - 1)}
      if train:
        outputs["deep"] = deep
      else:
        outputs["mask"] = mean_probability([*deep.values(), outputs["mask"]])
    encoded = [chain[0] for chain in chains[:-1]]
    return outputs if train else {**outputs, "features": summarised(encoded)}

  @nn.nowrap
  def _node(self, level: int, place: int) -> Node:
    return Node(
      self.width * 2**level, self.batch_norm, self.dropout, self.dtype, name=f"x{level}_{place}"
    )

  @nn.nowrap
  def _enlarge(self, x: jax.Array, level: int, place: int) -> jax.Array:
    """What x(level, place) sees of the node below it."""
    if self.batch_norm:
      return ops.enlarge_aligned(x, 2)
    return DoublingConv(self.width * 2**level, dtype=self.dtype, name=f"up{level}_{place}")(x)

  @nn.nowrap
  def _head(self, name: str) -> Pointwise:
    return Pointwise(1, dtype=self.dtype, result_dtype=jnp.float32, name=name)


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.unet_plus_plus`: (is its value valid, which values are)}."""
  return {name: rule.verdict(fields[name]) for name, rule in RULES.items()}


ENTRY = Entry(
  UNetPlusPlus,
  variants=VARIANTS,
  rules=rules,
  sizes=lambda fields: SIZES,
  # The term is the mean of its heads, each of which the authors let count as the mask does.
  loss_weights=lambda fields: {"deep": LEVELS - 2.0 if fields["deep_supervision"] else 0.0},
)
