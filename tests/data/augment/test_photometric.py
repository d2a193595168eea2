"""Augmentations for hard cases: each does what it should, where it should, and keeps the mask."""

import concurrent.futures
import dataclasses

import cv2
import numpy as np
import pytest

from configs import hard_cases
from configs.base import get_config
from medlitenet_jax.data.augment.geometry import augment, single_augmentations
from medlitenet_jax.data.augment.photometric import fade_border, shift_skin_tone
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.scores.difficulty import border_contrast

SIZE = 128
HARD = ("hairs", "ruler", "shadow", "uneven_light", "skin_tone", "faint_border")
POLICY = AugmentPolicy(**get_config().augment)
ALONE = single_augmentations(POLICY)


def lesion(size=SIZE):
  """Grainy skin with a dark spot, and the spot's mask."""
  mask = cv2.circle(np.zeros((size, size), np.uint8), (size // 2, size // 2), size // 4, 1, -1)
  image = np.where(mask[..., None] == 1, (120, 75, 55), (215, 170, 150))
  grain = np.random.default_rng(0).integers(-4, 5, image.shape)
  return (image + grain).astype(np.uint8), mask


def run(name, seed, pair=None, **fields):
  image, mask = pair or lesion()
  policy = dataclasses.replace(ALONE[name], **fields)
  return augment(np.random.default_rng(seed), image, mask, len(mask), policy)


def lightness(image):
  return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0].mean()


@pytest.mark.parametrize("name", HARD)
def test_the_photograph_changes_and_the_mask_does_not(name):
  pair = lesion()
  for seed in range(6):
    image, mask = run(name, seed)
    assert image.dtype == np.uint8 and image.shape == pair[0].shape
    np.testing.assert_array_equal(mask, pair[1])
    assert np.any(image != pair[0])
    np.testing.assert_array_equal(image, run(name, seed)[0])
  assert np.any(run(name, 0)[0] != run(name, 1)[0])


def test_threads_give_the_same_results():
  policy = dataclasses.replace(POLICY, **{f"{name}_probability": 1.0 for name in HARD})

  def one(seed):
    return augment(np.random.default_rng(seed), *lesion(), SIZE, policy)[0]

  alone = [one(seed) for seed in range(16)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    np.testing.assert_array_equal(list(pool.map(one, range(16))), alone)


def test_the_recipe_switches_them_all_on_and_base_none():
  base, hard = get_config().augment, hard_cases.get_config().augment
  for name in HARD:
    assert base[f"{name}_probability"] == 0 < hard[f"{name}_probability"]


def test_hairs_are_thin_and_more_of_them_cover_more():
  covered = {}
  for count in (3, 40):
    drawn = [
      run("hairs", seed, hairs_count=(count, count), hairs_width=(0.008, 0.008))[0]
      for seed in range(8)
    ]
    changed = [np.abs(image.astype(int) - lesion()[0]).max(axis=2) > 12 for image in drawn]
    covered[count] = np.mean(changed)
    # An opening with a square wider than any hair leaves next to nothing of a few.
    if count == 3:
      square = np.ones((5, 5), np.uint8)
      thick = [cv2.morphologyEx(c.astype(np.uint8), cv2.MORPH_OPEN, square) for c in changed]
      assert np.mean(thick) < 0.1 * covered[3]
  assert 0.001 < covered[3] < 0.06
  assert 4 * covered[3] < covered[40] < 0.5
  np.testing.assert_array_equal(run("hairs", 0, hairs_count=(0, 0))[0], lesion()[0])


def test_a_ruler_stays_near_one_side():
  pair = lesion(256)
  for seed in range(20):
    image, _ = run("ruler", seed, pair, ruler_inset=(0.05, 0.1))
    rows, columns = np.nonzero((image != pair[0]).any(axis=2))
    place = np.array([rows, columns, 255 - rows, 255 - columns]) / 256
    # From its inset a ruler leans by 0.1 of half the side and its ticks reach in by 0.04.
    assert place.max(axis=1).min() < 0.1 + 0.06 + 0.05
    assert np.all(image.astype(int) <= pair[0])  # darker than this skin, without exception


def test_a_shadow_is_no_deeper_than_allowed_and_leaves_the_other_side_unchanged():
  for seed in range(12):
    fields = {"shadow_depth": (0.4, 0.4), "shadow_softness": (0.05, 0.05)}
    image, _ = run("shadow", seed, **fields)
    ratio = image.astype(float).mean(axis=2) / lesion()[0].mean(axis=2)
    assert ratio.min() > 0.58 and ratio.max() < 1.02
    assert ratio.min() < 0.7 and ratio.max() > 0.97
    smooth = cv2.GaussianBlur(ratio, (0, 0), 2)
    assert np.abs(np.diff(smooth, axis=0)).max() < 0.1  # no edge within a pixel


def test_uneven_light_falls_smoothly_from_full_to_what_is_left():
  for seed in range(12):
    image, _ = run("uneven_light", seed, uneven_light_fall=(0.4, 0.4))
    ratio = cv2.blur(image.astype(float).mean(axis=2) / lesion()[0].mean(axis=2), (5, 5))
    assert 0.57 < ratio.min() < 0.85 and 0.85 < ratio.max() < 1.01
    assert np.abs(np.diff(ratio, axis=0)).max() < 0.03


def test_skin_tone_moves_lightness_both_ways_and_in_order():
  image, _ = lesion()
  tones = [lightness(shift_skin_tone(image, d)) for d in (-0.6, -0.3, 0.0, 0.3, 0.6)]
  assert np.all(np.diff(tones) < -2)
  np.testing.assert_array_equal(shift_skin_tone(image, 0.0), image)
  drawn = [lightness(run("skin_tone", seed)[0]) for seed in range(20)]
  assert min(drawn) < lightness(image) - 5 and max(drawn) > lightness(image) + 2


def test_melanin_absorbs_most_blue_and_least_red_and_never_overexposes():
  image = np.full((4, 4, 3), 200, np.uint8)
  red, green, blue = shift_skin_tone(image, 0.5)[0, 0].astype(float)
  assert red > green > blue
  # Beer and Lambert: the densities stand as those of the pigment.
  np.testing.assert_allclose(
    np.log(200 / np.array([red, green, blue])), 0.5 * np.array([0.55, 1.0, 1.35]), atol=0.01
  )
  every = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
  lighter = shift_skin_tone(every, -0.5).astype(int)
  assert np.all(np.diff(lighter, axis=1) >= 0) and np.all(lighter >= every)
  assert np.all(lighter[0, 0] == 0) and np.all(lighter[0, :240] < 255)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_faint_border_lowers_the_contrast_and_only_there(strength):
  image, mask = lesion()
  contrast = [
    border_contrast(fade_border(image, mask, 0.04, s), mask) for s in (0.0, strength / 2, strength)
  ]
  assert contrast[0] == border_contrast(image, mask)
  assert contrast[2] < contrast[1] < contrast[0]
  assert contrast[2] < (1 - 0.4 * strength) * contrast[0]
  faded = fade_border(image, mask, 0.04, strength)
  away = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) + cv2.distanceTransform(
    mask, cv2.DIST_L2, 5
  )
  far = away > 3 * 0.04 * SIZE + 3
  assert 0.3 < far.mean() < 0.9
  np.testing.assert_array_equal(faded[far], image[far])


def test_a_faint_border_lies_between_both_sides_without_a_line():
  image, mask = lesion()
  faded = fade_border(image, mask, 0.05, 1.0).astype(float)
  smooth = cv2.GaussianBlur(faded, (0, 0), 1)[SIZE // 2, :, 1]
  right = smooth[SIZE // 2 :]
  assert np.all(np.diff(right)[4:-4] > -1.5)  # from lesion to skin it only gets lighter
  steepest = np.abs(np.diff(smooth)).max()
  before = np.abs(np.diff(cv2.GaussianBlur(image.astype(float), (0, 0), 1)[SIZE // 2, :, 1])).max()
  assert steepest < 0.45 * before


@pytest.mark.parametrize("fill", [0, 1])
def test_without_a_border_nothing_fades(fill):
  image, mask = lesion()
  mask[:] = fill
  np.testing.assert_array_equal(fade_border(image, mask, 0.05, 1.0), image)
