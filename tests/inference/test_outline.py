"""Outlines of photographs: one definition for predict, Python and the page."""

import cv2
import numpy as np
import pytest
from small_runs import draw_case

from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.inference.ensemble import Maps
from medlitenet_jax.inference.networks import Network
from medlitenet_jax.inference.outline import mask_rule, outline, outline_of_maps
from medlitenet_jax.scores.confidence import entropy_bits, expected_dice
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.scores.measure import measure_lesion


def darkness(size, weight=1.0):
  """A network of no parameters: the darker a pixel, the surer it is lesion."""

  def probs(image):
    return 1 - np.asarray(image).mean(axis=-1, dtype=np.float32) / np.float32(255)

  return Network(probs, size, weight=weight)


def test_a_dark_spot_is_outlined_at_the_photographs_own_size():
  photograph, truth = draw_case(1, 130, 210)
  found = outline(photograph, [darkness(64)], MaskRule(), 0.1)
  assert found.mask.shape == truth.shape and found.mask.dtype == np.uint8
  assert 2 * (found.mask & truth).sum() / (found.mask.sum() + truth.sum()) > 0.97
  assert found.probs.shape == found.disagreement.shape == found.entropy.shape == (64, 64)
  assert not found.disagreement.any()
  np.testing.assert_array_equal(found.entropy, entropy_bits(found.probs))
  assert found.measurements == measure_lesion(found.mask, 0.1)
  small = (found.probs >= 0.5).astype(np.uint8)
  assert found.confidence == expected_dice(found.probs, small)


def test_the_rule_makes_the_mask():
  photograph, _ = draw_case(2, 80, 90)
  areas = [
    outline(photograph, [darkness(64)], MaskRule(threshold)).measurements["area_px"]
    for threshold in (0.01, 0.5, 0.99)
  ]
  assert areas[0] > areas[1] > areas[2] == 0


def test_networks_of_several_sizes_and_six_views_are_joined():
  photograph, _ = draw_case(3, 80, 90)
  found = outline(photograph, [darkness(64, 0.5), darkness(32, 0.5)], MaskRule(), tta="six")
  alone = outline(photograph, [darkness(64)], MaskRule())
  assert found.probs.shape == (64, 64) and found.disagreement.max() > 0
  np.testing.assert_allclose(found.probs.mean(), alone.probs.mean(), atol=0.01)


def test_networks_see_the_cleaned_photograph():
  photograph, _ = draw_case(4, 64, 64)
  cleaning = Preprocessing(color_constancy="shades_of_grey")
  found = outline(photograph, [darkness(64)], MaskRule(), preprocessing=cleaning)
  expected = outline(cleaning(photograph), [darkness(64)], MaskRule())
  np.testing.assert_array_equal(found.probs, expected.probs)
  assert np.any(found.probs != outline(photograph, [darkness(64)], MaskRule()).probs)


def test_maps_that_are_already_computed_give_the_same():
  photograph, _ = draw_case(5, 120, 70)
  rule = MaskRule(0.4, 0.2, ("fill_holes",))
  found = outline(photograph, [darkness(64)], rule, 0.5)
  again = outline_of_maps(Maps(found.probs, found.disagreement, 0.5), 120, 70, rule, 0.5)
  np.testing.assert_array_equal(again.mask, found.mask)
  assert again.measurements == found.measurements and again.confidence == found.confidence
  assert found.likeness is None and again.likeness == 0.5
  enlarged = cv2.resize(found.probs, (70, 120), interpolation=cv2.INTER_LINEAR)
  assert again.mask[enlarged >= 0.4].all()


@pytest.mark.parametrize(
  ("photograph", "scale", "error"),
  [
    (np.zeros((8, 8), np.uint8), None, AssertionError),
    (np.zeros((8, 8, 4), np.uint8), None, AssertionError),
    (np.zeros((8, 8, 3), np.float32), None, AssertionError),
    (np.zeros((8, 8, 3), np.uint8), 0.0, ValueError),
  ],
)
def test_what_is_no_photograph_or_no_scale_is_refused(photograph, scale, error):
  with pytest.raises(error):
    outline(photograph, [darkness(64)], MaskRule(), scale)


def test_maps_of_different_shapes_are_refused():
  with pytest.raises(AssertionError):
    outline_of_maps(Maps(np.zeros((8, 8)), np.zeros((4, 4))), 10, 10, MaskRule())


def test_the_rule_of_a_configuration():
  from small_runs import resolved

  evaluation = resolved(eval__hysteresis_low=0.2, eval__postprocess=("fill_holes",)).eval
  assert mask_rule(evaluation, 0.4) == MaskRule(0.4, 0.2, ("fill_holes",))
