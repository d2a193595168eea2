"""Boundary-aware attention: a boundary map, and a gate that amplifies edges (paper III-D)."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medlitenet_jax.models import ops
from medlitenet_jax.models.layers import Depthwise, Pointwise, average_pool, note, parameter

START = -2.0  # bias of a gate of a magnitude: M begins at 0.12 on average


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

  As a magnitude, the 3x3 kernel keeps a sum of zero, and the absolute response is standardised over
  the frame: it stays an edge detector whatever is learned, and is as strong in every photograph.

  Attributes:
    magnitude: whether the response is one.
    form: form of the operations.
    dtype: compute dtype.
  """

  magnitude: bool = False
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Maps [B, H, W, C] features to a [B, H, W, 1] response; a magnitude is float32."""
    chex.assert_rank(x, 4)
    # In half precision an even area leaves differences of rounding, which standardising raises.
    dtype = jnp.float32 if self.magnitude else self.dtype
    mean = nn.initializers.constant(1 / x.shape[-1])
    x = Pointwise(
      1,
      use_bias=False,
      kernel_init=mean,
      form=self.form,
      dtype=self.dtype,
      result_dtype=dtype,
      name="project",
    )(x)
    # The border pixels are repeated outwards: padding with zeros would create an edge there.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    laplacian = Depthwise(
      kernel_init=laplacian_init,
      zero_sum=self.magnitude,
      form=self.form,
      dtype=dtype,
      name="laplacian",
    )
    x = laplacian(x)[:, 1:-1, 1:-1]
    if not self.magnitude:
      return x
    return standardised(jnp.abs(x))


def classical_edges(image, form: str = "platform"):
  """Edges of a photograph by two operators that learn nothing, at half its size.

  Args:
    image: [B, H, W, 3] normalised photograph, H and W even.
    form: form of the operations.

  Returns:
    [B, H / 2, W / 2, 2] float32: the magnitude of Sobel's gradient of the mean of the channels, and
    that of the Laplacian after a Gaussian (binomial, 3x3); each standardised over the frame.
  """
  chex.assert_shape(image, (None, None, None, 3))
  grey = average_pool(jnp.mean(image.astype(jnp.float32), axis=-1, keepdims=True), 2)

  def filtered(x, kernel):
    # The border pixels are repeated outwards: padding with zeros would create an edge there.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    kernel = jnp.asarray(kernel, jnp.float32)[:, :, None, None]
    return ops.depthwise_conv(x, kernel, form=form)[:, 1:-1, 1:-1]

  smooth, slope = np.array([1, 2, 1]) / 4, np.array([-1, 0, 1]) / 2
  sobel = jnp.hypot(
    filtered(grey, np.outer(smooth, slope)), filtered(grey, np.outer(slope, smooth))
  )
  laplacian = laplacian_init(None, (3, 3, 1, 1))[:, :, 0, 0]
  blob = jnp.abs(filtered(filtered(grey, np.outer(smooth, smooth)), laplacian))
  return standardised(jnp.concatenate([sobel, blob], axis=-1))


def standardised(x):
  """[B, H, W, C] float32 with a mean of 0 and a deviation of 1 over the frame of each channel."""
  x -= jnp.mean(x, axis=(1, 2), keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=(1, 2), keepdims=True) + 1e-5)


class BoundaryScores(nn.Module):
  """Turns boundary responses into logits, so that the mask's own border can supervise them."""

  @nn.compact
  def __call__(self, responses):
    """Maps the [B, h, w, 1] responses of several places to [B, h, w, 1] float32 logits."""
    scale = parameter(self, "scale", nn.initializers.ones_init(), (len(responses),))
    bias = parameter(self, "bias", nn.initializers.constant(-1.0), (len(responses),))
    return {
      place: scale[i] * response.astype(jnp.float32) + bias[i]
      for i, (place, response) in enumerate(responses.items())
    }


def _last_alone(key, shape, dtype=jnp.float32):
  """1 for the last input channel and 0 for the others, of a [1, 1, C, 1] kernel."""
  del key
  return jnp.zeros(shape, dtype).at[..., -1, :].set(1)


def _spread(x):
  """Standard deviation over the frame of [B, H, W, 1]: [B]."""
  return jnp.std(x.astype(jnp.float32), axis=(1, 2, 3))


class BoundaryGate(nn.Module):
  """Amplifies the features of pixels near a boundary (eq. 6-9).

    B  = boundary response of F                      eq. 6
    B' = B + W_g F_trans, resized to the grid of B   eq. 7, if context is given
    M  = sigmoid(conv1x1([F | B']))                  eq. 8
    F' = F * (1 + M)                                 eq. 9

  With a magnitude as B, the gate begins as one of B alone: W_g and the weights of F are zero, that
  of B is 1, and `START` keeps M small where there is no boundary.

  Attributes:
    magnitude: whether B is one, see `BoundaryMap`.
    form: form of the operations.
    dtype: compute dtype.
  """

  magnitude: bool = False
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, context=None, edges=None):
    """Gates features.

    Args:
      x: [B, H, W, C] features F.
      context: [B, h, w, D] transformer features F_trans, or None to skip eq. 7 (B' = B).
      edges: [B, k H, k W, E] edges of the photograph for any integer k, which join the features in
        eq. 8, or None.

    Returns:
      features: [B, H, W, C], gated.
      boundary: [B, H, W, 1], the response B.
    """
    chex.assert_rank(x, 4)
    if context is not None:
      chex.assert_shape(context, (x.shape[0], None, None, None))
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    response = boundary = BoundaryMap(self.magnitude, name="boundary", **common)(x)
    zeros: dict[str, Any] = {"kernel_init": nn.initializers.zeros_init()} if self.magnitude else {}
    if context is not None:
      projected = Pointwise(1, name="context", **zeros, **common)(context)
      boundary += ops.enlarge(projected, *boundary.shape[1:3])
    parts = [x, boundary.astype(x.dtype)]
    if edges is not None:
      parts.insert(1, average_pool(edges, edges.shape[1] // x.shape[1]).astype(x.dtype))
    stacked = jnp.concatenate(parts, axis=-1)
    start: dict[str, Any] = {
      "kernel_init": _last_alone,
      "bias_init": nn.initializers.constant(START),
    }
    logits = Pointwise(1, name="gate", **(start if self.magnitude else {}), **common)(stacked)

    def boundary_share():
      weight = self.variables["params"]["gate"]["kernel"][0, 0, -1, 0]
      return _spread(weight * response) / jnp.maximum(_spread(logits), 1e-12)

    note(self, "boundary_share", boundary_share)
    gate = nn.sigmoid(logits)
    return (x * (1 + gate.astype(jnp.float32))).astype(self.dtype), response
