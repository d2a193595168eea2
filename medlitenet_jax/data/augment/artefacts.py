"""What lies on the skin in a dermoscopic photograph without being skin: hairs and rulers.

Strokes are drawn in parts of the picture's side, so that one draw is one scene at every size.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

Strokes = Sequence[tuple[np.ndarray, np.ndarray]]  # (points [N, 2], x and y; widths [N]) each

HAIR_COLOUR, PALE_HAIR_COLOUR = (38, 26, 22), (222, 205, 180)  # RGB levels
PALE_HAIRS = 0.15  # share of pictures whose hairs are fair or grey
RULER_COLOUR = (40, 36, 40)


def stroke_cover(strokes: Strokes, image_size: int) -> np.ndarray:
  """Draws strokes.

  Args:
    strokes: in parts of the side; what lies outside 0 to 1 is not seen.
    image_size: pixels of both sides.

  Returns:
    [image_size, image_size] uint8, from 0 to 255 where a stroke covers the whole pixel.
  """
  sheet = np.zeros((2 * image_size, 2 * image_size), np.uint8)  # averaged down below
  for points, widths in strokes:
    across = np.gradient(points, axis=0)[:, ::-1] * (-1.0, 1.0)
    across *= (widths / np.linalg.norm(across, axis=1))[:, None] / 2
    polygon = np.concatenate([points + across, (points - across)[::-1]]) * len(sheet) - 0.5
    cv2.fillPoly(sheet, [np.rint(16 * polygon).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
  return cv2.resize(sheet, (image_size, image_size), interpolation=cv2.INTER_AREA)


def add_strokes(image: np.ndarray, strokes: Strokes, colour, opacity: float) -> np.ndarray:
  """Lays strokes of one colour on top.

  Args:
    image: [S, S, 3] float32 levels.
    strokes: as `stroke_cover` takes them.
    colour: RGB levels.
    opacity: from 0 to 1, of a pixel that a stroke covers.

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
  """Draws the course of curved, tapering hairs, combed roughly one way.

  Args:
    rng: of each hair's root, length, heading and width.
    count: of hairs.
    comb: the way they are combed, in radians.
    spread: standard deviation of their headings, in radians.
    longest: hair, a part of the side.
    thickest: hair at its root, a part of the side.

  Returns:
    A stroke a hair.
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
  """Draws the colour of a picture's hairs, mostly dark: RGB levels [3] float64."""
  colour = np.where(rng.random() < PALE_HAIRS, PALE_HAIR_COLOUR, HAIR_COLOUR)
  return colour * rng.uniform(0.5, 1.1)


def ruler_strokes(
  *, angle: float, base: float, left: float, spacing: float, ticks: int, width: float = 0.005
) -> Strokes:
  """Draws a scale: a line, and ticks from it towards the middle, every fifth a long one.

  Args:
    angle: in radians, about the picture's centre; 0 is at the lower side.
    base: distance of the line from the centre, a part of the side.
    left: where the line begins, seen from the centre, a part of the side.
    spacing: of the ticks, a part of the side.
    ticks: their number.
    width: of line and ticks, a part of the side.

  Returns:
    A stroke for the line and each tick.
  """
  turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
  places = left + spacing * np.arange(ticks)
  lines = [[(left, base), (places[-1], base)]]
  lines += [[(x, base), (x, base - (0.022 if n % 5 else 0.04))] for n, x in enumerate(places)]
  return [(0.5 + np.array(line) @ turn, np.full(2, width)) for line in lines]
