"""Generates dermoscopic pictures from a seed and an index, each with the exact mask of its lesion.

A picture is painted in layers: skin, lesion, light, artefacts such as hair, the instrument's tube,
the camera. Lengths are fractions of the picture's side and noise is drawn on grids of fixed size,
so (seed, index) gives the same scene at every `image_size`; only the sensor's noise differs.
"""

import math

import cv2
import numpy as np

from medlitenet_jax.data.augment.artefacts import (
  RULER_COLOUR,
  add_strokes,
  hair_colour,
  hair_strokes,
  ruler_strokes,
)

MIN_IMAGE_SIZE = 32  # below this the smallest lesion could fall between pixel centres

# Skin of Fitzpatrick type I to VI in equal steps, in RGB levels as a dermatoscope shows it.
SKIN_TONES = np.array(
  [(238, 212, 204), (228, 184, 166), (206, 154, 128), (172, 120, 94), (126, 84, 65), (94, 65, 54)]
)
# How strongly each pigment absorbs red, green and blue light: optical density at amount 1.
PIGMENTS = {
  "brown": np.array((0.50, 0.95, 1.25), np.float32),
  "tan": np.array((0.22, 0.50, 0.85), np.float32),
  "black": np.array((1.60, 1.60, 1.50), np.float32),
  "red": np.array((0.12, 0.80, 0.62), np.float32),
  "blue": np.array((1.05, 0.72, 0.42), np.float32),
  "white": np.array((-0.36, -0.50, -0.54), np.float32),  # lost pigment: the skin gets lighter
}
# A kind of lesion: its weight in the draw, its base pigment, and the pigments of patches on it.
LESION_KINDS = (
  (0.34, "brown", ("brown", "black")),  # naevus
  (0.22, "brown", ("black", "blue", "red", "white")),  # melanoma: several colours
  (0.14, "tan", ("brown", "red")),  # keratosis or lentigo
  (0.12, "red", ("brown", "blue")),  # pink, little pigment
  (0.08, "blue", ("black", "brown")),  # blue naevus
  (0.16, "white", ("white",)),  # depigmented; only on darker skin
)
WHITE_FROM_TONE = 0.7  # the lightest skin, 0 to 1, on which a depigmented lesion is drawn
MIN_STEP = 40.0  # RGB distance between mean lesion and mean skin below which pigment is added


