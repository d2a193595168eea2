"""Preprocessing removes hairs and colour casts, keeps skin, and is the same in every mode."""

import cv2
import numpy as np
import pytest

from medlitenet_jax.data.augment.artefacts import add_strokes, hair_strokes
from medlitenet_jax.data.images import preprocess
from medlitenet_jax.data.images.preprocess import (
  MAX_GAIN,
  WORKING_SIDE,
  Preprocessing,
  find_hairs,
  paint_over,
  reduced,
  shades_of_grey,
  without_shadow,
)
from medlitenet_jax.system.errors import InputError

SIZE = 256


def skin(size=SIZE, seed=0):
  """Smooth skin with a soft dark spot and a little grain."""
  rng = np.random.default_rng(seed)
  steps = (np.arange(size) + 0.5) / size - 0.5
  spot = 1 / (1 + np.exp((np.hypot(steps[:, None], steps[None, :]) - 0.25) / 0.02))
  image = np.array([210.0, 165.0, 145.0]) - spot[..., None] * np.array([80.0, 85.0, 85.0])
  image = image + 10 * steps[:, None, None] + rng.normal(0, 1.5, image.shape)
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def with_hairs(image, colour=(40, 28, 24), count=12, seed=1):
  """The same skin under hairs, and the mask of the hairs."""
  hairs = hair_strokes(
    np.random.default_rng(seed), count, comb=0.4, spread=0.6, longest=0.9, thickest=0.01
  )
  drawn = np.rint(add_strokes(image.astype(np.float32), hairs, colour, 0.9)).astype(np.uint8)
  return drawn, np.abs(drawn.astype(int) - image).max(axis=2) > 8


def error(a, b, where):
  return np.abs(a.astype(float) - b)[where].mean()


@pytest.mark.parametrize("size", [160, 256, 512])
def test_hairs_of_known_place_are_removed(size):
  clean = skin(size)
  hairy, where = with_hairs(clean)
  found = find_hairs(hairy)
  assert set(np.unique(found)) == {0, 1} and found.dtype == np.uint8
  assert np.mean(found[where]) > 0.85 and found.mean() < 3.5 * where.mean()
  painted = paint_over(hairy, found)
  assert error(painted, clean, where) < 0.2 * error(hairy, clean, where)
  assert error(painted, clean, ~where) < 2.5
  np.testing.assert_array_equal(painted[found == 0], hairy[found == 0])


def test_fair_hairs_are_removed_too():
  clean = skin()
  hairy, where = with_hairs(clean, colour=(235, 225, 205))
  painted = paint_over(hairy, find_hairs(hairy))
  assert error(painted, clean, where) < 0.4 * error(hairy, clean, where)


@pytest.mark.parametrize("seed", range(3))
def test_a_photograph_without_hairs_hardly_changes(seed):
  image = skin(seed=seed)
  assert find_hairs(image).mean() < 0.005
  assert np.abs(Preprocessing(True, "none")(image).astype(int) - image).mean() < 0.05


def test_a_pigment_network_is_not_hair():
  """Brown meshes are as thin as hairs but a tenth of their minimum length, so they stay."""
  image = skin(512).astype(np.float32)
  rng = np.random.default_rng(0)
  net = np.zeros((512, 512), np.float32)
  for row, y in enumerate(range(150, 362, 13)):
    for x in range(150 + 8 * (row % 2), 362, 16):
      center = (x + int(rng.integers(-3, 4)), y + int(rng.integers(-3, 4)))
      cv2.circle(net, center, 8, 1.0, 2, cv2.LINE_AA)
  image -= net[..., None] * np.array([30.0, 50.0, 55.0], np.float32)
  image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
  assert np.mean(find_hairs(image)[net > 0.5]) < 0.05


