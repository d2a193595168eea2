"""Each clean-up step against what it says of regions, on drawn and on random masks."""

import numpy as np
import pytest

from medlitenet_jax.scores.masks import (
  STEPS,
  MaskRule,
  drop_specks,
  fill_holes,
  keep_largest,
  lesion_mask,
)


def drawn(rows):
  return np.array([[int(c == "#") for c in row] for row in rows.split()], np.uint8)


def regions(mask, neighbours):
  """The regions of ones as sets of pixels, found by walking from pixel to pixel."""
  steps = [(0, 1), (0, -1), (1, 0), (-1, 0)]
  if neighbours == 8:
    steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)]
  left, found = set(map(tuple, np.argwhere(mask))), []
  while left:
    region, edge = set(), {left.pop()}
    while edge:
      region |= edge
      edge = {(y + dy, x + dx) for y, x in edge for dy, dx in steps} & left
      left -= edge
    found.append(region)
  return found


def random_masks(count=60):
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 14, (count, 2))
  return [(rng.random(size) < rng.random()).astype(np.uint8) for size in sizes]


def test_a_hole_is_filled_and_a_bay_is_not():
  before = drawn("####### #.....# #.###.# #.#.#.. #.###.# #.....# #######")
  after = drawn("####### #.....# #.###.# #.###.. #.###.# #.....# #######")
  np.testing.assert_array_equal(fill_holes(before), after)


def test_skin_that_touches_across_a_corner_is_a_hole():
  np.testing.assert_array_equal(fill_holes(drawn("###. #.## ####")), drawn("###. #### ####"))


def test_filling_leaves_no_skin_inside():
  for mask in random_masks():
    after = fill_holes(mask)
    assert (after >= mask).all()
    height, width = mask.shape
    for region in regions(1 - after, 4):
      assert any(y in (0, height - 1) or x in (0, width - 1) for y, x in region)
    filled = set(map(tuple, np.argwhere(after != mask)))
    assert filled == set().union(
      *(
        region
        for region in regions(1 - mask, 4)
        if not any(y in (0, height - 1) or x in (0, width - 1) for y, x in region)
      )
    )


def test_the_largest_region_is_kept_whole_and_alone():
  for mask in random_masks():
    before, after = regions(mask, 8), regions(keep_largest(mask), 8)
    if not before:
      assert not after
    else:
      assert len(after) == 1 and after[0] in before
      assert len(after[0]) == max(map(len, before))


def test_specks_go_and_the_rest_stays():
  mask = np.zeros((100, 200), np.uint8)  # 20 pixels are the limit
  mask[10:14, 10:15] = 1
  mask[50, 50:69] = 1
  mask[-1, -1] = 1
  after = drop_specks(mask)
  assert after[10:14, 10:15].all() and after.sum() == 20


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_stay_as_they_are(name, value):
  mask = np.full((40, 30), value, np.uint8)
  after = STEPS[name](mask)
  assert after.dtype == np.uint8
  np.testing.assert_array_equal(after, mask)


@pytest.mark.parametrize("name", STEPS)
def test_doing_it_twice_changes_nothing_more_and_the_input_is_left_alone(name):
  for mask in random_masks():
    copy = mask.copy()
    once = STEPS[name](mask)
    np.testing.assert_array_equal(STEPS[name](once), once)
    np.testing.assert_array_equal(mask, copy)
    assert set(np.unique(once)) <= {0, 1}


def test_steps_are_applied_in_the_order_given():
  # A ring of 12 pixels that becomes 16 when filled, beside a block of 14.
  mask = drawn("####.##### #..#.##### #..#.####. ####......")
  assert mask.sum() == 12 + 14
  probs = mask.astype(np.float32)

  def last(*steps):
    return MaskRule(steps=steps).mask(probs, *mask.shape)

  assert last("fill_holes", "keep_largest").sum() == 16
  assert last("keep_largest", "fill_holes").sum() == 14
  np.testing.assert_array_equal(last(), mask)


