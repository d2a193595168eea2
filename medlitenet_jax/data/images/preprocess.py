"""Removes hairs, shadows and colour casts from photographs, for training and inference alike."""

import dataclasses
import math

import cv2
import numpy as np

from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.system.errors import InputError

COLOR_CONSTANCIES = ("none", "shades_of_grey")
MINKOWSKI_POWER = 6  # as in Finlayson and Trezzi (2004)

# Hair removal. Lengths are fractions of the photograph's shorter side.
WORKING_SIDE = 512  # pixels; larger photographs are reduced to this shorter side
MAX_HAIR_WIDTH = 0.022
STRAIGHT_PART = 0.06  # length over which a hair is straight; meshes of a pigment network are not
DIRECTIONS = 16  # number of directions of hairs that are tried
MIN_CONTRAST = 12  # levels of a hair against the skin beside it
NEIGHBOURHOOD = 0.12  # size of the neighbourhood whose mean contrast a hair must exceed
MIN_CONTRAST_RATIO = 1.6  # contrast of a hair over that mean
MIN_HAIR_LENGTH = 0.08
FILL_REACH = 0.008  # standard deviation of the Gaussian weights of the pixels that fill a hair
FILL_PASSES = 4  # each pass doubles the reach, for pixels that the passes before did not reach

# Shadow removal.
LIGHT_SIDE = 128  # pixels of the shorter side that the light is fitted at
FRAME = 0.15  # width of the frame that shows mostly skin, of the shorter side
BLACK = 0.25  # of the brightest skin; what is darker shows no skin, as the corners of a lens
LEAST_FRAME = 0.3  # of the frame that must show skin
QUANTILE = 0.8  # of the frame's pixels lie under the fit, for a lesion that reaches in is darker
FITS = 20  # each weights by the distances from the one before
MAX_GAIN = 2.0
STRIP = 2**20  # pixels that are changed at a time


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """The preprocessing of every photograph, as `config.preprocess` sets it.

  Attributes:
    hair_removal: whether hairs are found and painted over.
    color_constancy: one of `COLOR_CONSTANCIES`.
    shadow_removal: whether uneven light is evened out.

  Raises:
    InputError: if color_constancy is not one of them or one of the others is not a bool.
  """

  hair_removal: bool = False
  color_constancy: str = "none"
  shadow_removal: bool = False

  def __post_init__(self):
    """Checks the values."""
    for name in ("hair_removal", "shadow_removal"):
      if not isinstance(value := getattr(self, name), bool):
        raise InputError(f"preprocess.{name} takes True or False, not {value!r}")
    if self.color_constancy not in COLOR_CONSTANCIES:
      raise InputError(
        f"preprocess.color_constancy takes one of {', '.join(COLOR_CONSTANCIES)}, not "
        f"{self.color_constancy!r}"
      )

  @property
  def steps(self) -> list[str]:
    """Names of the active steps, in order."""
    named = {
      "hair_removal": self.hair_removal,
      "shadow_removal": self.shadow_removal,
      self.color_constancy: True,
    }
    return [name for name, on in named.items() if on and name != "none"]

  def __call__(self, image: np.ndarray) -> np.ndarray:
    """Preprocesses a photograph.

    Args:
      image: [H, W, 3] uint8 RGB, of any size.

    Returns:
      [H', W', 3] uint8 RGB: the same size, or that of `reduced` with hair removal; `image` itself
      if no step is active.
    """
    if self.hair_removal:
      image = reduced(image)
      image = paint_over(image, find_hairs(image))
    if self.shadow_removal:
      image = without_shadow(image)
    if self.color_constancy == "shades_of_grey":
      image = shades_of_grey(image)
    return image


def reduced(image: np.ndarray) -> np.ndarray:
  """Shrinks a photograph to a shorter side of at most `WORKING_SIDE`, keeping its aspect ratio.

  Args:
    image: [H, W, 3] uint8.

  Returns:
    [H', W', 3] uint8; `image` itself if it is not larger.
  """
  height, width = image.shape[:2]
  scale = WORKING_SIDE / min(height, width)
  if scale >= 1:
    return image
  return resize_image(image, round(height * scale), round(width * scale))


def find_hairs(image: np.ndarray) -> np.ndarray:
  """Finds hairs: dark or fair lines that are thin, long and straight over part of their length.

  Dark hairs are searched for in the red channel: melanin and blood absorb red least, so pigment
  networks and vessels are faint there and hairs are not. Fair hairs are searched for in the blue
  channel, which skin absorbs most.

  Args:
    image: [H, W, 3] uint8 RGB.

  Returns:
    [H, W] uint8, 1 on hairs and a narrow margin around them.
  """
  side = min(image.shape[:2])
  red, blue = np.ascontiguousarray(image[..., 0]), np.ascontiguousarray(image[..., 2])
  thick = max(3, round(MAX_HAIR_WIDTH * side)) | 1
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
    texture = cv2.dilate(texture, square)  # so that it is not underestimated at a texture's edge
    least = np.maximum(MIN_CONTRAST_RATIO * texture, MIN_CONTRAST)
    hairs |= _long_ones(straight >= least, MIN_HAIR_LENGTH * side)
  margin = 2 * max(1, round(0.003 * side)) + 1
  return cv2.dilate(hairs, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (margin, margin)))


def _lines(length: int):
  """Structuring elements of straight lines [length, length] in every direction."""
  middle = length // 2
  for turn in range(DIRECTIONS):
    angle = np.pi * turn / DIRECTIONS
    x, y = middle * np.cos(angle), middle * np.sin(angle)
    start, end = (round(middle - x), round(middle - y)), (round(middle + x), round(middle + y))
    yield cv2.line(np.zeros((length, length), np.uint8), start, end, (1,))


