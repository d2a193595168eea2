"""Draws hairs and rulers on dermoscopic photographs.

Lengths are fractions of the picture's side, so the same draw gives the same scene at every size.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

Strokes = Sequence[tuple[np.ndarray, np.ndarray]]  # each (points [N, 2] as x and y, widths [N])

HAIR_COLOUR, PALE_HAIR_COLOUR = (38, 26, 22), (222, 205, 180)  # RGB levels
PALE_HAIRS = 0.15  # fraction of pictures with fair or grey hairs
RULER_COLOUR = (40, 36, 40)


def stroke_cover(strokes: Strokes, image_size: int) -> np.ndarray:
  """Computes how much of each pixel strokes cover.

  Args:
    strokes: in fractions of the side; parts outside 0 to 1 are clipped.
    image_size: side in pixels.

  Returns:
    [image_size, image_size] uint8, from 0 to 255 for a pixel that is fully covered.
  """
  sheet = np.zeros((2 * image_size, 2 * image_size), np.uint8)  # twice the size, averaged below
  for points, widths in strokes:
    across = np.gradient(points, axis=0)[:, ::-1] * (-1.0, 1.0)
    across *= (widths / np.linalg.norm(across, axis=1))[:, None] / 2
    polygon = np.concatenate([points + across, (points - across)[::-1]]) * len(sheet) - 0.5
    cv2.fillPoly(sheet, [np.rint(16 * polygon).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
  return cv2.resize(sheet, (image_size, image_size), interpolation=cv2.INTER_AREA)


def add_strokes(image: np.ndarray, strokes: Strokes, colour, opacity: float) -> np.ndarray:
  """Draws strokes of one colour onto an image.

  Args:
    image: [S, S, 3] float32 levels, 0 to 255.
    strokes: see `stroke_cover`.
    colour: RGB levels.
    opacity: opacity of a fully covered pixel, 0 to 1.

  Returns:
    [S, S, 3] float32.
  """
  cover = stroke_cover(strokes, image.shape[0]).astype(np.float32)
  return image + cover[..., None] * (opacity / 255.0) * (np.asarray(colour, np.float32) - image)


def hair_strokes(
  rng: np.random.Generator,
  count: int,
  *,
  comb: float,
  spread: float,
  longest: float,
  thickest: float,
) -> Strokes:
  """Draws random curved, tapering hairs with roughly one direction.

  Args:
    rng: draws each hair's root, length, direction and width.
    count: number of hairs.
    comb: mean direction, in radians.
    spread: standard deviation of the directions, in radians.
    longest: greatest length, as a fraction of the side.
    thickest: greatest width at the root, as a fraction of the side.

  Returns:
    One stroke per hair.
  """
  t = np.linspace(0.0, 1.0, 24)
  strokes = []
  for _ in range(count):
    root, length = rng.uniform(-0.1, 1.1, 2), longest * rng.uniform(0.5, 1.0)
    heading = comb + rng.normal(0.0, spread) + rng.normal(0.0, 0.9) * t
    points = root + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0) * length / len(t)
    strokes.append((points, thickest * rng.uniform(0.6, 1.0) * (1.0 - 0.8 * t)))
  return strokes


def hair_colour(rng: np.random.Generator) -> np.ndarray:
  """Draws a random colour for the hairs of a picture, mostly dark: RGB levels [3] float64."""
  colour = np.where(rng.random() < PALE_HAIRS, PALE_HAIR_COLOUR, HAIR_COLOUR)
  return colour * rng.uniform(0.5, 1.1)


def ruler_strokes(
  *, angle: float, base: float, left: float, spacing: float, ticks: int, width: float = 0.005
) -> Strokes:
  """Makes a scale: a line with ticks towards the middle, every fifth one longer.

  Args:
    angle: rotation about the picture's centre, in radians; 0: along the lower side.
    base: distance of the line from the centre, as a fraction of the side.
    left: start of the line relative to the centre, as a fraction of the side.
    spacing: distance between ticks, as a fraction of the side.
    ticks: number of ticks.
    width: width of line and ticks, as a fraction of the side.

  Returns:
    One stroke for the line and one per tick.
  """
  turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
  places = left + spacing * np.arange(ticks)
  lines = [[(left, base), (places[-1], base)]]
  lines += [[(x, base), (x, base - (0.022 if n % 5 else 0.04))] for n, x in enumerate(places)]
  return [(0.5 + np.array(line) @ turn, np.full(2, width)) for line in lines]
