"""Finds photographs that show the same picture, in any of the eight flips and quarter turns.

Photographs are compared by their detail, with local brightness and contrast normalised; otherwise
smooth blobs on smooth skin, rulers and black frames would look alike. All pairs are compared as
tiny thumbnails. Similar pairs are then aligned and compared again at a size at which hairs and
pigment matter.
"""

import functools
import heapq
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np

THUMBNAIL = 128  # side in pixels: 160 MB for 10,000 photographs
COARSE = 16  # side in pixels for comparing all pairs; 24 and 32 distinguish fewer pairs
# Correlations above which a pair counts as alike: as a coarse thumbnail, aligned at half size, and
# aligned at full size. Chosen on 2294 photographs of ISIC 2018, where 40 pairs look the same, 30 of
# them recoloured and shifted. COARSE_ALIKE misses one of the 40 and keeps 1 in 1800 of all pairs.
# Aligned at half size, the others reach 0.89 and different pictures up to 0.79; at full size 0.71
# (0.68 for two exposures of one lesion) and 0.51.
COARSE_ALIKE = 0.82
ALIKE_AT_HALF = 0.7
ALIKE = 0.6
# Limit on the pairs that are aligned: some minutes on two cores. 10,000 such photographs give
# 28,000 pairs, 25,000 give 175,000.
MAX_CANDIDATES = 200_000
MAX_SHIFT = 6  # largest shift tried before the alignment, in pixels at half the thumbnail's size
MIN_OVERLAP = 0.6  # fraction of the frame that must be visible in both
_BLOCK = 1024  # number of photographs per block in the comparison of all pairs
_NOISE = 3.0  # contrast, in levels, below which detail is not amplified


class Pair(NamedTuple):
  """Two photographs of the same picture.

  Attributes:
    first: index of one photograph.
    second: index of the other, greater than `first`.
    correlation: correlation of their detail; 1 for equal ones.
    turned: whether one is flipped or rotated by quarter turns relative to the other.
  """

  first: int
  second: int
  correlation: float
  turned: bool


def thumbnail(image: np.ndarray) -> np.ndarray:
  """Shrinks a photograph to the thumbnail used for comparison.

  Args:
    image: [H, W, 3] uint8 RGB.

  Returns:
    [THUMBNAIL, THUMBNAIL] uint8, grey; the aspect ratio is not kept.
  """
  small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
  return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)


def near_duplicates(thumbnails: Sequence[np.ndarray], num_threads: int) -> tuple[list[Pair], int]:
  """Finds the pairs that show the same picture.

  Finds copies that were compressed, resized, recoloured, shifted or zoomed by up to about a tenth,
  flipped or rotated by quarter turns. Does not find copies rotated by other angles or strongly
  cropped.

  Args:
    thumbnails: `thumbnail` of each photograph.
    num_threads: number of threads.

  Returns:
    pairs: sorted.
    left_out: number of candidate pairs beyond `MAX_CANDIDATES`, the least similar ones, that were
      not checked.
  """
  if len(thumbnails) < 2:
    return [], 0
  count = itertools.count()
  alike = (candidate for candidate, _ in zip(_alike(thumbnails), count, strict=False))
  candidates = heapq.nlargest(MAX_CANDIDATES, alike)
  left_out = next(count) - len(candidates)

  @functools.lru_cache(maxsize=256)
  def detail(index: int) -> np.ndarray:
    return _detail(thumbnails[index], 3, 8)

  def confirm(candidate) -> Pair:
    _, first, second, turn = candidate
    other = np.ascontiguousarray(_turned(detail(second), turn))
    return Pair(first, second, _fitted_correlation(detail(first), other), turn != 0)

  # Sorted, so that neighbours share photographs and the cache is hit.
  candidates.sort(key=lambda candidate: candidate[1:3])
  with ThreadPoolExecutor(num_threads) as pool:
    pairs = [pair for pair in pool.map(confirm, candidates) if pair.correlation >= ALIKE]
  return pairs, left_out


