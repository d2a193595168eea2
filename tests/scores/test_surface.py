"""Boundary scores against their definition, on random blobs, drawn squares and empty masks."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from medlitenet_jax.scores.surface import BOUNDARY_TOLERANCE, SURFACE_SCORES, surface_scores


def by_definition(prediction, truth):
  """The scores with a k-d tree over the coordinates of the border pixels."""
  ours, theirs = (np.argwhere(mask & ~binary_erosion(mask)) for mask in (prediction, truth))
  there, back = cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]
  tolerance = 0.0075 * (truth.shape[0] ** 2 + truth.shape[1] ** 2) ** 0.5
  precision, recall = np.mean(there <= tolerance), np.mean(back <= tolerance)
  return {
    "hd95": np.percentile(np.hstack([there, back]), 95),
    "assd": np.mean(np.hstack([there, back])),
    "boundary_f": 2 * precision * recall / max(precision + recall, 1e-9),
  }


def blob(rng, shape):
  """Smoothed noise above a random level: regions with bays and holes, often on the frame."""
  field = cv2.GaussianBlur(rng.normal(size=shape), (0, 0), rng.uniform(0.5, 12))
  mask = field > np.quantile(field, rng.uniform(0.05, 0.95))
  mask[tuple(rng.integers(0, shape))] = True
  return mask.astype(np.uint8)


def random_pairs(count):
  """Pairs of masks of the same size, half of them similar, half unrelated."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    shape = tuple(rng.integers(1, 250, 2))
    truth = blob(rng, shape)
    shifted = np.roll(truth, rng.integers(-4, 5, 2), (0, 1))
    yield (shifted if rng.random() < 0.5 else blob(rng, shape)), truth


def degenerate_masks(shape=(31, 47)):
  """A pixel inside, a pixel in a corner, two lines, all but one pixel, all, the frame, a grid."""
  masks = np.zeros((8, *shape), np.uint8)
  masks[0, 12, 20] = 1
  masks[1, -1, 0] = 1
  masks[2, 5] = 1
  masks[3, :, -1] = 1
  masks[4] = 1 - masks[0]
  masks[5] = 1
  masks[6] = 1
  masks[6, 1:-1, 1:-1] = 0
  masks[7, ::2, ::2] = 1
  return masks


def square(left, shape=(240, 320), top=60, side=20):
  mask = np.zeros(shape, np.uint8)
  mask[top : top + side, left : left + side] = 1
  return mask


def assert_same(scores, expected, rtol=1e-9):
  assert tuple(scores) == SURFACE_SCORES
  for name in SURFACE_SCORES:
    assert type(scores[name]) is float
    assert scores[name] == pytest.approx(expected[name], rel=rtol, abs=1e-9), name


def test_scores_are_their_definition_on_blobs():
  agreed = []
  for prediction, truth in random_pairs(300):
    scores = surface_scores(prediction, truth)
    expected = by_definition(prediction.astype(bool), truth.astype(bool))
    assert_same(scores, expected, rtol=1e-5)
    agreed.append(scores["boundary_f"])
  between = np.mean([0 < score < 1 for score in agreed])
  assert between > 0.5  # the tolerance made a difference


def test_scores_are_their_definition_on_degenerate_masks():
  masks = degenerate_masks()
  for prediction in masks:
    for truth in masks:
      expected = by_definition(prediction.astype(bool), truth.astype(bool))
      assert_same(surface_scores(prediction, truth), expected, rtol=1e-5)


def test_a_mask_agrees_with_itself():
  for _, mask in random_pairs(20):
    assert surface_scores(mask, mask) == {"hd95": 0.0, "assd": 0.0, "boundary_f": 1.0}


