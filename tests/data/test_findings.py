"""What most masks of a set have in common is found; real oddities of a few are not refused."""

import numpy as np
import pytest

from medlitenet_jax.data.cases import Case
from medlitenet_jax.data.findings import find_in_masks, find_small_splits, look_at
from medlitenet_jax.data.images import mask_fit
from medlitenet_jax.data.synthetic import draw_dermoscopy

PAIRS = [draw_dermoscopy(0, number, 96) for number in range(40)]


def inverted(mask):
  return 1 - mask


def upper_left_quarter(mask):
  return np.pad(mask[::2, ::2], ((0, 48), (0, 48)))


def looks(change=lambda mask: mask, changed=40, split="train", shift=0):
  """Of the drawings; the masks of the first `changed` are changed."""
  cases = [
    Case(i, f"case_{i}", image, change(mask) if i < changed else mask)
    for i, image, mask in zip(
      range(len(PAIRS)),
      [image for image, _ in PAIRS],
      [PAIRS[(i + shift) % len(PAIRS)][1] for i in range(len(PAIRS))],
      strict=True,
    )
  ]
  return [look_at(case, split) for case in cases]


def found(looks):
  return {(problem.kind, problem.split, problem.stops_training) for problem in find_in_masks(looks)}


@pytest.mark.parametrize(
  ("kind", "change"),
  [
    ("inverted_masks", inverted),
    ("blank_masks", np.zeros_like),
    ("blank_masks", np.ones_like),
    ("turned_masks", np.fliplr),
    ("turned_masks", np.transpose),
    ("wrong_scale", upper_left_quarter),
  ],
)
def test_what_is_wrong_with_most_masks_stops_training(kind, change):
  assert found(looks()) == set()
  assert found(looks(change)) == {(kind, "", True)}
  assert found(looks(change)[:20]) == {(kind, "", True)}  # a small set will do


def test_masks_of_other_photographs():
  assert found(looks(shift=1)) == {("foreign_masks", "", True)}
  assert found(looks(shift=1)[:9]) == set()  # too few to tell


def test_some_inverted_masks_are_a_warning_with_names_and_one_is_none():
  (problem,) = find_in_masks(looks(inverted, changed=8))
  assert (problem.kind, problem.stops_training) == ("inverted_masks", False)
  assert "8 of 40 masks" in problem.what and "case_0, case_1, case_2, ..." in problem.what
  assert found(looks(inverted, changed=1)) == set()


@pytest.mark.parametrize(("split", "stops"), [("val", True), ("test", False)])
def test_a_split_of_its_own_is_judged_too(split, stops):
  whole = looks() * 3
  odd = [*whole, *looks(np.zeros_like, split=split)[:10]]
  assert found(odd) == {("blank_masks", split, stops)}
  assert found([*whole, *odd[-9:]]) == set()


def test_a_split_that_is_inverted_stops_though_the_set_is_only_warned_of():
  """As in the sample of a training, which holds more cases of train than of val."""
  odd = [*looks()[:28], *looks(inverted, split="val")[:12]]
  assert found(odd) == {("inverted_masks", "val", True)}


def test_fit_is_the_same_for_the_inverse_and_equal_masks_tie():
  images, masks = (
    np.stack(part) for part in zip(*(mask_fit.reduced(*pair) for pair in PAIRS), strict=True)
  )
  share = mask_fit.better_than_others(images, masks)
  assert share.mean() > 0.85 and ((share >= 0) & (share <= 1)).all()
  np.testing.assert_allclose(mask_fit.better_than_others(images, 255 - masks), share, atol=0.02)
  same = np.broadcast_to(masks[:1], masks.shape)
  np.testing.assert_allclose(mask_fit.better_than_others(images, same), 0.5)


def test_small_splits_are_warned_of():
  found = find_small_splits({"train": 8, "val": 1, "test": 10, "other": 0})
  assert [(p.kind, p.split, p.stops_training) for p in found] == [
    ("small_split", "train", False),
    ("small_split", "val", False),
  ]
  assert "only 8 photographs in train" in found[0].what
  assert "only 1 photograph in val" in found[1].what and "--mode=repeat" in found[1].what
