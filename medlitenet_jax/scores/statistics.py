"""How sure a mean is, whether two differ, and whether one figure foretells another."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE_LEVEL = 0.95


def summarise(
  cases: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Mean, standard deviation and bootstrap interval of columns over cases.

  The interval is the percentile bootstrap's over cases (Efron 1979): 10,000 resamples, seed 0.

  Args:
    cases: one mapping a case with at least these names; nan where a figure is undefined.
    names: of the columns.

  Returns:
    {name: {"mean", "std", "ci95": [low, high]}}, over the cases where the figure is defined; std
    is that of the cases themselves (divided by their number); None for each figure that no case
    defines, and for the interval of fewer than two cases. A column with undefined figures has
    their number as "undefined".
  """
  columns = {name: np.array([case[name] for case in cases], np.float64) for name in names}
  whole = [name for name, column in columns.items() if np.isfinite(column).all()]
  # Columns without gaps are resampled together, which costs what one of them does.
  groups = [whole] * bool(whole) + [[name] for name in names if name not in whole]
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
  """Bootstrap intervals of the means of the rows of a [K, N] table."""
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
    first: [N] a score of each case.
    second: [N] the same of the other evaluation, in the same order.
    lower_is_better: whether the score is one of error, as distances are.

  Returns:
    "difference": mean of second - first; "ci95": its bootstrap interval over cases;
    "p_value": of the two-sided Wilcoxon signed-rank test (Wilcoxon 1945), 1 where no case differs;
    "better", "equal" and "worse": cases where the second is so.

  Raises:
    ValueError: if the shapes differ or there is no case.
  """
  if first.shape != second.shape or not first.size:
    raise ValueError(f"two scores of the same cases are needed, not {first.shape}, {second.shape}")
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


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
  """Spearman's rank correlation; None where one of the two is constant or under three cases.

  Args:
    first: N figures.
    second: N others.

  Returns:
    In [-1, 1], or None.
  """
  if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
    return None
  return float(stats.spearmanr(first, second).statistic)


def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusts p-values of several tests for their number (Holm 1979), in the order given.

  Args:
    p_values: of each test, in [0, 1].

  Returns:
    Adjusted ones; calling those under 0.05 different errs in one family of tests of 20.
  """
  order = np.argsort(p_values)
  scaled = [p_values[i] * (len(p_values) - rank) for rank, i in enumerate(order)]
  adjusted = np.empty(len(p_values))
  adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
  return [float(p) for p in adjusted]


class Calibration:
  """Whether pixels called lesion with a probability are lesion that often.

  Attributes:
    bins: number of bins of equal width.
  """

  def __init__(self, bins: int = 15):
    """Starts with no pixel."""
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
    place = np.minimum((probs.ravel() * self.bins).astype(np.int64), self.bins - 1)
    self._pixels += np.bincount(place, minlength=self.bins)
    self._predicted += np.bincount(place, probs.ravel(), self.bins)
    self._observed += np.bincount(place, truth.ravel(), self.bins)

  def sums(self) -> list[list[int] | list[float]]:
    """What `add` has added up, to be brought together with that of other cases."""
    return [sums.tolist() for sums in (self._pixels, self._predicted, self._observed)]

  def add_sums(self, sums: Sequence[Sequence[float]]) -> None:
    """Counts the pixels of other cases, by their `sums`."""
    for own, other in zip((self._pixels, self._predicted, self._observed), sums, strict=True):
      own += np.asarray(other, own.dtype)

  def summary(self) -> dict[str, Any]:
    """Mean prediction and observed share of each bin, and the expected calibration error.

    Returns:
      "bins": those with a pixel; "expected_calibration_error": mean distance of the two, weighted
      by pixels (Naeini et al. 2015).
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
