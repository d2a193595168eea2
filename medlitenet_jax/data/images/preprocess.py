"""Takes hairs and colour casts out of a photograph before a network learns from it or sees it."""

import dataclasses
import math

import cv2
import numpy as np

from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.system.errors import InputError

COLOR_CONSTANCIES = ("none", "shades_of_grey")
MINKOWSKI_POWER = 6  # as in Finlayson and Trezzi (2004)

# Of hair removal. Lengths are parts of the photograph's shorter side.
WORKING_SIDE = 512  # pixels; larger photographs are reduced until their shorter side has these
THICKEST_HAIR = 0.022
STRAIGHT_PART = 0.06  # a hair runs straight so far, which the meshes of a pigment network do not
DIRECTIONS = 16  # in which it is looked for
LEAST_CONTRAST = 12  # levels against the skin beside it
NEIGHBOURHOOD = 0.12  # in which a hair stands out from whatever else there is
OUTSTANDING = 1.6  # times the mean contrast of that neighbourhood
SHORTEST_HAIR = 0.08
FILL_REACH = 0.008  # standard deviation of the weights of the pixels that a hair is filled from
FILL_PASSES = 4  # each from twice as far, for what the one before did not reach


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What is done to every photograph before anything else; `config.preprocess` holds it.

  Attributes:
    hair_removal: whether hairs are found and painted over.
    color_constancy: one of `COLOR_CONSTANCIES`.

  Raises:
    InputError: if color_constancy is none of them, or hair_removal neither True nor False.
  """

  hair_removal: bool = False
  color_constancy: str = "none"

  def __post_init__(self):
    """Refuses a name that stands for nothing."""
    if not isinstance(self.hair_removal, bool):
      raise InputError(f"preprocess.hair_removal takes True or False, not {self.hair_removal!r}")
    if self.color_constancy not in COLOR_CONSTANCIES:
      raise InputError(
        f"preprocess.color_constancy takes one of {', '.join(COLOR_CONSTANCIES)}, not "
        f"{self.color_constancy!r}"
      )

  @property
  def steps(self) -> list[str]:
    """Names of what is on, in order."""
    named = {"hair_removal": self.hair_removal, self.color_constancy: True}
    return [name for name, on in named.items() if on and name != "none"]

  def __call__(self, image: np.ndarray) -> np.ndarray:
    """Cleans a photograph.

    Args:
      image: [H, W, 3] uint8 RGB, of any size.

    Returns:
      uint8 RGB; without hair removal of the same size, with it as `reduced` has it. `image` itself
      where nothing is on.
    """
    if self.hair_removal:
      image = reduced(image)
      image = paint_over(image, find_hairs(image))
    if self.color_constancy == "shades_of_grey":
      image = shades_of_grey(image)
    return image


def reduced(image: np.ndarray) -> np.ndarray:
  """Reduces a photograph, with its proportions, to a shorter side of at most `WORKING_SIDE`.

  Args:
    image: [H, W, 3] uint8.

  Returns:
    [H', W', 3] uint8; `image` itself where it is no larger.
  """
  height, width = image.shape[:2]
  scale = WORKING_SIDE / min(height, width)
  if scale >= 1:
    return image
  return resize_image(image, round(height * scale), round(width * scale))


def find_hairs(image: np.ndarray) -> np.ndarray:
  """Finds hairs: dark or fair lines that are thin, long and straight over a part of their length.

  Dark hairs are looked for in red, which melanin and blood swallow least, so that a pigment network
  and vessels are faint there and hairs are not; fair hairs in blue, which skin swallows most.

  Args:
    image: [H, W, 3] uint8 RGB.

  Returns:
    [H, W] uint8, 1 on hairs and their seams.
  """
  side = min(image.shape[:2])
  red, blue = np.ascontiguousarray(image[..., 0]), np.ascontiguousarray(image[..., 2])
  thick = max(3, round(THICKEST_HAIR * side)) | 1
  disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thick, thick))
  dark = cv2.morphologyEx(red, cv2.MORPH_BLACKHAT, disc)
  fair = cv2.morphologyEx(blue, cv2.MORPH_TOPHAT, disc)
  hairs = np.zeros(red.shape, np.uint8)
  around = (max(3, round(NEIGHBOURHOOD * side)),) * 2
  square = np.ones((around[0] // 2, around[0] // 2), np.uint8)
  for contrast in (dark, fair):
    straight = np.zeros_like(contrast)
    for line in _lines(max(3, round(STRAIGHT_PART * side)) | 1):
      np.maximum(straight, cv2.morphologyEx(contrast, cv2.MORPH_OPEN, line), out=straight)
    texture = cv2.blur(contrast.astype(np.float32), around)
    texture = cv2.dilate(texture, square)  # at its edge a texture is as coarse as within it
    least = np.maximum(OUTSTANDING * texture, LEAST_CONTRAST)
    hairs |= _long_ones(straight >= least, SHORTEST_HAIR * side)
  seam = 2 * max(1, round(0.003 * side)) + 1
  return cv2.dilate(hairs, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (seam, seam)))


def _lines(length: int):
  """Structuring elements of straight lines [length, length] in every direction."""
  middle = length // 2
  for turn in range(DIRECTIONS):
    angle = np.pi * turn / DIRECTIONS
    x, y = middle * np.cos(angle), middle * np.sin(angle)
    start, end = (round(middle - x), round(middle - y)), (round(middle + x), round(middle + y))
    yield cv2.line(np.zeros((length, length), np.uint8), start, end, (1,))


def _long_ones(found: np.ndarray, least: float) -> np.ndarray:
  """Keeps connected parts whose bounding box has a diagonal of at least that many pixels."""
  number, labels, stats, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8))
  reach = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
  keep = (reach >= least) & (np.arange(number) > 0)
  return keep[labels].astype(np.uint8)


def paint_over(image: np.ndarray, hairs: np.ndarray) -> np.ndarray:
  """Fills what hairs cover from the pixels around it.

  Args:
    image: [H, W, 3] uint8 RGB.
    hairs: [H, W] uint8, 1 where it is filled.

  Returns:
    [H, W, 3] uint8, smooth where it was filled and elsewhere as it was.
  """
  side, left = min(image.shape[:2]), hairs > 0
  if left.all() or not left.any():
    return image
  image, sigma = image.copy(), FILL_REACH * side
  seen = cv2.merge([image, 1 - hairs]).astype(np.float32)
  seen[left] = 0
  for _ in range(FILL_PASSES):
    reach = 2 * math.ceil(2 * sigma) + 1  # OpenCV's own choice is twice as wide and as slow
    near = cv2.GaussianBlur(seen, (reach, reach), sigma)
    filled = left & (near[..., 3] > 0.05)
    image[filled] = np.rint(near[filled, :3] / near[filled, 3:])
    left &= ~filled
    if not left.any():
      return image
    sigma *= 2
  image[left] = np.rint(seen[hairs == 0, :3].mean(axis=0))
  return image


def shades_of_grey(image: np.ndarray) -> np.ndarray:
  """Makes the light of a photograph white: the Minkowski means of its channels become equal.

  Args:
    image: [H, W, 3] uint8 RGB.

  Returns:
    [H, W, 3] uint8: each channel times |e| / (sqrt(3) e_c), e_c = (mean of level**6) ** (1 / 6),
    so that the brightness of the light stays.

  Reference:
    Finlayson and Trezzi, Shades of gray and colour constancy, 2004; for dermoscopy Barata et al.,
    Improving dermoscopy image classification using color constancy, 2015.
  """
  levels = np.arange(256.0)
  # By the histogram, a photograph of 100 megapixels needs no memory beyond its own.
  counts = [cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in range(3)]
  light = np.array(
    [(n @ levels**MINKOWSKI_POWER / n.sum()) ** (1 / MINKOWSKI_POWER) for n in counts]
  )
  if not light.all():  # a channel without any light
    return image
  gains = np.sqrt(np.mean(light**2)) / light
  table = np.rint(np.minimum(levels[:, None] * gains, 255))
  return cv2.LUT(image, table.astype(np.uint8)[None])
