"""Outlines of masks on photographs; apart from the figures, for they need no Matplotlib."""

import cv2
import numpy as np

# RGB; apart from each other and from skin of every tone, for the colour-blind too.
TRUTH_COLOR, PREDICTION_COLOR = (0, 200, 255), (255, 255, 0)
TRUTH_NAME, PREDICTION_NAME = "blue", "yellow"
DARK, LIGHT = (0, 0, 0), (255, 255, 255)
Color = tuple[int, int, int]


def outlined(image: np.ndarray, *masks: tuple[np.ndarray, Color]) -> np.ndarray:
  """Draws the borders of masks on a photograph.

  Args:
    image: [H, W, 3] uint8 RGB.
    *masks: each an [H, W] uint8 mask, 0 or 1, and the colour of its border, RGB, 0 to 255.

  Returns:
    A copy of image. A line is a 150th of the longer side wide, between a light and a dark edge that
    set it off from any ground; no edge covers another line. Where a line is a pixel wide, edges of
    both kinds would hide it, and it has a dark one alone.
  """
  width = max(1, round(max(image.shape) / 150))
  edge = max(1, round(width / 3))
  rings = ((4 * edge, DARK), (2 * edge, LIGHT)) if width > 1 else ((2, DARK),)
  borders = [cv2.findContours(m, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0] for m, _ in masks]
  drawn = image.copy()
  for ring, shade in (*rings, (0, None)):
    for border, (_, color) in zip(borders, masks, strict=True):
      cv2.drawContours(drawn, border, -1, shade or color, width + ring, cv2.LINE_AA)
  return drawn
