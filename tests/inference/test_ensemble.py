"""Joining maps: means by weight, clones that change nothing, and what is uncertain about them."""

import itertools

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.inference.ensemble import join_maps, performance_weights
from medlitenet_jax.scores.confidence import entropy_bits, expected_dice


def stack(seed, views=6, size=16):
  return jnp.asarray(np.random.default_rng(seed).random((views, 2, size, size)), jnp.float32)


def test_an_ensemble_of_clones_is_itself():
  one = join_maps([stack(0)], [1.0])
  three = join_maps([stack(0)] * 3, [0.2, 0.5, 0.3])
  np.testing.assert_allclose(three.probs, one.probs, atol=1e-6)
  np.testing.assert_allclose(three.disagreement, one.disagreement, atol=1e-6)


def test_one_network_that_looks_once_does_not_disagree():
  maps = join_maps([stack(0, views=1)], [1.0])
  np.testing.assert_array_equal(maps.probs, stack(0, views=1)[0])
  assert not np.asarray(maps.disagreement).any()


def test_mean_and_deviation_are_weighted():
  stacks, weights = [stack(0, 6), stack(1, 1)], [0.3, 0.7]
  every = np.concatenate([np.asarray(s, np.float64) for s in stacks])
  shares = np.array([0.3 / 6] * 6 + [0.7])[:, None, None, None]
  mean = (shares * every).sum(axis=0)
  deviation = np.sqrt((shares * (every - mean) ** 2).sum(axis=0))
  maps = join_maps(stacks, weights)
  np.testing.assert_allclose(maps.probs, mean, atol=1e-6)
  np.testing.assert_allclose(maps.disagreement, deviation, atol=1e-6)


def test_the_lowest_likeness_counts_of_those_that_know_it():
  stacks, weights = [stack(0)] * 3, [0.2, 0.5, 0.3]
  one, other = jnp.array([0.2, 0.9]), jnp.array([0.6, 0.5])
  maps = join_maps(stacks, weights, [one, other])
  np.testing.assert_allclose(maps.likeness, [0.2, 0.5])
  np.testing.assert_array_equal(maps.probs, join_maps(stacks, weights).probs)
  assert join_maps(stacks, weights).likeness is None
  with pytest.raises(AssertionError):
    join_maps(stacks, weights, [one[:1], other])


def test_boundaries_are_averaged_over_those_that_have_one():
  one, other = np.full((2, 16, 16), 0.2), np.full((2, 8, 8), 0.6)
  maps = join_maps([stack(0)] * 3, [0.2, 0.5, 0.3], boundary=[one, other])
  np.testing.assert_allclose(maps.boundary, np.full((2, 16, 16), 0.4), atol=1e-6)
  assert join_maps([stack(0)], [1.0]).boundary is None


def test_smaller_maps_are_enlarged_in_place():
  """A member of half the size has its probabilities where the photograph has them."""
  ramp = (np.arange(32) + 0.5) / 32
  large = jnp.asarray(np.tile(ramp, (1, 1, 32, 1)), jnp.float32)
  small = jnp.asarray(np.tile(ramp.reshape(16, 2).mean(1), (1, 1, 16, 1)), jnp.float32)
  maps = join_maps([large, small], [0.5, 0.5])
  assert maps.probs.shape == (1, 32, 32)
  np.testing.assert_allclose(maps.probs[0, :, 1:-1], large[0, 0, :, 1:-1], atol=1e-6)


class EveryVariant(chex.TestCase):
  """The same maps inside a compiled function and outside one."""

  @chex.variants(with_jit=True, without_jit=True)
  def test_maps_are_joined_alike(self):
    stacks, weights = [stack(0, 6), stack(1, 1, size=8)], [0.3, 0.7]
    maps = self.variant(lambda *stacks: join_maps(stacks, weights))(*stacks)
    chex.assert_shape(maps[:2], (2, 16, 16))
    chex.assert_type(maps[:2], jnp.float32)
    for found, expected in zip(maps[:2], join_maps(stacks, weights)[:2], strict=True):
      np.testing.assert_allclose(found, expected, atol=1e-6)


def test_other_shapes_are_refused():
  for stacks, weights in (
    ([stack(0)], [0.5, 0.5]),
    ([stack(0)[0]], [1.0]),
    ([stack(0)[..., :8]], [1.0]),
    ([stack(0), stack(0)[:, :1]], [0.5, 0.5]),
  ):
    with pytest.raises(AssertionError):
      join_maps(stacks, weights)


def test_weights_follow_the_dice():
  np.testing.assert_allclose(performance_weights([0.8, 0.4]), [2 / 3, 1 / 3])
  assert performance_weights([0.9] * 3).sum() == pytest.approx(1)
  for bad in ([], [0.9, 0.0], [0.5, float("nan")]):
    with pytest.raises(ValueError, match="positive"):
      performance_weights(bad)


def test_entropy_is_that_of_a_coin():
  p = np.array([0, 0.5, 1, 0.11], np.float32)
  np.testing.assert_allclose(entropy_bits(p), [0, 1, 0, 0.49992], atol=1e-4)
  assert entropy_bits(p).dtype == np.float32


def test_expected_dice_is_near_the_mean_over_masks_drawn_from_the_probabilities():
  rng = np.random.default_rng(0)
  probs = np.clip(rng.normal(0.5, 0.4, (40, 40)), 0, 1)
  mask = (probs >= 0.5).astype(np.uint8)
  drawn = rng.random((300, 40, 40)) < probs
  dice = 2 * (drawn & (mask == 1)).sum((1, 2)) / (drawn.sum((1, 2)) + mask.sum())
  assert expected_dice(probs.astype(np.float32), mask) == pytest.approx(dice.mean(), abs=0.005)


def test_expected_dice_at_its_ends():
  ones, none = np.ones((4, 4), np.float32), np.zeros((4, 4), np.uint8)
  assert expected_dice(ones, none + 1) == 1
  assert expected_dice(ones, none) == 0
  assert expected_dice(ones * 0, none) == 1


def test_expected_dice_of_every_small_case_lies_within_its_range():
  for values in itertools.product((0.0, 0.3, 1.0), repeat=4):
    probs = np.array(values, np.float32).reshape(2, 2)
    assert 0 <= expected_dice(probs, (probs >= 0.5).astype(np.uint8)) <= 1
