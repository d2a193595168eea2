"""Finds photographs that show the same picture, in any of the eight flips and quarter turns.

Photographs are compared by their detail, with local brightness and contrast normalised; otherwise
smooth blobs on smooth skin, rulers and black frames would look alike. All pairs are compared as
tiny thumbnails. Similar pairs are then aligned and compared again, at a quarter of the thumbnail's
size, which dismisses nearly all, and at sizes at which hairs and pigment matter.
"""

import functools
import heapq
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

THUMBNAIL = 128  # side in pixels: 160 MB for 10,000 photographs
COARSE = 16  # side in pixels for comparing all pairs; 24 and 32 distinguish fewer pairs
# Correlations above which a pair counts as alike: as a coarse thumbnail, and aligned at a quarter,
# at half and at full size. Chosen on 2294 photographs of ISIC 2018, where 40 pairs look the same,
# 30 of them recoloured and shifted, and on 9814 of HAM10000, where 249 of 152,000 candidates do.
# COARSE_ALIKE misses one of the 40 and keeps 1 in 1800 of all pairs. The steps before the last
# miss one of the 249. At full size the 39 reach 0.71 or more (0.68 for two exposures of one lesion)
# and different pictures up to 0.51.
COARSE_ALIKE = 0.82
ALIKE_AT_QUARTER = 0.73
ALIKE_AT_HALF = 0.7
ALIKE = 0.6
# Limit on the pairs that are aligned: about a minute on two cores. 10,000 photographs of ISIC 2018
# would give 28,000 pairs, 25,000 would give 175,000.
MAX_CANDIDATES = 200_000
MAX_SHIFT = 6  # largest shift tried before the alignment, in pixels at half the thumbnail's size
MIN_OVERLAP = 0.6  # fraction of the frame that must be visible in both
_BLOCK = 1024  # number of photographs per block in the comparison of all pairs
_CHUNK = 256  # number of pairs that a thread aligns at a time
# Limits on the steps of an alignment. Each size begins where the smaller one ended.
_STEPS_AT_QUARTER, _STEPS_AT_HALF, _STEPS = 3, 3, 30
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
  # Sorted, so that neighbours share photographs and the cache is hit.
  candidates.sort(key=lambda candidate: candidate[1:3])
  detail = functools.lru_cache(maxsize=256)(lambda index: _detail(thumbnails[index], 3, 8))
  pairs: list[Pair] = []
  with (
    ThreadPoolExecutor(num_threads) as pool,
    tqdm(total=len(candidates), desc="align", unit="pair", dynamic_ncols=True) as bar,
  ):
    used = sorted({index for candidate in candidates for index in candidate[1:3]})
    small = pool.map(lambda index: _reduced(detail(index), 0.25), used)
    quarters = dict(zip(used, small, strict=True))

    def confirm(chunk: Sequence[tuple[float, int, int, int]]) -> list[Pair]:
      found = []
      for _, first, second, turn in chunk:
        fit = _fit_at_quarter(quarters[first], _turned(quarters[second], turn))
        if fit is not None:
          correlation = _fitted_correlation(detail(first), _turned(detail(second), turn), fit)
          found.append(Pair(first, second, correlation, turn != 0))
      return found

    chunks = [candidates[i : i + _CHUNK] for i in range(0, len(candidates), _CHUNK)]
    for chunk, found in zip(chunks, pool.map(confirm, chunks), strict=True):
      pairs += [pair for pair in found if pair.correlation >= ALIKE]
      bar.update(len(chunk))
  return pairs, left_out


def _detail(grey: np.ndarray, fine: float, wide: float) -> np.ndarray:
  """High-pass filtered picture with normalised local contrast: float32, about -3 to 3."""
  grey = grey.astype(np.float32)
  rest = grey - cv2.GaussianBlur(grey, (0, 0), fine)
  return rest / np.sqrt(cv2.GaussianBlur(rest * rest, (0, 0), wide) + _NOISE**2)


def _turned(pictures: np.ndarray, turn: int) -> np.ndarray:
  """One of the eight flips and quarter turns of [..., S, S]; 0 is none."""
  flipped = pictures[..., ::-1] if turn >= 4 else pictures
  return np.ascontiguousarray(np.rot90(flipped, turn % 4, axes=(-2, -1)))


def _reduced(picture: np.ndarray, scale: float) -> np.ndarray:
  return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _alike(thumbnails: Sequence[np.ndarray]) -> Iterator[tuple[float, int, int, int]]:
  """Yields (correlation, first, second, turn of the second) of pairs that are alike when small."""
  size = (COARSE, COARSE)
  small = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in thumbnails)
  pictures = np.stack([_detail(picture, 2, 4) for picture in small])
  pictures -= pictures.mean((1, 2), keepdims=True)
  # The minimum keeps a picture without detail from matching anything.
  pictures /= np.maximum(np.linalg.norm(pictures, axis=(1, 2), keepdims=True), 1e-6)
  rows = pictures.reshape(len(pictures), -1)
  bar = tqdm(total=len(rows), desc="compare", unit="photograph", dynamic_ncols=True)
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
    bar.update(len(block))
  bar.close()


def _fit_at_quarter(first: np.ndarray, second: np.ndarray) -> Any:
  """Rough affine map between two pictures of detail at a quarter of the size; None if not alike."""
  most = MAX_SHIFT // 2
  middle = first[most:-most, most:-most]
  x, y = cv2.minMaxLoc(cv2.matchTemplate(second, middle, cv2.TM_CCOEFF_NORMED))[3]
  shift = np.array([[1, 0, x - most], [0, 1, y - most]], np.float32)
  correlation, fit = _fit(first, second, shift, _STEPS_AT_QUARTER)
  return fit if correlation >= ALIKE_AT_QUARTER else None


def _fitted_correlation(first: np.ndarray, second: np.ndarray, fit: Any) -> float:
  """Correlation of two [S, S] pictures of detail after aligning the second with the first.

  `fit` is the map at a quarter of the size. 0 if they cannot be aligned; for nearly all different
  pairs that is clear at half size already.
  """
  fit[:, 2] *= 2
  correlation, fit = _fit(_reduced(first, 0.5), _reduced(second, 0.5), fit, _STEPS_AT_HALF)
  if correlation < ALIKE_AT_HALF:
    return 0.0
  fit[:, 2] *= 2
  _, fit = _fit(first, second, fit, _STEPS)
  size, how = first.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  fitted = cv2.warpAffine(second, fit, size, flags=how)
  common = cv2.warpAffine(np.ones_like(second), fit, size, flags=how) > 0.99
  if common.mean() < MIN_OVERLAP:
    return 0.0
  a, b = (picture[common] - picture[common].mean() for picture in (first, fitted))
  return float(a @ b / max(1e-6, np.linalg.norm(a) * np.linalg.norm(b)))


def _fit(first: np.ndarray, second: np.ndarray, fit: Any, most_steps: int) -> tuple[float, Any]:
  """Refines an affine map from the first picture to the second; returns (correlation, map)."""
  steps = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, most_steps, 1e-4)
  everywhere = np.full(first.shape, 255, np.uint8)
  try:
    return cv2.findTransformECC(first, second, fit, cv2.MOTION_AFFINE, steps, everywhere, 5)
  except cv2.error:  # the optimisation did not converge
    return 0.0, fit
