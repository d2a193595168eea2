"""Boundary-aware attention: a boundary map, and a gate that amplifies edges (paper III-D)."""

from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import ops
from medlitenet_jax.models.layers import Depthwise, Pointwise, note


def laplacian_init(key, shape, dtype=jnp.float32):
  """Eight-neighbour Laplacian, scaled so that the absolute values of its weights add up to 2.

  Args:
    key: unused; the kernel is not random.
    shape: (3, 3, 1, C), that of a 3x3 depthwise kernel.
    dtype: dtype of the kernel.

  Returns:
    Kernel of that shape; its response to a constant image is zero.

  Raises:
    ValueError: if shape is not (3, 3, 1, C).
  """
  del key
  if shape[:3] != (3, 3, 1):
    raise ValueError(f"a Laplacian kernel is (3, 3, 1, C), not {shape}")
  kernel = jnp.full((3, 3), -1 / 8, dtype).at[1, 1].set(1)
  return jnp.broadcast_to(kernel[:, :, None, None], shape)


class BoundaryMap(nn.Module):
  """Learned boundary response of a feature map (eq. 6).

  A 1x1 convolution to one channel, initialised as the mean of the channels, then a 3x3 convolution,
  initialised as a Laplacian.

  Attributes:
    form: form of the operations.
    dtype: compute dtype.
  """

  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] features to a [B, H, W, 1] response."""
    chex.assert_rank(x, 4)
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    mean = nn.initializers.constant(1 / x.shape[-1])
    x = Pointwise(1, use_bias=False, kernel_init=mean, name="project", **common)(x)
    # The border pixels are repeated outwards: padding with zeros would create an edge there.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    x = Depthwise(kernel_init=laplacian_init, name="laplacian", **common)(x)
    return x[:, 1:-1, 1:-1]


def _spread(x):
  """Standard deviation over the frame of [B, H, W, 1]: [B]."""
  return jnp.std(x.astype(jnp.float32), axis=(1, 2, 3))


class BoundaryGate(nn.Module):
  """Amplifies the features of pixels near a boundary (eq. 6-9).

    B  = boundary response of F                      eq. 6
    B' = B + W_g F_trans, resized to the grid of B   eq. 7, if context is given
    M  = sigmoid(conv1x1([F | B']))                  eq. 8
    F' = F * (1 + M)                                 eq. 9

  Attributes:
    form: form of the operations.
    dtype: compute dtype.
  """

  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, context=None):
    """Gates features.

    Args:
      x: [B, H, W, C] features F.
      context: [B, h, w, D] transformer features F_trans, or None to skip eq. 7 (B' = B).

    Returns:
      [B, H, W, C] gated features.
    """
    chex.assert_rank(x, 4)
    if context is not None:
      chex.assert_shape(context, (x.shape[0], None, None, None))
    boundary = BoundaryMap(form=self.form, dtype=self.dtype, name="boundary")(x)
    if context is not None:
      projected = Pointwise(1, form=self.form, dtype=self.dtype, name="context")(context)
      boundary += ops.enlarge(projected, *boundary.shape[1:3])
    stacked = jnp.concatenate([x, boundary], axis=-1)
    logits = Pointwise(1, form=self.form, dtype=self.dtype, name="gate")(stacked)

    def boundary_share():
      weight = self.variables["params"]["gate"]["kernel"][0, 0, -1, 0]
      return _spread(weight * boundary) / jnp.maximum(_spread(logits), 1e-12)

    note(self, "boundary_share", boundary_share)
    gate = nn.sigmoid(logits)
    return (x * (1 + gate.astype(jnp.float32))).astype(self.dtype)
