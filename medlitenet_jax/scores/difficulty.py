"""What makes a case hard: a small lesion, or one with little contrast to the skin around it."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

BAND_FRACTION = 0.05  # width of the band on each side of the border, over the image's longer side


def border_contrast(image: np.ndarray, mask: np.ndarray) -> float:
  """Colour difference between lesion and skin near the border.

  Args:
    image: [S, S, 3] uint8 RGB.
    mask: [S, S] uint8, 0 or 1.

  Returns:
    Distance in CIELAB (CIE 1976) between the mean colours of the two bands, `BAND_FRACTION` wide,
    inside and outside the border. About 2 is just visible; black against white is 100. nan if one
    of the bands is empty.
  """
  reach = max(1, round(BAND_FRACTION * max(mask.shape)))
  kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
  inside = (mask == 1) & (cv2.erode(mask, kernel) == 0)
  outside = (mask == 0) & (cv2.dilate(mask, kernel) == 1)
  if not inside.any() or not outside.any():
    return float("nan")
  lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
  return float(np.linalg.norm(lab[inside].mean(axis=0) - lab[outside].mean(axis=0)))


def terciles(rows: Sequence[Mapping[str, Any]], figure: str) -> list[list[Mapping[str, Any]]]:
  """Splits the cases into thirds with the lowest, middle and highest values of a column.

  Args:
    rows: one mapping per case.
    figure: name of the column; cases where it is nan are left out.

  Returns:
    The rows of each non-empty tercile, sorted by the column; the terciles' sizes differ by at most
    one.
  """
  known = [row for row in rows if np.isfinite(row[figure])]
  order = sorted(known, key=lambda row: row[figure])
  parts = np.array_split(np.arange(len(order)), 3)
  return [[order[i] for i in part] for part in parts if len(part)]