def draw_dermoscopy(seed: int, index: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws one dermoscopic picture and its exact mask.

  The mask's outline is where the lesion's opacity is one half. Hair, ruler and bubbles over the
  lesion do not change the mask; what the black tube of the instrument hides is not lesion. The mask
  is never empty and never the whole frame.

  Args:
    seed: number of the data set, 0 or more.
    index: number of the picture within the data set, 0 or more.
    image_size: side of the square picture, in pixels, at least 32.

  Returns:
    image: [image_size, image_size, 3] uint8 RGB.
    mask: [image_size, image_size] uint8, 1 on the lesion and 0 elsewhere.

  Raises:
    ValueError: if image_size is below 32, or seed or index is negative.
  """
  if image_size < MIN_IMAGE_SIZE:
    raise ValueError(f"image_size must be at least {MIN_IMAGE_SIZE}, got {image_size}")
  rng = np.random.default_rng((seed, index))
  tone = rng.random()
  depth, softness = _draw_outline(rng, image_size)
  image = _paint_skin(rng, tone, image_size)
  image = _paint_lesion(rng, image, tone, _step(depth, softness)[..., None])
  image = _light_unevenly(rng, image)
  for chance, add_layer in ((0.30, _add_bubbles), (0.25, _add_ruler), (0.55, _add_hairs)):
    if rng.random() < chance:
      image = add_layer(rng, image)
  visible = _draw_tube(rng, image_size)
  mask = (depth > 0) & (visible > 0.5)
  return _photograph(rng, image * visible[..., None]), mask.astype(np.uint8)


def _grid(image_size: int, x0: float = 0.0, y0: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
  """Returns x [1, S] and y [S, 1] of the pixel centres in a frame of side 1, seen from (x0, y0)."""
  centres = ((np.arange(image_size) + 0.5) / image_size).astype(np.float32)
  return centres[None, :] - x0, centres[:, None] - y0


def _noise(rng, cells: int, image_size: int, octaves: int = 1) -> np.ndarray:
  """Returns smooth noise [S, S] of mean 0 and deviation near 1, `cells` bumps across."""
  total = np.zeros((image_size, image_size), np.float32)
  for octave in range(octaves):
    coarse = rng.standard_normal((cells << octave, cells << octave), np.float32)
    total += 0.5**octave * cv2.resize(coarse, total.shape, interpolation=cv2.INTER_CUBIC)
  return total


def _honeycomb(rng, cells: float, image_size: int) -> np.ndarray:
  """Returns a bent net of hexagons [S, S], `cells` across: -0.5 in a hole, 0.5 on a line."""
  x, y = _grid(image_size)
  x = x + _noise(rng, 12, image_size, octaves=2) * (0.4 / cells)
  y = y + _noise(rng, 12, image_size, octaves=2) * (0.4 / cells)
  turn, frequency = rng.uniform(0.0, math.pi), 2 * math.pi * cells
  angles = (turn, turn + math.pi / 3, turn + 2 * math.pi / 3)
  waves = [np.cos(frequency * (x * math.cos(a) + y * math.sin(a))) for a in angles]
  return np.maximum(sum(waves) / -3.0, -0.5)


def _step(values: np.ndarray, width: float | np.ndarray) -> np.ndarray:
  """Returns the logistic step, 0.5 where values is 0."""
  return 0.5 + 0.5 * np.tanh(values / (2.0 * width))


def _draw_outline(rng, image_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the depth [S, S], above 0 inside a ragged blob, and its border's softness [S, S]."""
  radius = 0.10 + 0.36 * rng.beta(1.3, 1.6)
  away = rng.uniform(0.15, 0.36) if rng.random() < 0.25 else abs(rng.normal(0.0, 0.06))
  bearing, turn = rng.uniform(0.0, 2 * math.pi), rng.uniform(0.0, math.pi)
  stretch, ragged = rng.uniform(1.0, 1.35), radius * rng.uniform(0.01, 0.11)
  x, y = _grid(image_size, 0.5 + away * math.cos(bearing), 0.5 + away * math.sin(bearing))
  # The bend is clipped so that the blob's centre stays inside and one of the corners outside.
  x = x + ragged * np.clip(_noise(rng, 8, image_size, octaves=3), -1.35, 1.35)
  y = y + ragged * np.clip(_noise(rng, 8, image_size, octaves=3), -1.35, 1.35)
  along = (x * math.cos(turn) + y * math.sin(turn)) / stretch
  across = (y * math.cos(turn) - x * math.sin(turn)) * stretch
  reach = radius * _radius_profile(rng, np.arctan2(across, along))
  depth = np.minimum(reach, 0.54) - np.hypot(along, across)
  softness = radius * 0.02 * 7.0 ** rng.random()
  return depth, softness * np.exp(0.4 * _noise(rng, 3, image_size))


def _radius_profile(rng, angle: np.ndarray) -> np.ndarray:
  """Returns the outline's radius in each direction, about 1: waves, lobes and notches."""
  roughness = rng.uniform(0.3, 1.0)
  profile = np.ones_like(angle)
  for order in range(2, 8):
    height, phase = roughness * rng.normal(0.0, 0.26) / order, rng.uniform(0.0, 2 * math.pi)
    profile += height * np.cos(order * angle + phase)
  for _ in range(rng.integers(0, 4)):
    height, sharpness = rng.uniform(-0.35, 0.3), rng.uniform(6.0, 25.0)
    profile += height * np.exp(sharpness * (np.cos(angle - rng.uniform(0.0, 2 * math.pi)) - 1.0))
  return np.clip(profile, 0.6, 1.5)


def _paint_skin(rng, tone: float, image_size: int) -> np.ndarray:
  """Paints skin [S, S, 3] float32 levels: tone, flush, freckles, furrows and pores."""
  colour = np.array([np.interp(5 * tone, range(6), levels) for levels in SKIN_TONES.T], np.float32)
  flush = 0.08 * _noise(rng, 3, image_size, octaves=4) + rng.uniform(0.0, 0.25)
  freckles = _step(_noise(rng, 10, image_size, octaves=2) - 2.0, 0.25) * rng.uniform(0.0, 0.3)
  furrows = _honeycomb(rng, rng.uniform(14.0, 34.0), image_size) * rng.uniform(0.0, 0.06)
  pores = _noise(rng, 64, image_size, octaves=2) * rng.uniform(0.01, 0.03)
  density = np.multiply.outer(freckles + furrows + pores, PIGMENTS["brown"])
  return colour * np.exp(-density - np.multiply.outer(flush, PIGMENTS["red"]))


def _paint_lesion(rng, skin: np.ndarray, tone: float, opacity: np.ndarray) -> np.ndarray:
  """Blends a random kind of lesion over the skin by opacity [S, S, 1]; strengthens faint ones."""
  weights = np.array([weight for weight, _, _ in LESION_KINDS])
  weights[-1] *= tone > WHITE_FROM_TONE
  _, ground, patches = LESION_KINDS[rng.choice(len(weights), p=weights / weights.sum())]
  density = _lesion_density(rng, ground, patches, skin.shape[0])
  mean_density = (density * opacity).mean((0, 1)) / opacity.mean()
  step = np.linalg.norm(skin.mean((0, 1)) * (1.0 - np.exp(-mean_density)))
  density *= min(max(1.0, MIN_STEP / float(step)), 2.5)
  return skin * (1.0 - opacity + opacity * np.exp(-density))


def _lesion_density(rng, ground: str, patches: tuple[str, ...], image_size: int) -> np.ndarray:
  """Returns the optical density [S, S, 3] of uneven ground, patches, network and globules."""
  amount = rng.uniform(0.5, 1.1) * (1.0 + 0.22 * _noise(rng, 5, image_size, octaves=3))
  density = np.multiply.outer(np.maximum(amount, 0.2), PIGMENTS[ground])
  for pigment in patches:
    edge = _noise(rng, 4, image_size, octaves=3) - rng.uniform(0.0, 1.6)
    patch = _step(edge, rng.uniform(0.2, 0.7)) * rng.uniform(0.2, 0.9)
    density += np.multiply.outer(patch, PIGMENTS[pigment])
  texture = _honeycomb(rng, rng.uniform(18.0, 40.0), image_size)
  texture *= _step(_noise(rng, 4, image_size), 0.4) * float(rng.choice((0.0, 0.4, 0.8)))
  globules = _step(_noise(rng, int(rng.integers(24, 60)), image_size) - 1.0, 0.2) - 0.15
  texture += globules * float(rng.choice((0.0, 0.0, 0.7)))
  return density * (1.0 + texture[..., None])


def _light_unevenly(rng, image: np.ndarray) -> np.ndarray:
  """Dims the light unevenly, adds a colour cast and reduces the saturation."""
  x, y = _grid(len(image), rng.normal(0.5, 0.1), rng.normal(0.5, 0.1))
  light = 0.06 * _noise(rng, 2, len(image)) - rng.uniform(-0.1, 0.5) * (x * x + y * y)
  cast = rng.normal(0.0, (0.05, 0.06, 0.07)) + rng.normal(0.14, 0.08)
  image = image * np.exp(light[..., None] + cast.astype(np.float32))
  grey = cv2.transform(image, np.full((3, 3), 1 / 3, np.float32))
  return grey + rng.uniform(0.5, 1.0) * (image - grey)


def _add_hairs(rng, image: np.ndarray) -> np.ndarray:
  """Adds hairs, few or many."""
  comb, spread = rng.uniform(0.0, 2 * math.pi), rng.uniform(0.15, 0.9)
  longest, thickest = rng.uniform(0.15, 1.2), rng.uniform(0.004, 0.010)
  count = int(45.0 ** rng.random())
  hairs = hair_strokes(rng, count, comb=comb, spread=spread, longest=longest, thickest=thickest)
  colour = hair_colour(rng)
  return add_strokes(image, hairs, colour, rng.uniform(0.65, 0.95))


def _add_ruler(rng, image: np.ndarray) -> np.ndarray:
  """Adds a scale near one of the four sides, a little askew."""
  angle = int(rng.integers(4)) * math.pi / 2 + rng.normal(0.0, 0.1)
  left, base = rng.uniform(-0.6, -0.2), rng.uniform(0.34, 0.44)
  spacing, ticks = rng.uniform(0.022, 0.05), int(rng.integers(11, 26))
  ruler = ruler_strokes(angle=angle, base=base, left=left, spacing=spacing, ticks=ticks)
  return add_strokes(image, ruler, RULER_COLOUR, rng.uniform(0.5, 0.9))


def _add_bubbles(rng, image: np.ndarray) -> np.ndarray:
  """Adds air bubbles in the gel: a bright rim and a glint in it."""
  circle = np.array([(math.cos(t), math.sin(t)) for t in np.linspace(0.0, 2 * math.pi, 25)])
  strokes = []
  for _ in range(int(12.0 ** rng.random())):
    centre, radius = rng.uniform(0.0, 1.0, 2), 0.008 + 0.04 * rng.beta(1.0, 3.0)
    glint = circle[: rng.integers(4, 10)]
    strokes.append((centre + radius * circle, np.full(25, 0.003)))
    strokes.append((centre + 0.7 * radius * glint, 0.3 * radius * np.hanning(len(glint))))
  return add_strokes(image, strokes, (250, 248, 246), rng.uniform(0.4, 0.9))


def _draw_tube(rng, image_size: int) -> np.ndarray:
  """Returns the light [S, S], 0 to 1, that the instrument's round tube lets through."""
  distance = np.hypot(*_grid(image_size, rng.normal(0.5, 0.02), rng.normal(0.5, 0.02)))
  radius = rng.uniform(0.52, 0.66) if rng.random() < 0.20 else 2.0  # 2.0: outside the frame
  return _step(radius - distance, rng.uniform(0.002, 0.012))


def _photograph(rng, image: np.ndarray) -> np.ndarray:
  """Blurs slightly, adds the sensor's noise and rounds to uint8 levels."""
  image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.001, 0.004) * image.shape[0])
  image = image + rng.uniform(0.5, 3.0) * rng.standard_normal(image.shape, np.float32)
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)
