"""A network that is as unlike MedLiteNet as the project allows, as a newcomer would add it."""

import flax.linen as nn
import jax.numpy as jnp
import optax

from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.registry import NETWORKS
from medlitenet_jax.system.rules import number
from medlitenet_jax.training.losses import TERMS, Term, boundary_band

PATCH = 16  # pixels


class Guest(nn.Module):
  """Patches with learned positions, one attention layer, a mask and its edge; no BatchNorm.

  Attributes:
    image_size: pixels a side, for which the positions are learned.
    dim: channels of a patch.
    dtype: compute dtype.
  """

  image_size: int = 48
  dim: int = 16
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Maps [B, S, S, 3] to {"mask", "edge"}, each [B, S, S, 1] float32 logits."""
    b, size, grid = len(image), image.shape[1], image.shape[1] // PATCH
    x = nn.Conv(self.dim, (PATCH, PATCH), PATCH, dtype=self.dtype, name="embed")(image)
    positions = self.param("positions", nn.initializers.normal(0.02), (grid, grid, self.dim))
    x = (x + positions.astype(self.dtype)).reshape(b, grid * grid, self.dim)
    y = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
    x = x + nn.SelfAttention(num_heads=2, dtype=self.dtype, name="attention")(y)
    x = nn.Dense(2 * PATCH * PATCH, dtype=self.dtype, name="head")(x).astype(jnp.float32)
    x = x.reshape(b, grid, grid, PATCH, PATCH, 2).transpose(0, 1, 3, 2, 4, 5)
    mask, edge = jnp.split(x.reshape(b, size, size, 2), 2, axis=-1)
    return {"mask": mask, "edge": edge}


def edge_loss(outputs, targets, *, width):
  """Cross-entropy of the predicted edge."""
  edge = boundary_band(targets["mask"], width)
  return optax.losses.sigmoid_binary_cross_entropy(outputs["edge"], edge).mean((1, 2, 3))


NETWORKS["guest"] = Entry(Guest, sizes=lambda f: Sizes(PATCH, PATCH, only=(f["image_size"],)))
TERMS["edge"] = Term(edge_loss, {"width": number(least=0)})