def test_a_shifted_square():
  """A square of side 20 has 76 border pixels; the tolerance of a 240x320 photograph is 3 pixels.

  Shifted by d to the right, its right side lies d away (18 pixels between the corners), its left
  side d or, near a corner, less, and d pixels each of top and bottom lie 1 to d away.
  """
  assert BOUNDARY_TOLERANCE * 400 == 3
  assert_same(
    surface_scores(square(103), square(100)), {"hd95": 3, "assd": 114 / 76, "boundary_f": 1}
  )
  assert_same(
    surface_scores(square(104), square(100)), {"hd95": 4, "assd": 152 / 76, "boundary_f": 44 / 76}
  )


def test_distance_between_two_single_pixels():
  prediction, truth = np.zeros((2, 700, 900), np.uint8)
  prediction[30, 50] = truth[630, 850] = 1
  assert_same(surface_scores(prediction, truth), {"hd95": 1000, "assd": 1000, "boundary_f": 0})


def test_the_frame_is_border():
  """The border of a full mask consists of exactly the pixels on the frame."""
  full = np.ones((9, 9), np.uint8)
  hollow, centre = full.copy(), np.zeros((9, 9), np.uint8)
  hollow[1:-1, 1:-1] = 0
  centre[4, 4] = 1
  assert surface_scores(full, hollow)["hd95"] == 0
  distances = [np.hypot(y - 4, x - 4) for y, x in np.argwhere(hollow)]
  expected = np.mean([*distances, 4])  # the centre is four pixels from the frame
  assert surface_scores(full, centre)["assd"] == pytest.approx(expected, rel=1e-6)


def test_scores_are_symmetric():
  for prediction, truth in random_pairs(40):
    assert_same(surface_scores(truth, prediction), surface_scores(prediction, truth))


def test_flips_and_transposition_change_nothing():
  for prediction, truth in random_pairs(40):
    scores = surface_scores(prediction, truth)
    for turn in (np.fliplr, np.flipud, np.transpose):
      assert_same(surface_scores(turn(prediction), turn(truth)), scores, rtol=1e-6)


def test_background_around_both_changes_no_distance():
  """It does raise the tolerance of boundary_f, which is a fraction of the diagonal."""
  for pair in random_pairs(40):
    scores = surface_scores(*pair)
    padded = surface_scores(*(np.pad(mask, ((3, 0), (40, 25))) for mask in pair))
    for name in ("hd95", "assd"):
      assert padded[name] == pytest.approx(scores[name], rel=1e-6)
    assert padded["boundary_f"] >= scores["boundary_f"] - 1e-9


def test_empty_masks():
  empty, some = np.zeros((2, 40, 30), np.uint8)
  some[10:20, 5:9] = 1
  assert surface_scores(empty, empty) == {"hd95": 0.0, "assd": 0.0, "boundary_f": 1.0}
  for pair in ((some, empty), (empty, some)):
    scores = surface_scores(*pair)
    assert tuple(scores) == SURFACE_SCORES
    assert np.isnan(scores["hd95"]) and np.isnan(scores["assd"]) and scores["boundary_f"] == 0


def test_the_masks_are_not_modified():
  for pair in random_pairs(5):
    before = [mask.copy() for mask in pair]
    surface_scores(*pair)
    np.testing.assert_array_equal(pair[0], before[0])
    np.testing.assert_array_equal(pair[1], before[1])


@pytest.mark.parametrize(
  "wrong",
  [
    np.ones((4, 5), np.uint8),
    np.ones((4, 4), bool),
    np.ones((4, 4), np.float32),
    np.full((4, 4), 255, np.uint8),
    np.ones((4, 4, 1), np.uint8),
  ],
  ids=lambda mask: f"{mask.dtype}-{mask.shape}-{mask.max()}",
)
def test_other_masks_are_refused(wrong):
  right = np.ones((4, 4), np.uint8)
  error = ValueError if wrong.max() > 1 else AssertionError
  for pair in ((wrong, right), (right, wrong)):
    with pytest.raises(error, match=r"must be 0 and 1|assert_(rank|type|equal_shape) failed"):
      surface_scores(*pair)