def _detail(grey: np.ndarray, fine: float, wide: float) -> np.ndarray:
  """High-pass filtered picture with normalised local contrast: float32, about -3 to 3."""
  grey = grey.astype(np.float32)
  rest = grey - cv2.GaussianBlur(grey, (0, 0), fine)
  return rest / np.sqrt(cv2.GaussianBlur(rest * rest, (0, 0), wide) + _NOISE**2)


def _turned(pictures: np.ndarray, turn: int) -> np.ndarray:
  """One of the eight flips and quarter turns of [..., S, S]; 0 is none."""
  flipped = pictures[..., ::-1] if turn >= 4 else pictures
  return np.rot90(flipped, turn % 4, axes=(-2, -1))


def _alike(thumbnails: Sequence[np.ndarray]) -> Iterator[tuple[float, int, int, int]]:
  """Yields (correlation, first, second, turn of the second) of pairs that are alike when small."""
  size = (COARSE, COARSE)
  small = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in thumbnails)
  pictures = np.stack([_detail(picture, 2, 4) for picture in small])
  pictures -= pictures.mean((1, 2), keepdims=True)
  # The minimum keeps a picture without detail from matching anything.
  pictures /= np.maximum(np.linalg.norm(pictures, axis=(1, 2), keepdims=True), 1e-6)
  rows = pictures.reshape(len(pictures), -1)
  for start in range(0, len(rows), _BLOCK):
    block = pictures[start : start + _BLOCK]
    turns = [_turned(block, turn).reshape(len(block), -1) for turn in range(8)]
    for other in range(0, start + 1, _BLOCK):
      best = np.full((len(rows[other : other + _BLOCK]), len(block)), COARSE_ALIKE, np.float32)
      turn_of = np.full(best.shape, -1, np.int8)
      for turn, turned in enumerate(turns):
        correlation = rows[other : other + _BLOCK] @ turned.T
        better = correlation > best
        best[better], turn_of[better] = correlation[better], turn
      for i, j in np.argwhere(turn_of >= 0):
        if other + i < start + j:
          yield float(best[i, j]), int(other + i), int(start + j), int(turn_of[i, j])


def _fitted_correlation(first: np.ndarray, second: np.ndarray) -> float:
  """Correlation of two [S, S] pictures of detail after aligning the second with the first.

  0 if they cannot be aligned; for nearly all different pairs that is clear at half size already.
  """
  halves = [
    cv2.resize(a, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for a in (first, second)
  ]
  shifts = cv2.matchTemplate(
    halves[1], halves[0][MAX_SHIFT:-MAX_SHIFT, MAX_SHIFT:-MAX_SHIFT], cv2.TM_CCOEFF_NORMED
  )
  x, y = cv2.minMaxLoc(shifts)[3]
  fit: Any = np.array([[1, 0, x - MAX_SHIFT], [0, 1, y - MAX_SHIFT]], np.float32)
  correlation, fit = _fit(halves[0], halves[1], fit)
  if correlation < ALIKE_AT_HALF:
    return 0.0
  fit[:, 2] *= 2
  _, fit = _fit(first, second, fit)
  size, how = first.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  fitted = cv2.warpAffine(second, fit, size, flags=how)
  common = cv2.warpAffine(np.ones_like(second), fit, size, flags=how) > 0.99
  if common.mean() < MIN_OVERLAP:
    return 0.0
  a, b = (picture[common] - picture[common].mean() for picture in (first, fitted))
  return float(a @ b / max(1e-6, np.linalg.norm(a) * np.linalg.norm(b)))


def _fit(first: np.ndarray, second: np.ndarray, fit: Any) -> tuple[float, Any]:
  """Refines an affine map from the first picture to the second; returns (correlation, map)."""
  steps = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
  everywhere = np.full(first.shape, 255, np.uint8)
  try:
    return cv2.findTransformECC(first, second, fit, cv2.MOTION_AFFINE, steps, everywhere, 5)
  except cv2.error:  # the optimisation did not converge
    return 0.0, fit
