"""Outlines of masks on photographs; apart from the figures, for they need no Matplotlib."""

from collections.abc import Sequence

import cv2
import numpy as np

TRUTH_COLOR, PREDICTION_COLOR = (0, 230, 118), (255, 214, 0)  # RGB: told apart by the colour-blind


def outlined(image: np.ndarray, mask: np.ndarray, color: Sequence[int]) -> np.ndarray:
  """Draws the border of a mask on a photograph.

  Args:
    image: [H, W, 3] uint8 RGB.
    mask: [H, W] uint8, 0 or 1.
    color: RGB, 0 to 255.

  Returns:
    A copy of image; the line is a 150th of the longer side wide.
  """
  contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
  width = max(1, round(max(mask.shape) / 150))
  return cv2.drawContours(image.copy(), contours, -1, tuple(color), width, cv2.LINE_AA)