def _long_ones(found: np.ndarray, least: float) -> np.ndarray:
  """Keeps connected components whose bounding box has a diagonal of at least `least` pixels."""
  number, labels, stats, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8))
  reach = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
  keep = (reach >= least) & (np.arange(number) > 0)
  return keep[labels].astype(np.uint8)


def paint_over(image: np.ndarray, hairs: np.ndarray) -> np.ndarray:
  """Fills the pixels of hairs from the pixels around them.

  Args:
    image: [H, W, 3] uint8 RGB.
    hairs: [H, W] uint8, 1 on pixels to fill.

  Returns:
    [H, W, 3] uint8, smooth in the filled pixels, unchanged elsewhere.
  """
  side, left = min(image.shape[:2]), hairs > 0
  if left.all() or not left.any():
    return image
  image, sigma = image.copy(), FILL_REACH * side
  seen = cv2.merge([image, 1 - hairs]).astype(np.float32)
  seen[left] = 0
  for _ in range(FILL_PASSES):
    reach = 2 * math.ceil(2 * sigma) + 1  # OpenCV's default is twice as wide and twice as slow
    near = cv2.GaussianBlur(seen, (reach, reach), sigma)
    filled = left & (near[..., 3] > 0.05)
    image[filled] = np.rint(near[filled, :3] / near[filled, 3:])
    left &= ~filled
    if not left.any():
      return image
    sigma *= 2
  image[left] = np.rint(seen[hairs == 0, :3].mean(axis=0))
  return image


def without_shadow(image: np.ndarray) -> np.ndarray:
  """Evens out the light, as it falls on the skin around the lesion.

  The logarithm of the brightest channel is fitted by a quadratic function of the place, in a frame
  along the photograph's border, and the photograph is divided by that light. The fit is a quantile,
  so it follows the skin where a lesion reaches into the frame; black corners of a lens are left
  out. A lesion that fills most of one side or a corner still looks like a shadow.

  Args:
    image: [H, W, 3] uint8 RGB.

  Returns:
    [H, W, 3] uint8. The median light of the frame stays as it was, and no pixel becomes more than
    `MAX_GAIN` times as bright or as dark. `image` itself where most of the frame is black.

  Reference:
    Cavalcanti and Scharcanski, Automated prescreening of pigmented skin lesions using standard
    cameras, 2011, who fit the four corners by least squares.
  """
  height, width = image.shape[:2]
  scale = min(1.0, LIGHT_SIDE / min(height, width))
  small = resize_image(image, max(1, round(height * scale)), max(1, round(width * scale)))
  level = small.max(axis=2).astype(np.float64)
  edge = max(1, round(FRAME * min(level.shape)))
  frame = np.ones(level.shape, bool)
  frame[edge:-edge, edge:-edge] = False
  skin = frame & (level > BLACK * np.quantile(level, 0.95))
  if skin.sum() < LEAST_FRAME * frame.sum():
    return image
  terms = _quadratic_terms(*level.shape)
  fitted = terms @ _fitted_quantile(terms[skin], np.log(level[skin]))
  gain = np.exp(np.median(fitted[skin]) - fitted).astype(np.float32)
  gain = np.clip(cv2.resize(gain, (width, height)), 1 / MAX_GAIN, MAX_GAIN)
  even = np.empty_like(image)
  rows = max(1, STRIP // width)  # so that a large photograph needs little memory
  for top in range(0, height, rows):
    strip = slice(top, top + rows)
    even[strip] = np.rint(np.minimum(image[strip] * gain[strip, :, None], 255))
  return even


def _fitted_quantile(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Coefficients of the terms [N, 6] that fit the `QUANTILE` of N values.

  By weighted least squares again and again, which gives the least sum of absolute distances,
  those above the fit counting QUANTILE / (1 - QUANTILE) times as much.
  """
  weight = np.ones(len(values))
  for _ in range(FITS):
    root = np.sqrt(weight)
    found = np.linalg.lstsq(terms * root[:, None], values * root, rcond=None)[0]
    distance = values - terms @ found
    side = np.where(distance > 0, QUANTILE, 1 - QUANTILE)
    weight = side / np.maximum(np.abs(distance), 1e-3)
  return found


def _quadratic_terms(height: int, width: int) -> np.ndarray:
  """1, x, y, x squared, y squared and x y at every pixel: [height, width, 6]."""
  y, x = np.meshgrid(
    *((np.arange(n) + 0.5) / n * 2 - 1 for n in (height, width)),
    indexing="ij",
  )
  return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def shades_of_grey(image: np.ndarray) -> np.ndarray:
  """Removes a colour cast by making the Minkowski means of the channels equal (shades of grey).

  Args:
    image: [H, W, 3] uint8 RGB.

  Returns:
    [H, W, 3] uint8: each channel c times |e| / (sqrt(3) e_c), e_c = (mean of level**6) ** (1 / 6),
    which keeps the overall brightness.

  Reference:
    Finlayson and Trezzi, Shades of gray and colour constancy, 2004; for dermoscopy Barata et al.,
    Improving dermoscopy image classification using color constancy, 2015.
  """
  levels = np.arange(256.0)
  # Computed from histograms, so a photograph of 100 megapixels needs no extra memory.
  counts = [cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in range(3)]
  light = np.array(
    [(n @ levels**MINKOWSKI_POWER / n.sum()) ** (1 / MINKOWSKI_POWER) for n in counts]
  )
  if not light.all():  # a channel is all 0
    return image
  gains = np.sqrt(np.mean(light**2)) / light
  table = np.rint(np.minimum(levels[:, None] * gains, 255))
  return cv2.LUT(image, table.astype(np.uint8)[None])
