"""Resized masks stay binary and aligned with their photographs."""

import cv2
import numpy as np
import pytest

from medlitenet_jax.data.images.resize import binarise, mask_coverage, resize_image, resize_mask

SIZES = [(64, 64), (50, 90), (300, 40), (257, 333)]


def ellipse(height, width):
  """A lesion off the centre, and a picture in which only the lesion is bright."""
  center, axes = (int(0.4 * width), int(0.55 * height)), (width // 5, height // 4)
  mask = cv2.ellipse(np.zeros((height, width), np.uint8), center, axes, 20, 0, 360, 1, -1)
  return np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), mask


@pytest.mark.parametrize("size", SIZES)
def test_mask_is_binary_and_aligned_with_its_photograph(size):
  image, mask = ellipse(180, 240)
  small, resized = resize_image(image, *size), resize_mask(mask, *size)
  assert small.shape == (*size, 3) and resized.shape == size
  assert resized.dtype == np.uint8 and set(np.unique(resized)) == {0, 1}
  np.testing.assert_array_equal(resized, small[..., 0] >= 128)


@pytest.mark.parametrize("size", SIZES)
def test_area_and_centre_are_kept(size):
  _, mask = ellipse(180, 240)
  resized = resize_mask(mask, *size)
  assert resized.mean() == pytest.approx(mask.mean(), rel=0.03)
  for axis in (0, 1):
    old, new = ((np.nonzero(m)[axis].mean() + 0.5) / m.shape[axis] for m in (mask, resized))
    assert new == pytest.approx(old, abs=0.5 / size[axis])


def test_mask_values_255_and_1_are_alike():
  _, mask = ellipse(100, 120)
  np.testing.assert_array_equal(resize_mask(mask, 64, 64), resize_mask(mask * 255, 64, 64))


def test_same_size_changes_nothing():
  image, mask = ellipse(64, 96)
  np.testing.assert_array_equal(resize_image(image, 64, 96), image)
  np.testing.assert_array_equal(resize_mask(mask, 64, 96), mask)


def test_shrinking_averages_instead_of_picking_pixels():
  stripes = np.zeros((128, 128, 3), np.uint8)
  stripes[:, ::2] = 255
  assert np.all(np.abs(resize_image(stripes, 32, 32).astype(int) - 128) <= 1)
  assert np.all(np.abs(resize_image(stripes, 200, 32).astype(int) - 128) <= 1)


def test_half_covered_is_lesion():
  mask = np.array([[1, 0, 0, 0], [1, 0, 1, 0]], np.uint8)
  coverage = mask_coverage(mask, 1, 2)
  np.testing.assert_array_equal(coverage, [[128, 64]])
  np.testing.assert_array_equal(binarise(coverage), [[1, 0]])


@pytest.mark.parametrize(
  "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))]
)
def test_other_arrays_are_refused_as_photographs(image):
  with pytest.raises(ValueError, match="uint8"):
    resize_image(image, 4, 4)


@pytest.mark.parametrize("mask", [np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8))])
def test_other_arrays_are_refused_as_masks(mask):
  with pytest.raises(ValueError, match="uint8"):
    resize_mask(mask, 4, 4)