def test_covered_pixels_are_filled_at_any_width_from_uncovered_ones():
  image = skin()
  hidden = np.zeros((SIZE, SIZE), np.uint8)
  hidden[100:160, 10:60] = 1
  wrong = np.where(hidden[..., None] == 1, np.uint8(255), image)
  np.testing.assert_array_equal(paint_over(image, hidden), paint_over(wrong, hidden))
  assert error(paint_over(wrong, hidden), image, hidden == 1) < 15
  np.testing.assert_array_equal(paint_over(image, np.zeros_like(hidden)), image)
  everything = np.ones_like(hidden)
  np.testing.assert_array_equal(paint_over(image, everything), image)  # nothing to fill it from


def test_large_photographs_are_reduced_first_and_mean_the_same():
  large = np.random.default_rng(0).integers(0, 256, (700, 1100, 3)).astype(np.uint8)
  assert reduced(large).shape == (WORKING_SIDE, round(1100 * WORKING_SIDE / 700), 3)
  assert reduced(large[:300]) is not None and reduced(large[:300]).shape == (300, 1100, 3)
  clean = skin(1024)
  hairy, where = with_hairs(clean)
  both = [Preprocessing(True, "none")(image) for image in (hairy, clean)]
  assert both[0].shape == (WORKING_SIDE, WORKING_SIDE, 3)
  small = cv2.resize(where.astype(np.uint8), (WORKING_SIDE,) * 2, interpolation=cv2.INTER_NEAREST)
  left = error(both[0], both[1], small == 1)
  assert left < 0.2 * error(reduced(hairy), reduced(clean), small == 1)


def test_shades_of_grey_is_the_formula():
  image = np.random.default_rng(0).integers(10, 200, (40, 30, 3)).astype(np.uint8)
  levels = image.astype(np.float64)
  light = np.mean(levels**6, axis=(0, 1)) ** (1 / 6)
  gains = np.linalg.norm(light) / (np.sqrt(3) * light)
  expected = np.clip(np.rint(levels * gains), 0, 255)
  assert np.ptp(gains) > 0
  np.testing.assert_array_equal(shades_of_grey(image), expected)


def test_a_colour_cast_is_removed():
  """After a gain per channel the result is, up to rounding, the photograph times one factor."""
  image = (skin() // 2).astype(np.uint8)
  plain = shades_of_grey(image).astype(float)
  for gains in ((1.2, 1.0, 0.8), (0.7, 1.0, 1.4)):
    cast = np.rint(image * np.array(gains)).astype(np.uint8)
    corrected = shades_of_grey(cast).astype(float)
    factor = corrected.mean() / plain.mean()
    assert np.abs(corrected - factor * plain).max() < 2.5
    assert np.abs(cast.astype(float) * plain.mean() / cast.mean() - plain).max() > 10
    tints = [p.mean(axis=(0, 1)) / p.mean() for p in (corrected, plain)]
    np.testing.assert_allclose(*tints, atol=0.01)


def test_grey_light_and_darkness_stay():
  grey = np.repeat(np.random.default_rng(0).integers(0, 256, (9, 9, 1)), 3, axis=2).astype(np.uint8)
  np.testing.assert_array_equal(shades_of_grey(grey), grey)
  black = np.zeros((5, 5, 3), np.uint8)
  np.testing.assert_array_equal(shades_of_grey(black), black)
  red = black.copy()
  red[..., 0] = 90
  np.testing.assert_array_equal(shades_of_grey(red), red)


def lit(image, gradient=0.0, bow=0.0):
  """The photograph in a light that grows from left to right and falls from the middle outwards."""
  y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape[:2]), indexing="ij")
  light = np.exp(gradient * x - bow * (x * x + y * y))
  return np.clip(np.rint(image * light[..., None]), 0, 255).astype(np.uint8)


def with_lesion(image, row, column, radius):
  """A dark disc; its centre and radius in fractions of the side."""
  side = len(image)
  y, x = np.mgrid[:side, :side] / side
  inside = np.hypot(y - row, x - column) < radius
  return np.where(inside[..., None], np.uint8([90, 50, 40]), image), inside


def behind_lens(image, radius):
  """Black outside a disc; its radius in fractions of the shorter side."""
  height, width = image.shape[:2]
  y, x = np.mgrid[:height, :width]
  away = np.hypot(y - height / 2, x - width / 2) / min(height, width)
  return np.where((away > radius)[..., None], np.uint8(3), image), away < radius


