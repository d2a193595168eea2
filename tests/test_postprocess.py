"""Each clean-up step against what it says of regions, on drawn and on random masks."""

import numpy as np
import pytest

from medlitenet_jax.postprocess import STEPS, drop_specks, fill_holes, keep_largest, postprocess


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
  after = postprocess(mask, (name,))
  assert after.dtype == np.uint8
  np.testing.assert_array_equal(after, mask)


@pytest.mark.parametrize("name", STEPS)
def test_doing_it_twice_changes_nothing_more_and_the_input_is_left_alone(name):
  for mask in random_masks():
    copy = mask.copy()
    once = postprocess(mask, (name,))
    np.testing.assert_array_equal(postprocess(once, (name,)), once)
    np.testing.assert_array_equal(mask, copy)
    assert set(np.unique(once)) <= {0, 1}


def test_steps_are_applied_in_the_order_given():
  # A ring of 12 pixels that becomes 16 when filled, beside a block of 14.
  mask = drawn("####.##### #..#.##### #..#.####. ####......")
  assert mask.sum() == 12 + 14
  assert postprocess(mask, ("fill_holes", "keep_largest")).sum() == 16
  assert postprocess(mask, ("keep_largest", "fill_holes")).sum() == 14
  np.testing.assert_array_equal(postprocess(mask, ()), mask)
