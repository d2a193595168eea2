"""Means, intervals, tests and calibration against their definitions."""

import numpy as np
import pytest

from medlitenet_jax.scores.statistics import (
  Calibration,
  holm,
  paired_difference,
  rank_correlation,
  summarise,
)


def rows_of(**columns):
  return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_mean_and_deviation_are_those_of_the_cases():
  rng = np.random.default_rng(0)
  a, b = rng.random(40), rng.normal(3, 2, 40)
  summary = summarise(rows_of(a=a, b=b), ("b", "a"))
  assert list(summary) == ["b", "a"]
  for name, column in (("a", a), ("b", b)):
    assert summary[name]["mean"] == pytest.approx(column.mean(), abs=1e-12)
    assert summary[name]["std"] == pytest.approx(column.std(), abs=1e-12)
    assert "undefined" not in summary[name]


def test_interval_is_that_of_resampled_means():
  values = np.random.default_rng(1).gamma(2.0, size=80)
  low, high = summarise(rows_of(x=values), ("x",))["x"]["ci95"]
  resampled = np.random.default_rng(2).choice(values, (20_000, 80)).mean(axis=1)
  assert [low, high] == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.02)
  assert [low, high] == summarise(rows_of(x=values), ("x",))["x"]["ci95"]  # repeatable


def test_interval_covers_the_mean_as_often_as_it_says():
  rng = np.random.default_rng(3)
  samples = rng.normal(0, 1, (60, 50))
  rows = [dict(enumerate(column)) for column in samples.T]  # each name is a sample of 50 cases
  summary = summarise(rows, range(60))
  covered = sum(s["ci95"][0] <= 0 <= s["ci95"][1] for s in summary.values())
  assert 50 <= covered <= 60


def test_undefined_values_are_left_out_and_counted():
  summary = summarise(rows_of(x=[1.0, np.nan, 3.0], y=[np.nan] * 3, z=[1.0, 1, 4]), "xyz")
  assert summary["x"]["mean"] == 2 and summary["x"]["undefined"] == 1
  assert summary["y"] == {"mean": None, "std": None, "ci95": None, "undefined": 3}
  assert summary["z"]["mean"] == 2 and "undefined" not in summary["z"]


def test_one_case_has_no_interval():
  assert summarise([{"x": 0.5}], ("x",)) == {"x": {"mean": 0.5, "std": 0.0, "ci95": None}}


def test_equal_cases_have_an_interval_of_zero_width():
  assert summarise(rows_of(x=[0.5] * 9), ("x",))["x"]["ci95"] == [0.5, 0.5]


def test_paired_difference_uses_the_pairing():
  """A small gain on every case is significant; the same scores shuffled are not."""
  rng = np.random.default_rng(4)
  first = rng.random(60)
  gain = paired_difference(first, first + 0.01 + 0.001 * rng.random(60))
  assert gain["p_value"] < 1e-9 and gain["better"] == 60 and gain["worse"] == 0
  assert 0.01 < gain["ci95"][0] < gain["difference"] < gain["ci95"][1] < 0.011
  noise = paired_difference(first, rng.permutation(first))
  assert noise["p_value"] > 0.05 and noise["ci95"][0] < 0 < noise["ci95"][1]


def test_paired_difference_of_the_same():
  same = paired_difference(np.ones(5), np.ones(5))
  assert same["p_value"] == 1 and same["difference"] == 0 and same["equal"] == 5
  with pytest.raises(AssertionError, match="assert_equal_shape"):
    paired_difference(np.ones(5), np.ones(4))
  with pytest.raises(ValueError, match="at least one case"):
    paired_difference(np.ones(0), np.ones(0))


def test_a_distance_is_better_where_it_is_lower():
  first, second = np.array([20.0, 30, 25, 40]), np.array([10.0, 15, 25, 50])
  found = paired_difference(first, second, lower_is_better=True)
  assert (found["better"], found["equal"], found["worse"]) == (2, 1, 1)
  plain = paired_difference(first, second)
  assert (plain["better"], plain["worse"]) == (1, 2)
  assert found["difference"] == plain["difference"] == -3.75


def test_paired_difference_changes_sign_with_the_order():
  a, b = np.random.default_rng(5).random((2, 30))
  there, back = paired_difference(a, b), paired_difference(b, a)
  assert there["difference"] == -back["difference"] and there["p_value"] == back["p_value"]
  assert (there["better"], there["worse"]) == (back["worse"], back["better"])


def test_holm_by_hand():
  assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
  assert holm([0.5, 0.9]) == [1, 1]
  assert holm([]) == []


def test_rank_correlation():
  x = np.arange(20.0)
  assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
  assert rank_correlation(x, -(x**3)) == pytest.approx(-1)
  assert rank_correlation(x, np.ones(20)) is None
  assert rank_correlation([1.0, 2.0], [2.0, 1.0]) is None


def test_calibration_of_correct_probabilities():
  rng = np.random.default_rng(6)
  probs = rng.random((300, 300), np.float32)
  calibration = Calibration()
  calibration.add(probs, (rng.random(probs.shape) < probs).astype(np.uint8))
  summary = calibration.summary()
  assert sum(b["pixels"] for b in summary["bins"]) == probs.size
  for b in summary["bins"]:
    assert b["from"] <= b["predicted"] <= b["to"]
    assert b["observed"] == pytest.approx(b["predicted"], abs=0.03)
  assert summary["expected_calibration_error"] < 0.01


def test_calibration_error_is_the_distance_from_the_truth():
  calibration = Calibration()
  calibration.add(np.full((10, 10), 0.9, np.float32), np.zeros((10, 10), np.uint8))
  calibration.add(np.full((10, 20), 0.3, np.float32), np.ones((10, 20), np.uint8))
  error = calibration.summary()["expected_calibration_error"]
  assert error == pytest.approx((100 * 0.9 + 200 * 0.7) / 300, abs=1e-6)
  calibration.add(np.ones((2, 2), np.float32), np.ones((2, 2), np.uint8))  # 1.0 is in the last bin
  assert calibration.summary()["bins"][-1]["pixels"] == 4