@pytest.mark.parametrize("lens", [None, 0.65, 0.57])
@pytest.mark.parametrize(
  "place", [(0.5, 0.5, 0.3), (0.5, 0.5, 0.4), (0.5, 0.1, 0.2), (0.5, 0, 0.3)]
)
def test_uneven_light_is_evened_out(place, lens):
  """Whether the lesion is in the middle or reaches over the border, and behind a lens."""
  even, inside = with_lesion(np.full((160, 160, 3), (180, 140, 120), np.uint8), *place)
  seen = np.ones_like(inside)
  for light in ({"gradient": 0.3, "bow": 0.1}, {}):
    dim = lit(even, **light)
    if lens:
      dim, seen = behind_lens(dim, lens)
    left = without_shadow(dim).astype(float)
    skin, lesion = ~inside & seen, inside & seen
    if light:
      assert dim[skin].std(axis=0).min() > 12
    assert left[skin].std(axis=0).max() < 3
    colours = left[skin].mean(axis=0)
    np.testing.assert_allclose(colours / colours.sum(), np.array((180, 140, 120)) / 440, atol=0.005)
    assert 130 < colours[0] < 230
    assert left[lesion].mean() < 0.6 * left[skin].mean()


def test_a_large_photograph_is_changed_like_a_small_one(monkeypatch):
  image = lit(np.full((90, 70, 3), (180, 140, 120), np.uint8), gradient=0.3)
  whole = without_shadow(image)
  monkeypatch.setattr(preprocess, "STRIP", 500)
  np.testing.assert_array_equal(without_shadow(image), whole)
  assert without_shadow(dark := np.zeros((40, 40, 3), np.uint8)) is dark


def test_even_light_stays_and_no_pixel_changes_by_more_than_the_bound():
  even, _ = with_lesion(np.full((90, 120, 3), (180, 140, 120), np.uint8)[:, :90], 0.5, 0.5, 0.3)
  np.testing.assert_array_equal(without_shadow(even), even)
  noise = np.random.default_rng(0).integers(1, 256, (40, 30, 3)).astype(np.uint8)
  changed = without_shadow(noise).astype(float)
  assert (changed <= np.minimum(noise * MAX_GAIN, 255) + 0.5).all()
  assert (changed >= noise / MAX_GAIN - 0.5).all()
  black = np.zeros((20, 30, 3), np.uint8)
  np.testing.assert_array_equal(without_shadow(black), black)


def test_off_is_the_photograph_itself_and_on_is_each_in_turn():
  image = with_hairs(skin())[0]
  assert Preprocessing(False, "none")(image) is image
  np.testing.assert_array_equal(
    Preprocessing(False, "shades_of_grey")(image), shades_of_grey(image)
  )
  without = paint_over(image, find_hairs(image))
  np.testing.assert_array_equal(Preprocessing(True, "none")(image), without)
  np.testing.assert_array_equal(
    Preprocessing(True, "shades_of_grey")(image), shades_of_grey(without)
  )
  shaded = lit(image, gradient=0.3)
  np.testing.assert_array_equal(
    Preprocessing(shadow_removal=True, color_constancy="shades_of_grey")(shaded),
    shades_of_grey(without_shadow(shaded)),
  )
  every = ["hair_removal", "shadow_removal", "shades_of_grey"]
  assert Preprocessing(True, "shades_of_grey", True).steps == every
  assert Preprocessing(False, "none").steps == []


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (3, 5), (40, 2)])
def test_tiny_photographs_are_accepted(size):
  image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
  clean = Preprocessing(True, "shades_of_grey", True)(image)
  assert clean.shape == image.shape and clean.dtype == np.uint8


@pytest.mark.parametrize(
  "fields", [("yes", "none"), (1, "none"), (True, "grey"), (False, None), (True, "none", "yes")]
)
def test_invalid_settings_are_refused(fields):
  with pytest.raises(InputError, match=r"preprocess\.[a-z_]+ takes"):
    Preprocessing(*fields)
