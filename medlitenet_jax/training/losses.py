"""Segmentation losses from logits: per case, in float32 whatever the compute dtype."""

import flax.linen as nn
import jax.numpy as jnp
import optax


def _as_float32(logits, mask):
  if logits.shape != mask.shape or logits.ndim != 4:
    raise ValueError(f"logits {logits.shape} and mask {mask.shape} must be one [B, H, W, 1] shape")
  return logits.astype(jnp.float32), mask.astype(jnp.float32)


def bce_loss(logits, mask, weight=None):
  """Binary cross-entropy, averaged over the pixels of each case (eq. 11).

  Args:
    logits: [B, H, W, 1] scores before the sigmoid, any float dtype.
    mask: [B, H, W, 1] ground truth in [0, 1].
    weight: [B, H, W, 1] weight of each pixel, or None for 1 everywhere.

  Returns:
    [B] float32.

  Raises:
    ValueError: if logits and mask differ in shape or are not rank 4.
  """
  logits, mask = _as_float32(logits, mask)
  pixels = optax.losses.sigmoid_binary_cross_entropy(logits, mask)
  if weight is None:
    return jnp.mean(pixels, axis=(1, 2, 3))
  return jnp.sum(pixels * weight, axis=(1, 2, 3)) / jnp.sum(weight, axis=(1, 2, 3))


def dice_loss(logits, mask, epsilon: float = 1.0):
  """Soft Dice loss of each case (eq. 10).

  Args:
    logits: [B, H, W, 1] scores before the sigmoid, any float dtype.
    mask: [B, H, W, 1] ground truth in [0, 1].
    epsilon: smoothing term, in pixels; makes an empty prediction of an empty mask cost nothing.

  Returns:
    [B] float32 in [0, 1].

  Raises:
    ValueError: if logits and mask differ in shape or are not rank 4.
  """
  logits, mask = _as_float32(logits, mask)
  probs = nn.sigmoid(logits)
  overlap = jnp.sum(probs * mask, axis=(1, 2, 3))
  total = jnp.sum(probs, axis=(1, 2, 3)) + jnp.sum(mask, axis=(1, 2, 3))
  return 1 - (2 * overlap + epsilon) / (total + epsilon)


def boundary_band(mask, width: int):
  """Pixels that have both lesion and skin within `width` pixels.

  Args:
    mask: [B, H, W, 1] ground truth, 0 or 1, any dtype.
    width: in pixels, on either side of the border.

  Returns:
    [B, H, W, 1] float32, 1 on the band and 0 elsewhere.
  """
  mask = mask.astype(jnp.float32)
  side = 2 * width + 1

  def spread(x):
    x = nn.max_pool(x, (side, 1), padding="SAME")
    return nn.max_pool(x, (1, side), padding="SAME")

  return spread(mask) * spread(1 - mask)


def segmentation_loss(
  logits,
  mask,
  *,
  bce_weight: float,
  dice_weight: float,
  dice_epsilon: float,
  boundary_weight: float,
  boundary_width: int,
):
  """Weighted sum of cross-entropy and soft Dice (eq. 12), averaged over the batch.

  Args:
    logits: [B, H, W, 1] scores before the sigmoid, any float dtype.
    mask: [B, H, W, 1] ground truth, 0 or 1.
    bce_weight: alpha of eq. 12.
    dice_weight: beta of eq. 12.
    dice_epsilon: smoothing term of the Dice loss, in pixels.
    boundary_weight: what a pixel near the border weighs in the cross-entropy beyond its 1.
    boundary_width: how near that is, in pixels.

  Returns:
    loss: scalar float32.
    parts: {"bce", "dice_loss"}, the unweighted means, scalar float32.

  Raises:
    ValueError: if logits and mask differ in shape or are not rank 4.
  """
  weight = None
  if boundary_weight:
    weight = 1 + boundary_weight * boundary_band(mask, boundary_width)
  parts = {
    "bce": jnp.mean(bce_loss(logits, mask, weight)),
    "dice_loss": jnp.mean(dice_loss(logits, mask, dice_epsilon)),
  }
  return bce_weight * parts["bce"] + dice_weight * parts["dice_loss"], parts
