"""Likeness: the distance of Mahalanobis, what is usual, and what is rare."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from medlitenet_jax.scores.likeness import FEWEST, PRIOR, RARE, fit_likeness, likeness_of

SIZE = 12
MIX = np.random.default_rng(1).normal(size=(SIZE, SIZE)) * 10.0 ** np.linspace(-1, 2, SIZE)


def draw(seed, count):
  """Features that depend on each other, of spreads from 0.1 to 100 and not around zero."""
  return 50 + np.random.default_rng(seed).normal(size=(count, SIZE)) @ MIX


@pytest.fixture(scope="module")
def fitted():
  return fit_likeness(draw(2, 3000))


def test_it_is_the_usual_distance_of_mahalanobis_over_that_of_the_photograph(fitted):
  features = draw(2, 3000)
  spread = features.std(0)
  correlation = (3000 * np.corrcoef(features.T) + PRIOR * np.eye(SIZE)) / (3000 + PRIOR)
  inverse = np.linalg.inv(correlation * np.outer(spread, spread))
  fresh = np.concatenate([draw(3, 40), 50 + 4 * (draw(4, 40) - 50)])
  distances = [mahalanobis(row, features.mean(0), inverse) / np.sqrt(SIZE) for row in fresh]
  expected = np.minimum(1, float(fitted.usual) / np.array(distances))
  for found in (likeness_of(fresh, fitted), jax.jit(likeness_of)(fresh, fitted)):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3)
  assert 0 < expected.min() < 0.5


def test_what_is_usual_and_what_is_rare_hold_for_photographs_that_the_fit_has_not_seen(fitted):
  likeness = np.asarray(likeness_of(draw(5, 40_000), fitted))
  assert np.mean(likeness == 1) == pytest.approx(0.5, abs=0.03)
  assert np.mean(likeness < fitted.bound) == pytest.approx(RARE, abs=0.6 * RARE)


def test_a_small_fit_does_not_take_what_it_has_not_seen_for_unlike():
  small = fit_likeness(draw(6, FEWEST))
  likeness = np.asarray(likeness_of(draw(7, 20_000), small))
  assert np.mean(likeness < small.bound) < 0.03


def test_what_is_far_in_any_direction_lies_under_the_bound(fitted):
  whole, one = draw(8, 50), draw(8, 50)
  one[:, 3] += 40 * draw(2, 3000)[:, 3].std()
  for far in (50 + 5 * (whole - 50), one, np.zeros((1, SIZE)), np.full((1, SIZE), 1e6)):
    assert (np.asarray(likeness_of(far, fitted)) < fitted.bound).all()


def test_what_cannot_be_fitted_or_scored_is_refused(fitted):
  with pytest.raises(ValueError, match=f"features of {FEWEST} photographs, not {FEWEST - 1}"):
    fit_likeness(draw(0, FEWEST - 1))
  broken = draw(0, FEWEST)
  broken[3, 2] = np.nan
  with pytest.raises(ValueError, match="finite"):
    fit_likeness(broken)
  with pytest.raises(AssertionError):
    fit_likeness(draw(0, FEWEST)[0])
  with pytest.raises(AssertionError):
    likeness_of(draw(0, 4)[:, 1:], fitted)


def test_a_feature_that_never_changes_does_no_harm():
  features = draw(9, 400)
  features[:, 5] = 7
  found = likeness_of(features, fit_likeness(features))
  assert np.isfinite(found).all() and np.mean(np.asarray(found) == 1) > 0.4
