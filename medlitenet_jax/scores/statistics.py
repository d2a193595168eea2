"""Statistics over cases: intervals of means, paired tests, correlation and calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import numpy as np
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE_LEVEL = 0.95


def summarise(
  cases: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Mean, standard deviation and bootstrap interval of columns over cases.

  The interval is a percentile bootstrap over cases (Efron 1979): 10,000 resamples, seed 0.

  Args:
    cases: one mapping per case with at least these columns; nan where a value is undefined.
    names: names of the columns.

  Returns:
    {name: {"mean", "std", "ci95": [low, high]}}, over the cases with a value. "std" is the
    deviation of the cases (divided by N), not of the mean. All three are None if no case has a
    value; "ci95" is None for fewer than two. If values are undefined, "undefined" is their number.
  """
  columns = {name: np.array([case[name] for case in cases], np.float64) for name in names}
  complete = [name for name, column in columns.items() if np.isfinite(column).all()]
  # Columns without gaps are resampled together, which costs as much as one column.
  groups = [complete] * bool(complete) + [[name] for name in names if name not in complete]
  result: dict[str, dict[str, Any]] = {}
  for group in groups:
    table = np.stack([columns[name] for name in group])
    table = table[:, np.isfinite(table[0])]
    for name, row, interval in zip(group, table, _intervals(table), strict=True):
      result[name] = {
        "mean": float(row.mean()) if row.size else None,
        "std": float(row.std()) if row.size else None,
        "ci95": interval,
      }
      if row.size < len(cases):
        result[name]["undefined"] = len(cases) - row.size
  return {name: result[name] for name in names}


def _intervals(table: np.ndarray) -> list[list[float] | None]:
  """Bootstrap interval of the mean of each row of a [K, N] table; None each if N < 2."""
  if table.shape[1] < 2:
    return [None] * len(table)
  found = stats.bootstrap(
    (table,),
    np.mean,
    n_resamples=RESAMPLES,
    batch=1000,
    axis=1,
    confidence_level=CONFIDENCE_LEVEL,
    method="percentile",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return [[float(low), float(high)] for low, high in zip(found.low, found.high, strict=True)]


def paired_difference(
  first: np.ndarray, second: np.ndarray, *, lower_is_better: bool = False
) -> dict[str, Any]:
  """Compares two evaluations of the same cases.

  Args:
    first: [N] score of each case in the first evaluation, N at least 1.
    second: [N] scores of the same cases, in the same order, in the second evaluation.
    lower_is_better: whether the score measures an error, as distances do.

  Returns:
    "difference": mean of second - first; "ci95": its bootstrap interval over cases;
    "p_value": of the two-sided Wilcoxon signed-rank test (Wilcoxon 1945), 1 if no case differs;
    "better", "equal" and "worse": number of cases where the second evaluation is that.

  Raises:
    AssertionError: if the shapes are not these.
    ValueError: if there is no case.
  """
  chex.assert_rank([first, second], 1)
  chex.assert_equal_shape([first, second])
  if not first.size:
    raise ValueError("at least one case is needed to compare two evaluations")
  difference = second - first
  p_value = float(stats.wilcoxon(difference).pvalue) if np.any(difference) else 1.0
  gain = -difference if lower_is_better else difference
  return {
    "difference": float(difference.mean()),
    "ci95": _intervals(difference[None])[0],
    "p_value": p_value,
    "better": int(np.sum(gain > 0)),
    "equal": int(np.sum(gain == 0)),
    "worse": int(np.sum(gain < 0)),
  }


def spread(table: np.ndarray) -> dict[str, float | None]:
  """Mean of a score over repeated runs, and its standard deviations, with N - 1 in the denominator.

  Args:
    table: [S, F] score of each run, by seed and fold; both at least 1.

  Returns:
    "mean" over all runs; "std_seeds" of the S means over folds, "std_folds" of the F means over
    seeds, "std_runs" of all S * F; None where there is one value only.
  """
  chex.assert_rank(table, 2)
  values = {"seeds": table.mean(1), "folds": table.mean(0), "runs": table.ravel()}
  return {
    "mean": float(table.mean()),
    **{f"std_{n}": float(v.std(ddof=1)) if v.size > 1 else None for n, v in values.items()},
  }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
  """Spearman's rank correlation.

  Args:
    first: N numbers.
    second: N numbers.

  Returns:
    In [-1, 1]; None if N is under 3 or one of the two is constant.
  """
  if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
    return None
  return float(stats.spearmanr(first, second).statistic)


def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusts p-values for multiple testing (Holm 1979).

  Args:
    p_values: one per test, in [0, 1].

  Returns:
    Adjusted p-values in the same order. Rejecting those under 0.05 makes any false rejection in at
    most 5 % of families of tests.
  """
  order = np.argsort(p_values)
  scaled = [p_values[i] * (len(p_values) - rank) for rank, i in enumerate(order)]
  adjusted = np.empty(len(p_values))
  adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
  return [float(p) for p in adjusted]


class Calibration:
  """Compares predicted probabilities with observed frequencies, in bins of pixels.

  Attributes:
    bins: number of bins of equal width over [0, 1].
  """

  def __init__(self, bins: int = 15):
    """Starts without pixels."""
    self.bins = bins
    self._pixels = np.zeros(bins, np.int64)
    self._predicted = np.zeros(bins)
    self._observed = np.zeros(bins)

  def add(self, probs: np.ndarray, truth: np.ndarray) -> None:
    """Counts the pixels of a case.

    Args:
      probs: [S, S] in [0, 1].
      truth: [S, S], 0 or 1.
    """
    chex.assert_equal_shape([probs, truth])
    bin_of = np.minimum((probs.ravel() * self.bins).astype(np.int64), self.bins - 1)
    self._pixels += np.bincount(bin_of, minlength=self.bins)
    self._predicted += np.bincount(bin_of, probs.ravel(), self.bins)
    self._observed += np.bincount(bin_of, truth.ravel(), self.bins)

  def sums(self) -> list[list[int] | list[float]]:
    """The running sums, for `add_sums` of another process."""
    return [sums.tolist() for sums in (self._pixels, self._predicted, self._observed)]

  def add_sums(self, sums: Sequence[Sequence[float]]) -> None:
    """Adds the `sums` of other cases."""
    for own, other in zip((self._pixels, self._predicted, self._observed), sums, strict=True):
      own += np.asarray(other, own.dtype)

  def summary(self) -> dict[str, Any]:
    """Mean prediction and observed frequency of each bin, and the expected calibration error.

    Returns:
      "bins": the non-empty bins; "expected_calibration_error": mean absolute difference of
      prediction and frequency over bins, weighted by pixels (Naeini et al. 2015).
    """
    filled = self._pixels > 0
    pixels, edges = self._pixels[filled], np.flatnonzero(filled) / self.bins
    predicted, observed = self._predicted[filled] / pixels, self._observed[filled] / pixels
    rows = zip(edges, pixels, predicted, observed, strict=True)
    return {
      "bins": [
        {
          "from": float(edge),
          "to": float(edge + 1 / self.bins),
          "pixels": int(count),
          "predicted": float(p),
          "observed": float(o),
        }
        for edge, count, p, o in rows
      ],
      "expected_calibration_error": float(
        np.sum(pixels * np.abs(predicted - observed)) / max(1, int(pixels.sum()))
      ),
    }
