"""What makes a case hard: a small lesion, or one that stands out little from the skin around it."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

BAND_FRACTION = 0.05  # of the side, on either side of the border


def border_contrast(image: np.ndarray, mask: np.ndarray) -> float:
  """How much lesion and skin differ in colour on the two sides of the border.

  Args:
    image: [S, S, 3] uint8 RGB.
    mask: [S, S] uint8, 0 or 1.

  Returns:
    Distance of the two mean colours in CIELAB (CIE 1976), over the pixels that lie within
    `BAND_FRACTION` of the side from the border; about 2 is just visible, black against white 100.
    nan without a border.
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
  """Parts the cases into those with the lowest, the middle and the highest values of a figure.

  Args:
    rows: a mapping a case.
    figure: name of the column to sort by; cases without it (nan) are in no tercile.

  Returns:
    The rows of each tercile that has one, in order of the figure; their numbers differ by one at
    most.
  """
  known = [row for row in rows if np.isfinite(row[figure])]
  order = sorted(known, key=lambda row: row[figure])
  parts = np.array_split(np.arange(len(order)), 3)
  return [[order[i] for i in part] for part in parts if len(part)]
