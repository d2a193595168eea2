"""Counts and scores against their definitions, on random masks and on empty and full ones."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from medlitenet_jax.scores.metrics import (
  SCORES,
  Confusion,
  confusion_counts,
  confusion_of_masks,
  pooled_scores,
  scores_from_counts,
)


def scores_of_sets(prediction, truth):
  """The scores of one case as ratios of sets of pixels; 0 / 0 is 1."""
  found, lesion = (set(np.flatnonzero(mask)) for mask in (prediction, truth))
  skin, rest = set(range(truth.size)) - lesion, set(range(truth.size)) - found

  def share(part, whole):
    return part / whole if whole else 1.0

  iou = share(len(found & lesion), len(found | lesion))
  return {
    "dice": share(2 * len(found & lesion), len(found) + len(lesion)),
    "iou": iou,
    "accuracy": (len(found & lesion) + len(rest & skin)) / truth.size,
    "sensitivity": share(len(found & lesion), len(lesion)),
    "specificity": share(len(rest & skin), len(skin)),
    "threshold_jaccard": iou if iou >= 0.65 else 0.0,
  }


def random_masks(count=1000, height=7, width=9):
  """Predictions and truths from equal to opposite; the first eight rows are degenerate."""
  rng = np.random.default_rng(0)
  truth = rng.uniform(size=(count, height, width)) < rng.uniform(size=(count, 1, 1))
  flipped = rng.uniform(size=truth.shape) < rng.uniform(size=(count, 1, 1)) ** 2
  prediction = truth ^ flipped
  degenerate = [(0, 0), (0, None), (None, 0), (1, 1), (1, 0), (0, 1), (1, None), (None, 1)]
  for row, (found, lesion) in enumerate(degenerate):
    if found is not None:
      prediction[row] = found
    if lesion is not None:
      truth[row] = lesion
  return prediction, truth


def as_batch(prediction, truth):
  return 4.0 * prediction[..., None] - 2, truth[..., None].astype(np.float32)


def test_scores_of_degenerate_cases():
  """Rows: both empty, empty prediction, empty truth, both full, all wrong either way."""
  prediction, truth = random_masks(8)
  rows = [
    scores_from_counts(confusion_of_masks(*pair)) for pair in zip(prediction, truth, strict=True)
  ]
  both_empty, missed, invented, both_full, all_found, none_found = rows[:6]
  for case in (both_empty, both_full):
    assert {float(score) for score in case.values()} == {1.0}
  assert missed["dice"] == missed["sensitivity"] == 0 and missed["specificity"] == 1
  assert invented["dice"] == invented["iou"] == 0 and invented["sensitivity"] == 1
  assert all_found["specificity"] == 0 and all_found["sensitivity"] == 1
  assert none_found["sensitivity"] == 0 and none_found["accuracy"] == 0


class ConfusionCountsTest(chex.TestCase, parameterized.TestCase):
  """`confusion_counts`, compiled and not."""

  @chex.variants(with_jit=True, without_jit=True)
  def test_scores_are_their_definitions(self):
    prediction, truth = random_masks()
    logits, mask = as_batch(prediction, truth)
    counts = self.variant(confusion_counts)(logits, mask, jnp.ones(len(mask)))
    scores = scores_from_counts(Confusion(*map(np.asarray, counts)))
    expected = [scores_of_sets(*pair) for pair in zip(prediction, truth, strict=True)]
    assert set(scores) == set(SCORES) == set(expected[0])
    for name in SCORES:
      assert scores[name].dtype == np.float64
      column = np.array([case[name] for case in expected])
      np.testing.assert_allclose(scores[name], column, rtol=1e-12, err_msg=name)
    kept = scores["threshold_jaccard"] > 0
    assert 100 < kept.sum() < 900  # cases on both sides of the threshold

  @chex.variants(with_jit=True, without_jit=True)
  def test_counts_on_the_device_equal_those_of_the_masks(self):
    prediction, truth = random_masks(50)
    counts = self.variant(confusion_counts)(*as_batch(prediction, truth), jnp.ones(50))
    for row in range(50):
      one = confusion_of_masks(prediction[row].astype(np.uint8), truth[row].astype(np.uint8))
      assert tuple(int(column[row]) for column in counts) == tuple(int(count) for count in one)
      assert sum(one) == truth[row].size

  @chex.variants(with_jit=True, without_jit=True)
  def test_padding_rows_count_nothing(self):
    count = self.variant(confusion_counts)
    logits, mask = as_batch(*random_masks(8))
    valid = np.array([1, 0, 1, 1, 0, 0, 1, 0])
    all_valid = count(logits, mask, np.ones(8))
    for flags in (valid, valid.astype(bool), valid.astype(np.float32)):
      counts = count(logits, mask, flags)
      for masked, full in zip(counts, all_valid, strict=True):
        assert masked.dtype == jnp.float32
        np.testing.assert_array_equal(masked, np.where(valid, full, 0))

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters("float16", "bfloat16", "float32")
  def test_counts_are_exact_beyond_float16(self, dtype):
    logits = jnp.ones((1, 301, 301, 1), dtype)
    mask = jnp.ones_like(logits).at[0, 0, 0].set(0)
    counts = self.variant(confusion_counts)(logits, mask, jnp.ones(1, dtype))
    assert [float(count[0]) for count in counts] == [301 * 301 - 1, 1, 0, 0]

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
    ((2, 4, 4), (2, 4, 4), (2,)),
    ((2, 4, 4, 1), (2, 4, 4), (2,)),
    ((2, 4, 4, 1), (1, 4, 4, 1), (2,)),
    ((2, 4, 4, 1), (2, 4, 4, 1), (1,)),
    ((2, 4, 4, 1), (2, 4, 4, 1), (2, 1)),
  )
  def test_shapes_that_would_broadcast_are_refused(self, logits, mask, valid):
    with pytest.raises(AssertionError, match="assert_shape"):
      self.variant(confusion_counts)(jnp.zeros(logits), jnp.zeros(mask), jnp.ones(valid))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, bool])
def test_masks_of_any_dtype_give_the_same_counts(dtype):
  prediction, truth = (masks[-1] for masks in random_masks(9))
  prediction[:3], truth[1:4] = 1, 1
  expected = tuple(map(int, confusion_of_masks(prediction, truth)))
  other = np.asarray(prediction, dtype), np.asarray(truth, dtype)
  assert tuple(map(int, confusion_of_masks(*other))) == expected
  assert tuple(map(int, confusion_of_masks(other[0], truth))) == expected


def test_a_mask_value_of_one_half_is_skin():
  logits = jnp.ones((1, 2, 2, 1))
  mask = jnp.array([0.0, 0.5, 0.51, 1.0]).reshape(logits.shape)
  assert [float(n[0]) for n in confusion_counts(logits, mask, jnp.ones(1))] == [2, 2, 0, 0]


def test_nothing_is_divided_by_zero():
  with np.errstate(all="raise"):
    scores = scores_from_counts(Confusion(*np.zeros((4, 3))))
  assert all((score == 1).all() for score in scores.values())


def test_threshold_is_a_probability_and_inclusive():
  probs = np.array([0.1, 0.29, 0.31, 0.5, 0.69, 0.71, 0.9])
  logits = np.log(probs / (1 - probs)).astype(np.float32).reshape(1, 1, -1, 1)
  mask = np.ones_like(logits)
  for threshold, found in {0.3: 5, 0.5: 4, 0.7: 2}.items():
    assert confusion_counts(logits, mask, np.ones(1), threshold=threshold).tp[0] == found
  zero = np.zeros((1, 1, 1, 1), np.float32)
  assert confusion_counts(zero, zero + 1, np.ones(1)).tp[0] == 1
  assert confusion_counts(np.nextafter(zero, -1), zero + 1, np.ones(1)).fn[0] == 1


@pytest.mark.parametrize(
  ("tp", "fp", "score"), [(65, 35, 0.65), (649, 351, 0.0), (651, 349, 0.651), (13, 7, 0.65)]
)
def test_threshold_jaccard_just_under_and_over_the_threshold(tp, fp, score):
  scores = scores_from_counts(Confusion(tp, fp, 0, 1000))
  assert scores["threshold_jaccard"] == score
  assert scores["iou"] == tp / (tp + fp)


def test_dice_follows_from_iou():
  """Eq. 14, which holds for each case but not for means."""
  scores = scores_from_counts(Confusion(*np.random.default_rng(0).integers(1, 99, (4, 200))))
  np.testing.assert_allclose(scores["dice"], 2 * scores["iou"] / (scores["iou"] + 1), rtol=1e-12)


@pytest.mark.parametrize("prefix", ["", "network_"])
def test_pooled_scores_are_those_of_one_large_photograph(prefix):
  pairs = list(zip(*random_masks(20), strict=True))
  counts = [confusion_of_masks(*pair)._asdict() for pair in pairs]
  cases = [{prefix + name: int(n) for name, n in case.items()} for case in counts]
  whole = confusion_of_masks(*(np.concatenate(masks) for masks in zip(*pairs, strict=True)))
  expected = {name: float(score) for name, score in scores_from_counts(whole).items()}
  assert pooled_scores(cases, prefix) == expected
  if not prefix:
    assert pooled_scores(cases) == expected


def test_masks_of_other_shapes_are_refused():
  with pytest.raises(AssertionError, match="assert_equal_shape"):
    confusion_of_masks(np.zeros((4, 4)), np.zeros((1, 4)))
