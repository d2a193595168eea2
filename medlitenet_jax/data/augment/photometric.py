"""Random changes of the photograph alone: skin and border, hairs and rulers, light and camera.

In every function `policy` is an `AugmentPolicy`, and `applied` maps the name of each applied
augmentation to its four uniform numbers.
"""

import math
from collections.abc import Mapping

import cv2
import numpy as np

from medlitenet_jax.data.augment.artefacts import (
  RULER_COLOUR,
  add_strokes,
  hair_colour,
  hair_strokes,
  ruler_strokes,
)
from medlitenet_jax.data.augment.draws import between, generator, normal

# Optical density of melanin in red, green and blue, relative to green; it absorbs more at shorter
# wavelengths. A density remains a factor on levels that are gamma-encoded.
MELANIN = np.array((0.55, 1.0, 1.35))
BROWN_HAIR = np.array((105.0, 62.0, 38.0))  # RGB levels of the brownest hair drawn
SMALLEST_TILE = 32  # pixels a side, see `clahe_tiles`
BORDER_GRAIN = 0.008  # of the side; a fading border keeps finer detail, such as hairs and pores
BORDER_GRID = 96  # side in pixels at which the fading, which is smooth, is computed


def change_photograph(
  image: np.ndarray, mask: np.ndarray, policy, applied: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Applies the augmentations in the order in which scene and camera cause them.

  Args:
    image: [S, S, 3] uint8 RGB.
    mask: [S, S] uint8, 0 or 1, of the lesion whose border may fade.
    policy: gives the ranges.
    applied: see above.

  Returns:
    [S, S, 3] uint8; `image` itself if nothing is applied.
  """
  if (draw := applied.get("skin_tone")) is not None:
    image = shift_skin_tone(image, between(policy.skin_tone_density, draw[0]))
  if (draw := applied.get("faint_border")) is not None:
    width = between(policy.faint_border_width, draw[0])
    image = fade_border(image, mask, width, between(policy.faint_border_strength, draw[1]))
  if (draw := applied.get("ruler")) is not None:
    image = _add_ruler(image, policy, draw)
  if (draw := applied.get("hairs")) is not None:
    image = _add_hairs(image, policy, draw)
  if "shadow" in applied or "uneven_light" in applied:
    image = _dim(image, policy, applied)
  if "brightness_contrast" in applied or "gamma" in applied:
    image = _tone_curve(image, policy, applied)
  if (draw := applied.get("clahe")) is not None:
    tiles = clahe_tiles(policy.clahe_tiles, image.shape[0])
    image = _clahe(image, between(policy.clahe_clip_limit, draw[0]), tiles)
  if (draw := applied.get("blur")) is not None:
    sigma = between(policy.blur_sigma, draw[0]) * image.shape[0]
    if sigma > 0:  # OpenCV would choose a sigma for 0
      image = cv2.GaussianBlur(image, (0, 0), sigma)
  if (draw := applied.get("noise")) is not None:
    noise = normal(draw[1], image.shape)
    noise *= 255 * between(policy.noise_std, draw[0])
    image = cv2.add(image, noise, dtype=cv2.CV_8U)  # rounds and saturates
  return image


def shift_skin_tone(image: np.ndarray, density: float) -> np.ndarray:
  """Adds melanin to skin and lesion, or removes some.

  No more is removed than there is: white stays white and nothing is overexposed.

  Args:
    image: [H, W, 3] uint8 RGB.
    density: optical density of the melanin in green, as a natural logarithm; above 0 darkens.

  Returns:
    [H, W, 3] uint8.
  """
  amount = np.abs(density) * MELANIN
  if density > 0:
    levels = np.arange(256)[:, None] * np.exp(-amount)
  else:
    there = -np.log(np.maximum(np.arange(256), 0.5)[:, None] / 255)
    levels = 255 * np.exp(-there * there / np.maximum(there + amount, 1e-9))
    levels[0] = 0
  return cv2.LUT(image, np.rint(levels).astype(np.uint8)[None])


def fade_border(image: np.ndarray, mask: np.ndarray, width: float, strength: float) -> np.ndarray:
  """Lowers the contrast along a lesion's border by fading it into a smooth blend of both sides.

  The change is smooth across the border. So where the mask's outline is off the visible border, no
  artificial line appears along the outline that a network could learn.

  Args:
    image: [S, S, 3] uint8 RGB.
    mask: [S, S] uint8, 0 or 1.
    width: distance from the border, as a fraction of the side, at which the fading has half its
      strength; it ends at three times this distance.
    strength: weight of the blend at the border, 0 to 1.

  Returns:
    [S, S, 3] uint8; unchanged outside the band.
  """
  size = (image.shape[1], image.shape[0])
  grid = min(BORDER_GRID, *size)
  small = cv2.resize(image, (grid, grid), interpolation=cv2.INTER_AREA).astype(np.float32)
  cover = cv2.resize(mask.astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA)
  # For a blurred mask m, 4 m (1 - m) is 1 on a straight border. It has fallen to 1/2 at 1.05 times
  # the blur's standard deviation from it: 4 Phi(x) (1 - Phi(x)) = 1/2.
  sigma = max(width, 1e-6) * grid / 1.05
  reach = 2 * max(1, math.ceil(3 * width * grid)) + 1
  near = cv2.GaussianBlur(cover, (reach, reach), sigma, borderType=cv2.BORDER_REPLICATE)
  share = 4 * strength * near * (1 - near)
  blend = cv2.GaussianBlur(small, (0, 0), 1.5 * sigma, borderType=cv2.BORDER_REPLICATE)
  own = cv2.GaussianBlur(small, (0, 0), max(BORDER_GRAIN * grid, 0.5))
  change = cv2.resize(share[..., None] * (blend - own), size, interpolation=cv2.INTER_LINEAR)
  return cv2.add(image, change, dtype=cv2.CV_8U)


def _add_hairs(image, policy, draw):
  rng = generator(draw[0])
  hairs = hair_strokes(
    rng,
    round(between(policy.hairs_count, draw[1])),
    comb=rng.uniform(0.0, 2 * math.pi),
    spread=rng.uniform(0.15, 0.9),
    longest=rng.uniform(0.4, 1.6),
    thickest=between(policy.hairs_width, draw[2]),
  )
  # Black hairs look brown where light shines through; how much varies between pictures.
  colour = np.maximum(hair_colour(rng), rng.uniform(0.0, 1.0) * BROWN_HAIR)
  return _drawn(image, hairs, colour, between((0.6, 0.95), draw[3]))


def _add_ruler(image, policy, draw):
  rng = generator(draw[0])
  spacing, length = rng.uniform(0.02, 0.035), rng.uniform(0.45, 1.0)
  ruler = ruler_strokes(
    angle=int(rng.integers(4)) * math.pi / 2 + rng.uniform(-0.1, 0.1),
    base=0.5 - between(policy.ruler_inset, draw[1]),
    left=rng.uniform(-0.5, 0.5 - length),
    spacing=spacing,
    ticks=1 + int(length / spacing),
    width=rng.uniform(0.003, 0.005),
  )
  return _drawn(image, ruler, RULER_COLOUR, between((0.5, 0.9), draw[2]))


def _drawn(image, strokes, colour, opacity):
  painted = add_strokes(image.astype(np.float32), strokes, colour, opacity)
  return np.rint(painted, out=painted).astype(np.uint8)


def _dim(image, policy, applied):
  """Dims the picture: by a shadow with a soft edge, and gradually across."""
  centres = ((np.arange(image.shape[0]) + 0.5) / image.shape[0] - 0.5).astype(np.float32)
  x, y = centres[None, :], centres[:, None]
  light = np.ones(image.shape[:2], np.float32)
  if (draw := applied.get("shadow")) is not None:
    # The shadow of a large round object outside the picture.
    angle, radius = 2 * math.pi * draw[0], 0.9
    away = radius + between((-0.25, 0.35), draw[1])
    depth = between(policy.shadow_depth, draw[2])
    soft = max(between(policy.shadow_softness, draw[3]), 1e-4)
    inside = radius - np.hypot(x - away * math.cos(angle), y - away * math.sin(angle))
    light *= 1 - depth * (0.5 + 0.5 * np.tanh(inside / soft))
  if (draw := applied.get("uneven_light")) is not None:
    angle, fall = 2 * math.pi * draw[0], between(policy.uneven_light_fall, draw[1])
    across = 0.5 + (x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(2)
    outward = 2 * (x * x + y * y)
    light *= 1 - fall * (across + (outward - across) * np.float32(draw[2]))
  return cv2.multiply(image, cv2.merge([light] * 3), dtype=cv2.CV_8U)


def _tone_curve(image, policy, applied):
  """Brightness, contrast and gamma in one look-up table."""
  levels = np.arange(256) / 255
  if (draw := applied.get("brightness_contrast")) is not None:
    mean = np.mean(cv2.mean(image)[:3]) / 255
    levels = (levels - mean) * between(policy.contrast_range, draw[0]) + mean
    levels = np.clip(levels + between(policy.brightness_range, draw[1]), 0, 1)
  if (draw := applied.get("gamma")) is not None:
    levels = levels ** between(policy.gamma_range, draw[0])
  return cv2.LUT(image, np.rint(levels * 255).astype(np.uint8))


def clahe_tiles(most: int, size: int) -> int:
  """Tiles per side of a CLAHE, so many that each has at least `SMALLEST_TILE` pixels a side.

  The clip limit is a multiple of the mean count of a bin; in a smaller tile, which has hardly a
  pixel for each of the 256 bins, OpenCV's whole counts cannot keep it.

  Args:
    most: greatest number, that of the policy.
    size: of the picture, in pixels a side.
  """
  return max(1, min(most, size // SMALLEST_TILE))


def _clahe(image, clip_limit, tiles):
  lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
  # Created in each call: the object keeps state, so threads must not share it.
  equaliser = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=(tiles, tiles))
  cv2.insertChannel(equaliser.apply(cv2.extractChannel(lab, 0)), lab, 0)
  return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
