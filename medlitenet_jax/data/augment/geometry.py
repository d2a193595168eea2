"""Random augmentations of a photograph and its mask.

The geometric ones are composed into one coordinate map through which photograph and mask are each
sampled once. So the two stay aligned, and five augmentations blur no more than one. Changes of the
photograph alone follow; they are in `photometric.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from medlitenet_jax.data.augment.draws import between, normal
from medlitenet_jax.data.augment.photometric import change_photograph
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.images.resize import binarise, mask_coverage, resize_image, resize_mask

_NAMES = tuple(
  field.name.removesuffix("_probability")
  for field in dataclasses.fields(AugmentPolicy)
  if field.name.endswith("_probability")
)
_GEOMETRIC = ("crop", "flip_horizontal", "flip_vertical", "rotate", "scale", "translate", "elastic")
_DRAWS = 5  # uniform numbers per augmentation: whether it is applied, then up to four parameters


def draw_applied(rng: np.random.Generator, policy: AugmentPolicy) -> dict[str, np.ndarray]:
  """Draws which augmentations are applied to a photograph, and their random numbers.

  Each augmentation has its own row of uniform numbers, whether it is applied or not. If they were
  drawn on demand, changing one probability would change the numbers of all later augmentations, and
  a comparison of two policies would also compare two sets of crops.

  Args:
    rng: advanced by the same amount for every policy.
    policy: gives the probabilities.

  Returns:
    {name of each applied augmentation: its four uniform numbers, which determine its strength}.
  """
  rows = dict(zip(_NAMES, rng.random((len(_NAMES), _DRAWS)), strict=True))
  return {
    name: row[1:]
    for name, row in rows.items()
    if policy.enabled and row[0] < getattr(policy, f"{name}_probability")
  }


def draw_geometry(
  policy: AugmentPolicy, applied: Mapping[str, np.ndarray], aspect: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """The map from points of the view to positions in the photograph.

  A point is relative to the view's centre, in units of its side, [-0.5, 0.5]. Its position in the
  photograph, in units of the photograph's sides, [0, 1], is matrix @ (point + bend) + offset. The
  picture is cropped, flipped, rotated, scaled, then translated, so the map undoes the translation
  first.

  Args:
    policy: gives the ranges.
    applied: result of `draw_applied`.
    aspect: width of the photograph over its height. The view is square, so what it shows is
      squashed; a rotation takes place before that, for it would shear what is squashed.

  Returns:
    matrix: [2, 2], x before y.
    offset: [2].
    bend: [G, G, 2] float32, x before y, at the control points of the elastic deformation, or None.
  """
  window, centre = np.ones(2), np.full(2, 0.5)
  flips = [name in applied for name in ("flip_horizontal", "flip_vertical")]
  matrix, shift = np.diag(np.where(flips, -1.0, 1.0)), np.zeros(2)
  if (draw := applied.get("crop")) is not None:
    side, stretch = between(policy.crop_scale, draw[0]), between(policy.crop_ratio, draw[1])
    window = np.minimum(1.0, side * np.array([stretch**0.5, stretch**-0.5]))
    centre = window / 2 + (1 - window) * draw[2:4]
  if (draw := applied.get("rotate")) is not None:
    angle = np.deg2rad(between(policy.rotate_degrees, draw[0]))
    cos, sin = np.cos(angle), np.sin(angle)
    ratio = aspect * window[0] / window[1]
    matrix = matrix @ [[cos, -sin / ratio], [sin * ratio, cos]]
  if (draw := applied.get("scale")) is not None:
    matrix = matrix / between(policy.scale_range, draw[0])
  if (draw := applied.get("translate")) is not None:
    shift = between(policy.translate_range, draw[0:2])
  matrix = window[:, None] * matrix
  bend = None
  if (draw := applied.get("elastic")) is not None:
    bend = normal(draw[1], (policy.elastic_grid, policy.elastic_grid, 2))
    bend *= between(policy.elastic_amplitude, draw[0])
  return matrix, centre - matrix @ shift, bend


def needed_size(matrix: np.ndarray, image_size: int, most: np.ndarray) -> np.ndarray:
  """Size of the photograph at which one pixel of the view is about one pixel of the photograph.

  Averaging the photograph to this size first prevents aliasing. It is never enlarged beyond `most`;
  the map does that.

  Args:
    matrix: from `draw_geometry`.
    image_size: side of the view in pixels.
    most: [2] greatest width and height.

  Returns:
    [2] int, width and height, each from 1 to `most`.
  """
  return np.clip(np.rint(image_size / np.linalg.norm(matrix, axis=1)), 1, most).astype(int)


def _coordinate_map(matrix, offset, bend, height, width, image_size):
  """Pixel coordinates [S, S] float32, x and y, in a source of height x width pixels.

  The centre of pixel i is at (i + 0.5) / S of the side, in the source and the view. Without the
  half, a photograph and its shrunk mask would be misaligned by up to half a pixel.
  """
  sides = np.array([width, height])
  steps = (np.arange(image_size) + 0.5) / image_size - 0.5
  across, down = ((sides * matrix[:, i])[:, None] * steps for i in range(2))  # [x and y, S] each
  across += (sides * offset)[:, None] - 0.5
  maps = across.astype(np.float32)[:, None, :] + down.astype(np.float32)[:, :, None]
  if bend is not None:
    # The affine map is linear, so it can be applied to the few control points, which is cheaper.
    field = (bend @ matrix.T * sides).astype(np.float32)
    for i in range(2):
      maps[i] += cv2.resize(field[..., i], (image_size,) * 2, interpolation=cv2.INTER_CUBIC)
  return maps


def _warp(image, mask, image_size, policy, applied):
  """Applies the geometric augmentations to photograph and mask; sides of image_size pixels."""
  if not any(name in applied for name in _GEOMETRIC):
    return resize_image(image, image_size, image_size), resize_mask(mask, image_size, image_size)
  matrix, offset, bend = draw_geometry(policy, applied, image.shape[1] / image.shape[0])
  most = np.maximum(image_size, image.shape[1::-1])
  width, height = needed_size(matrix, image_size, most).tolist()
  pair = resize_image(image, height, width), mask_coverage(mask, height, width)
  x, y = _coordinate_map(matrix, offset, bend, height, width, image_size)
  border = cv2.BORDER_REFLECT_101
  image, coverage = (cv2.remap(a, x, y, cv2.INTER_LINEAR, borderMode=border) for a in pair)
  return image, binarise(coverage)


def augment(
  rng: np.random.Generator,
  image: np.ndarray,
  mask: np.ndarray,
  image_size: int,
  policy: AugmentPolicy,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws one augmented view of a photograph and its mask.

  In this order, each with its own probability: crop, flips, rotation, scaling, translation, elastic
  deformation; skin tone, fading of the border, ruler, hairs, shadow, uneven light; brightness and
  contrast, gamma, CLAHE, blur, noise. Areas outside the photograph are filled with reflections of
  photograph and mask. Thread-safe if each thread has its own rng.

  Args:
    rng: the only source of randomness; advanced by the same amount for every policy.
    image: [H, W, 3] uint8 RGB, of any size.
    mask: [H, W] uint8; above 0 is lesion.
    image_size: side of the result in pixels.
    policy: the augmentations; if not `enabled`, both are only resized, as in evaluation.

  Returns:
    image [image_size, image_size, 3] uint8 and mask [image_size, image_size] uint8, 0 or 1.

  Raises:
    ValueError: if image or mask is not uint8 of this rank, or their sizes differ.
  """
  if image.shape[:2] != mask.shape[:2]:
    raise ValueError(f"image and mask differ in size: {image.shape[:2]} and {mask.shape[:2]}")
  applied = draw_applied(rng, policy)
  image, mask = _warp(image, mask, image_size, policy, applied)
  return change_photograph(image, mask, policy, applied), mask


def single_augmentations(policy: AugmentPolicy) -> dict[str, AugmentPolicy]:
  """Makes a policy for each single augmentation, for previews.

  Args:
    policy: gives the ranges; its probabilities are ignored.

  Returns:
    {name, `crop` to `faint_border`: policy that always applies this augmentation and no other}.
  """
  off: dict[str, Any] = {f"{name}_probability": 0.0 for name in _NAMES} | {"enabled": True}
  return {
    name: dataclasses.replace(policy, **(off | {f"{name}_probability": 1.0})) for name in _NAMES
  }
