"""Generated pictures: repeatable, varied, and with exact masks."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from medlitenet_jax.data import synthetic
from medlitenet_jax.data.synthetic import draw_dermoscopy

SMALL = 48  # pixels; enough where only the scene's layout matters


@pytest.fixture(scope="module")
def pictures():
  """200 small pictures of one seed."""
  return [draw_dermoscopy(3, index, SMALL) for index in range(200)]


@pytest.mark.parametrize("image_size", [32, 75, 192])
def test_shapes_and_values(image_size):
  image, mask = draw_dermoscopy(0, 0, image_size)
  assert image.shape == (image_size, image_size, 3) and image.dtype == np.uint8
  assert mask.shape == (image_size, image_size) and mask.dtype == np.uint8
  assert set(np.unique(mask)) == {0, 1}
  assert len(np.unique(image)) > 50


@pytest.mark.parametrize(("seed", "index", "image_size"), [(0, 0, 31), (-1, 0, 64), (0, -1, 64)])
def test_invalid_arguments_are_refused(seed, index, image_size):
  with pytest.raises(ValueError):
    draw_dermoscopy(seed, index, image_size)


def test_does_not_depend_on_the_global_random_state():
  np.random.seed(1)  # noqa: NPY002
  first = draw_dermoscopy(7, 5, SMALL)
  np.random.seed(2)  # noqa: NPY002
  cv2.setRNGSeed(9)
  second = draw_dermoscopy(7, 5, SMALL)
  np.testing.assert_array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])


def test_every_seed_and_index_gives_another_picture():
  drawn = [draw_dermoscopy(seed, index, SMALL) for seed in range(4) for index in range(4)]
  assert len({image.tobytes() for image, _ in drawn}) == 16  # (1, 2) is not (2, 1) either
  assert len({mask.tobytes() for _, mask in drawn}) == 16


def test_threads_give_the_same_pictures(pictures):
  with ThreadPoolExecutor(8) as pool:
    drawn = list(pool.map(lambda index: draw_dermoscopy(3, index, SMALL), range(64)))
  for (image, mask), (expected_image, expected_mask) in zip(drawn, pictures[:64], strict=True):
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(mask, expected_mask)


def test_mask_is_never_empty_and_never_full(pictures):
  for index in range(200):
    _, smallest_frame_mask = draw_dermoscopy(4, index, 32)
    assert 0 < smallest_frame_mask.sum() < 32 * 32, f"index {index}"
  areas = np.array([mask.mean() for _, mask in pictures])
  assert areas.min() > 0.01 and areas.max() < 0.9


def test_lesions_vary_in_size_place_and_shape(pictures):
  masks = [mask for _, mask in pictures]
  areas = np.array([mask.mean() for mask in masks])
  assert areas.min() < 0.06 and areas.max() > 0.5
  assert 0.15 < np.median(areas) < 0.35
  at_edge = [mask[[0, -1]].any() or mask[:, [0, -1]].any() for mask in masks]
  assert 0.1 < np.mean(at_edge) < 0.5
  centres = np.array([np.argwhere(mask).mean(0) / SMALL for mask in masks])
  assert (centres.min(0) < 0.3).all() and (centres.max(0) > 0.7).all()
  assert np.mean([_solidity(mask) < 0.89 for mask in masks]) > 0.08  # notches and lobes


def _solidity(mask):
  """Fraction of its convex hull that the largest region of the mask fills."""
  contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
  blob = max(contours, key=cv2.contourArea)
  return cv2.contourArea(blob) / cv2.contourArea(cv2.convexHull(blob))


def test_the_scene_is_the_same_at_two_sizes():
  for index in range(40):
    small_image, small_mask = draw_dermoscopy(5, index, 96)
    large_image, large_mask = draw_dermoscopy(5, index, 192)
    halved = cv2.resize(large_mask * 255, (96, 96), interpolation=cv2.INTER_AREA) > 127
    iou = (halved & (small_mask > 0)).sum() / (halved | (small_mask > 0)).sum()
    assert iou > 0.95, f"index {index}: IoU {iou:.3f}"
    halved_image = cv2.resize(large_image, (96, 96), interpolation=cv2.INTER_AREA)
    difference = np.abs(halved_image.astype(int) - small_image).mean()
    assert difference < 6, f"index {index}: {difference:.1f} levels"  # other scenes: about 60


def test_skin_runs_from_light_to_dark(pictures):
  skin = np.array([np.median(image[mask == 0], axis=0) for image, mask in pictures])
  brightness = skin.mean(1)
  low, middle, high = np.percentile(brightness, [5, 50, 95])
  assert low < 90 and 110 < middle < 190 and high > 200
  red, green, blue = skin.T
  assert np.mean((red >= green) & (red >= blue)) > 0.9


def test_lesions_are_visible_and_of_several_hues(pictures):
  skin = np.array([np.median(image[mask == 0], axis=0) for image, mask in pictures])
  lesion = np.array([np.median(image[mask > 0], axis=0) for image, mask in pictures])
  assert np.mean(np.linalg.norm(lesion - skin, axis=1) > 20) > 0.97
  darker = lesion.mean(1) < skin.mean(1)
  assert 0.85 < darker.mean() < 1.0  # and some are lighter than their skin
  swallowed = np.log((skin + 1) / (lesion + 1))[darker].argmax(1)
  red, green, blue = np.bincount(swallowed, minlength=3) / darker.sum()
  assert blue > 0.5  # brown
  assert green > 0.08  # pink and red
  assert red > 0.05  # blue-grey


def test_a_brightness_threshold_misses_many_lesions(pictures):
  dice = []
  for image, mask in pictures:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, dark = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
    dice.append(2 * (dark & mask).sum() / (dark.sum() + mask.sum()))
  assert np.mean(np.array(dice) < 0.7) > 0.1
  assert np.median(dice) > 0.7  # but in most pictures the dark part is the lesion


@pytest.mark.parametrize("layer", ["_add_hairs", "_add_ruler", "_add_bubbles"])
def test_artefacts_are_visible_but_do_not_change_the_mask(layer, monkeypatch, pictures):
  add_layer = getattr(synthetic, layer)
  covered = []

  def without_layer(rng, image):
    with_layer = add_layer(
      rng, image
    )  # drawn in any case, so that later random numbers stay the same
    covered.append(np.mean(np.abs(with_layer - image).max(2) > 10))
    return image

  monkeypatch.setattr(synthetic, layer, without_layer)
  for index, (_, mask) in enumerate(pictures):
    np.testing.assert_array_equal(draw_dermoscopy(3, index, SMALL)[1], mask)
  assert 0.1 < len(covered) / len(pictures) < 0.7  # in some of the pictures
  assert np.median(covered) > 0.002 and np.max(covered) < 0.7


def test_some_pictures_have_black_corners_outside_the_mask(pictures):
  black = [image[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 25 for image, _ in pictures]
  assert 0.05 < np.mean(black) < 0.4
  for (_, mask), corners_are_black in zip(pictures, black, strict=True):
    assert not (corners_are_black and mask[[0, 0, -1, -1], [0, -1, 0, -1]].any())


def test_colour_changes_most_on_the_outline():
  """The mean slope over many pictures, by signed distance from the outline, peaks at 0."""
  bins = np.arange(-8, 9)
  slopes, counts = np.zeros(len(bins)), np.zeros(len(bins))
  for index in range(60):
    image, mask = draw_dermoscopy(6, index, 128)
    grey = cv2.medianBlur(image, 3).astype(np.float32).mean(2)
    slope = np.hypot(cv2.Sobel(grey, -1, 1, 0, scale=0.125), cv2.Sobel(grey, -1, 0, 1, scale=0.125))
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    distance = np.where(mask > 0, inside - 0.5, 0.5 - outside)
    for place, centre in enumerate(bins):
      ring = (np.abs(distance - centre) <= 0.5) & (image.max(2) > 30)
      slopes[place] += slope[ring].sum()
      counts[place] += ring.sum()
  profile = slopes / counts
  assert abs(bins[profile.argmax()]) <= 1, profile.round(1)
  assert profile[8] > 1.5 * max(profile[0], profile[-1]), profile.round(1)