def test_hysteresis_keeps_what_is_joined_to_something_sure():
  for seed in range(30):
    probs = np.random.default_rng(seed).random((14, 14), np.float32)
    mask = lesion_mask(probs, 0.9, 0.5)
    kept = [region for region in regions(probs >= 0.5, 8) if max(probs[p] for p in region) >= 0.9]
    expected = np.zeros_like(mask)
    for place in (place for region in kept for place in region):
      expected[place] = 1
    np.testing.assert_array_equal(mask, expected)


def test_one_threshold_is_hysteresis_without_a_second():
  probs = np.random.default_rng(0).random((20, 20), np.float32)
  plain = (probs >= 0.7).astype(np.uint8)
  np.testing.assert_array_equal(lesion_mask(probs, 0.7), plain)
  np.testing.assert_array_equal(lesion_mask(probs, 0.7, 0.7), plain)
  assert not lesion_mask(probs * 0.6, 0.7, 0.3).any()


def test_stages_are_named_and_each_works_on_the_one_before():
  probs = np.random.default_rng(1).random((24, 24), np.float32)
  rule = MaskRule(0.8, 0.4, ("fill_holes", "keep_largest"))
  stages = rule.stages(probs, 24, 24)
  assert list(stages) == [
    "threshold 0.5",
    "threshold 0.8",
    "hysteresis down to 0.4",
    "fill_holes",
    "keep_largest",
  ]
  np.testing.assert_array_equal(stages["threshold 0.5"], probs >= 0.5)
  np.testing.assert_array_equal(stages["threshold 0.8"], probs >= 0.8)
  np.testing.assert_array_equal(stages["hysteresis down to 0.4"], lesion_mask(probs, 0.8, 0.4))
  filled = fill_holes(stages["hysteresis down to 0.4"])
  np.testing.assert_array_equal(stages["fill_holes"], filled)
  np.testing.assert_array_equal(stages["keep_largest"], keep_largest(filled))
  assert list(MaskRule().stages(probs, 24, 24)) == ["threshold 0.5"]


@pytest.mark.parametrize("threshold", [0.5, 0.8])
@pytest.mark.parametrize("low", [0.0, 0.3])
@pytest.mark.parametrize("steps", [(), ("keep_largest", "fill_holes")])
def test_the_mask_is_the_last_of_the_stages(threshold, low, steps):
  rule = MaskRule(threshold, low, steps)
  for seed in range(5):
    probs = np.random.default_rng(seed).random((16, 16), np.float32)
    for size in ((16, 16), (31, 50)):
      mask = rule.mask(probs, *size)
      assert mask.shape == size and mask.dtype == np.uint8
      np.testing.assert_array_equal(mask, list(rule.stages(probs, *size).values())[-1])


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    ({"threshold": 0.0}, "threshold is 0.0"),
    ({"threshold": 1.5}, "threshold is 1.5"),
    ({"threshold": float("nan")}, "threshold is nan"),
    ({"low": 0.5}, "low is 0.5"),
    ({"low": -0.1}, "low is -0.1"),
    ({"steps": ("polish",)}, "'polish' is not one of the steps fill_holes"),
  ],
)
def test_a_rule_that_describes_no_mask_is_refused(settings, says):
  with pytest.raises(ValueError, match=says):
    MaskRule(**settings)


def test_a_batch_is_no_map():
  with pytest.raises(AssertionError):
    MaskRule().mask(np.zeros((1, 8, 8), np.float32), 8, 8)


def test_threshold_is_taken_at_the_size_of_the_photograph():
  probs = np.zeros((64, 64), np.float32)
  probs[:, 32:] = 1
  mask = MaskRule(0.5).mask(probs, 100, 301)
  assert mask.shape == (100, 301) and mask.dtype == np.uint8
  np.testing.assert_array_equal(mask, np.repeat(mask[:1], 100, axis=0))
  assert mask[0, :150].sum() == 0 and mask[0, 151:].sum() == 150
  ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
  fine = MaskRule(0.3).mask(ramp, 64, 640)
  assert fine[0].sum() == pytest.approx(640 * 0.7, abs=6)
  assert MaskRule(0.5).mask(np.full((64, 64), 0.5, np.float32), 70, 80).all()
