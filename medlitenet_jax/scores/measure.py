"""Size and shape of a segmented lesion: one row of `measurements.csv`.

A mask is a set of unit squares, its pixels. Everything is computed on the lesion's bounding box, so
that a mask of 12000x9000 pixels needs only a few hundred megabytes.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

# What `measure_lesion` adds where the scale is known.
IN_MM = ("area_mm2", "perimeter_mm", "largest_diameter_mm", "smallest_diameter_mm")
FOLDED_SIZE = 512  # pixels; a longer lesion is reduced to at most this before it is folded

# Lengths of a chain code's steps along the grid, its diagonal steps and its corners, for which
# straight lines have the right length on average over directions (Vossepoel and Smeulders 1982).
EVEN_STEP, ODD_STEP, CORNER = 0.980, 1.406, -0.091
# Length that a closed curve gains when it moves from the centres of the border pixels out to the
# lesion's edge. Along the grid axis closer to the edge's normal, the edge lies half a pixel further
# out on average. Along the normal that is cos(angle) / 2, for an angle of up to 45 degrees to the
# grid. Summed over all directions: eight times the integral over those 45 degrees.
OUTWARDS = 2 * 2**0.5


def measure_lesion(
  mask: np.ndarray, mm_per_pixel: float | None = None
) -> dict[str, float | int | str | None]:
  """Measures a lesion.

  Args:
    mask: [H, W] uint8, 0 or 1, at the photograph's own size.
    mm_per_pixel: side of a pixel on the skin, above 0, or None if unknown.

  Returns:
    In this order:
    `area_px`;
    `perimeter_px`, see `outline_length`;
    `largest_diameter_px` and `smallest_diameter_px`, see `feret_diameters`, all regions together;
    `asymmetry`, see `fold_asymmetry`;
    `border_irregularity`, perimeter^2 / (4 pi area): about 1 for a disc, more for other shapes
    (compactness; Golston et al. 1992), sometimes slightly under 1 for a few pixels;
    `area_fraction`, of the photograph;
    `regions`, connected by eight neighbours;
    `region_diameters_px`: the largest diameter of each region, largest first, as text separated by
    spaces, so that two lesions in one photograph can be told from one;
    `touches_frame`: 1 if the lesion touches the frame and may continue outside it, else 0. If 1,
    area and diameters are lower bounds and the frame counts as outline;
    `frame_share`: length of frame that the lesion covers, over the perimeter.
    With `mm_per_pixel` also `area_mm2`, `perimeter_mm`, `largest_diameter_mm` and
    `smallest_diameter_mm`. Without a lesion, asymmetry and irregularity are None, the rest 0.

  Raises:
    ValueError: if mask is not [H, W] uint8 of 0 and 1 or mm_per_pixel is not above 0.
  """
  _check_arguments(mask, mm_per_pixel)
  area = cv2.countNonZero(mask)
  shape = _shape(mask) if area else _NO_SHAPE
  length = shape["perimeter_px"]
  on_frame = sum(map(cv2.countNonZero, (mask[0], mask[-1], mask[:, 0], mask[:, -1])))
  row: dict[str, float | int | str | None] = {
    "area_px": area,
    "perimeter_px": length,
    "largest_diameter_px": shape["largest_diameter_px"],
    "smallest_diameter_px": shape["smallest_diameter_px"],
    "asymmetry": shape["asymmetry"],
    "border_irregularity": length**2 / (4 * np.pi * area) if area else None,
    "area_fraction": area / mask.size,
    "regions": shape["regions"],
    "region_diameters_px": shape["region_diameters_px"],
    "touches_frame": int(on_frame > 0),
    "frame_share": min(1.0, on_frame / length) if area else 0.0,
  }
  if mm_per_pixel is not None:
    lengths = (length, shape["largest_diameter_px"], shape["smallest_diameter_px"])
    in_mm = (area * mm_per_pixel**2, *(pixels * mm_per_pixel for pixels in lengths))
    row |= dict(zip(IN_MM, in_mm, strict=True))
  return row


_NO_SHAPE: dict[str, Any] = {
  "perimeter_px": 0.0,
  "largest_diameter_px": 0.0,
  "smallest_diameter_px": 0.0,
  "asymmetry": None,
  "regions": 0,
  "region_diameters_px": "",
}


def _shape(mask: np.ndarray) -> dict[str, Any]:
  """What `measure_lesion` computes from the outlines of a mask that is not empty."""
  x, y, width, height = cv2.boundingRect(mask)
  lesion = mask[y : y + height, x : x + width]
  contours, tree = cv2.findContours(lesion, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
  # The last column is the parent: the region that a hole lies in, or negative for a region.
  outer = [points[:, 0] for points, of in zip(contours, tree[0], strict=True) if of[3] < 0]
  largest, smallest = feret_diameters(np.concatenate(contours)[:, 0])
  apart = sorted((feret_diameters(points)[0] for points in outer), reverse=True)
  return {
    "perimeter_px": outline_length(contours, holes=len(contours) - len(outer)),
    "largest_diameter_px": largest,
    "smallest_diameter_px": smallest,
    "asymmetry": fold_asymmetry(lesion),
    "regions": len(outer),
    "region_diameters_px": " ".join(f"{diameter:.1f}" for diameter in apart),
  }


def _check_arguments(mask: np.ndarray, mm_per_pixel: float | None) -> None:
  if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max(initial=0) > 1:
    raise ValueError(f"mask {mask.shape} {mask.dtype} must be [H, W] uint8 of 0 and 1")
  if mm_per_pixel is not None and not mm_per_pixel > 0:
    raise ValueError(f"mm_per_pixel is {mm_per_pixel} but must be above 0")


def outline_length(contours: Sequence[np.ndarray], holes: int) -> float:
  """Length of a lesion's outlines, including those of its holes, in pixels.

  Steps from pixel to pixel and changes of direction have the lengths given by Vossepoel and
  Smeulders (1982, "Vector code probability and metrication error in the representation of straight
  lines of finite length"). Contours run through the centres of border pixels. To follow the
  lesion's edge instead, the outline of a region is lengthened by `OUTWARDS` and that of a hole
  shortened by it. (Half a pixel in every direction would give pi, 0.4 % too much for a disc of
  radius 10.)

  For discs of radius 10 to 200 the error is within 1.5 % and unbiased, as it is for straight edges
  on average over directions. The worst case are edges along the grid: 2 % too short, and the four
  corners of a rectangle lose another 1.5 pixels.

  Args:
    contours: at least one, [N, 1, 2] int32 each, every step to one of the eight neighbours, as
      `cv2.findContours` returns them with `CHAIN_APPROX_NONE`.
    holes: number of contours that surround a hole.

  Returns:
    The sum over the contours.
  """
  points = np.concatenate(contours)[:, 0]
  ends = np.cumsum([len(contour) for contour in contours])
  following = np.arange(1, len(points) + 1)
  following[ends - 1] = np.concatenate([[0], ends[:-1]])
  steps = points[following] - points
  moved = np.abs(steps).sum(axis=1)  # 0 where a contour is one pixel
  corners = (steps[following] != steps).any(axis=1)
  length = (
    EVEN_STEP * np.count_nonzero(moved == 1)
    + ODD_STEP * np.count_nonzero(moved == 2)
    + CORNER * np.count_nonzero(corners)
  )
  return float(length + OUTWARDS * (len(contours) - 2 * holes))


def feret_diameters(points: np.ndarray) -> tuple[float, float]:
  """Largest diameter and smallest width of a set of pixels (Feret diameters).

  Both are exact for the convex hull of the pixels' corners: the largest diameter joins two of its
  vertices, and of the narrowest pair of parallel lines around it one contains an edge.

  Args:
    points: [N, 2] int32 (x, y) of pixels, N at least 1; must include all outermost pixels.

  Returns:
    largest: in pixels.
    smallest: in pixels.
  """
  hull = cv2.convexHull(points)[:, 0]
  corners = 2 * hull[:, None] + np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)], np.int32)
  vertices = cv2.convexHull(corners.reshape(-1, 2))[:, 0] / 2
  x, y = (vertices[None] - vertices[:, None]).transpose(2, 0, 1)  # from vertex i to vertex j
  edges = np.roll(vertices, -1, axis=0) - vertices
  areas = np.abs(edges[:, :1] * y - edges[:, 1:] * x)
  widths = areas.max(axis=1) / np.hypot(*edges.T)
  return float(np.hypot(x, y).max()), float(widths.min())


def fold_asymmetry(mask: np.ndarray) -> float:
  """Share of a lesion that does not overlap its mirror image about its principal axes.

  The lesion is mirrored about each principal axis through its centroid; the share without overlap,
  |L xor mirrored L| / (2 area), is averaged over the two axes (Stoecker et al. 1992, "Automatic
  detection of asymmetry in skin tumors"). A lesion longer than `FOLDED_SIZE` is first averaged over
  squares of whole pixels; the mirror image is interpolated linearly. A symmetrical lesion gives 0
  if its axes lie on the grid, otherwise up to about 1 / (its width in pixels). If no direction is
  longest (a disc, a square), single pixels decide where the axes lie.

  Args:
    mask: [H, W] uint8, 0 or 1, not empty; the lesion's bounding box.

  Returns:
    In [0, 1]; 0 for a symmetrical lesion.
  """
  cover = _reduced(mask)
  # Not `cv2.moments`, which interprets an array two pixels wide as a list of points.
  weight = cover.sum(dtype=np.float64)
  x, y = (np.arange(length, dtype=np.float64) for length in cover.shape[::-1])
  columns, rows = (cover.sum(axis=axis, dtype=np.float64) for axis in (0, 1))
  centre = np.array([columns @ x, rows @ y]) / weight
  x, y = x - centre[0], y - centre[1]
  spread = np.array([columns @ x**2, rows @ y**2])
  # A vector at twice the angle of the longer axis, which is all that the reflection needs.
  double = np.array([spread[0] - spread[1], 2 * (y @ cover @ x)])
  strength = np.hypot(*double)
  cos, sin = double / strength if strength > 1e-9 * spread.sum() else (1.0, 0.0)
  fold = np.array([[cos, sin], [sin, -cos]])
  shared = 0.0
  for reflection in (fold, -fold):
    matrix = np.column_stack([reflection, centre - reflection @ centre])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    mirrored = cv2.warpAffine(cover, matrix, cover.shape[::-1], flags=flags)
    # Pixels mirrored out of the box overlap no lesion, so the overlap inside it is complete.
    shared += np.minimum(cover, mirrored).sum(dtype=np.float64) / 2
  return float(np.clip(1 - shared / weight, 0, 1))


def _reduced(mask: np.ndarray) -> np.ndarray:
  """Lesion pixels in each square of a grid of at most `FOLDED_SIZE`, [h, w] float32."""
  side = -(-max(mask.shape) // FOLDED_SIZE)
  margins = [(-length % side) for length in mask.shape]
  mask = np.pad(mask, [(margin // 2, margin - margin // 2) for margin in margins])
  height, width = mask.shape[0] // side, mask.shape[1] // side
  return mask.reshape(height, side, width, side).sum(axis=(1, 3), dtype=np.float32)
