"""Charts for a page: transparent, in black and two colours, for light and dark pages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

BLUE, ORANGE = "#3b8ec9", "#cf7216"
BINS = 20


def _chart(x: str, y: str) -> tuple[Figure, Axes]:
  figure = Figure(figsize=(4.2, 2.9), layout="constrained")
  axes = figure.subplots()
  axes.set(xlabel=x, ylabel=y)
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(color="black", alpha=0.12, linewidth=0.8)
  axes.set_axisbelow(True)
  return figure, axes


def _dots(x: np.ndarray, dice: np.ndarray, label: str) -> tuple[Figure, Axes]:
  figure, axes = _chart(label, "Dice")
  axes.plot(x, dice, "o", color=BLUE, alpha=0.6, markersize=4, markeredgewidth=0)
  # Most cases are near 1; an axis down to 0 would squeeze them together.
  axes.set_ylim(np.floor(10 * np.min(dice, initial=0.9)) / 10 - 0.02, 1.02)
  return figure, axes


def histogram(values: np.ndarray, label: str, end: float) -> Figure:
  """Draws the distribution of a score over cases, with mean and median.

  Args:
    values: [N] finite, 0 to end; N may be 0.
    label: label of the score.
    end: end of the axis.

  Returns:
    The chart.
  """
  figure, axes = _chart(label, "cases")
  axes.hist(values, np.linspace(0, end, BINS + 1).tolist(), color=BLUE, alpha=0.75)
  axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
  if values.size:
    axes.axvline(values.mean(), color="black", linewidth=1.3, label="mean")
    axes.axvline(np.median(values), color="black", linewidth=1.3, linestyle="--", label="median")
    axes.legend(frameon=False)
  return figure


def dice_by_difficulty(
  x: np.ndarray, dice: np.ndarray, label: str, means: Sequence[tuple[float, float, float]]
) -> Figure:
  """Draws the Dice of each case against a measure of difficulty, and the mean of each tercile.

  Args:
    x: [N] measure of difficulty, nan if unknown.
    dice: [N], 0 to 1.
    label: label of x.
    means: (from, to, mean Dice) of each tercile.

  Returns:
    The chart.
  """
  figure, axes = _dots(x, dice, label)
  for start, end, mean in means:
    axes.hlines(mean, start, end, colors=ORANGE, linewidth=2.5)
  return figure


def dice_by_confidence(confidence: np.ndarray, dice: np.ndarray, below: float) -> Figure:
  """Draws the Dice of each case against the expected Dice, which is its confidence.

  Args:
    confidence: [N], 0 to 1, nan if unknown.
    dice: [N], 0 to 1.
    below: cases with a lower confidence need review.

  Returns:
    The chart; its axis starts at the lowest confidence.
  """
  figure, axes = _dots(confidence, dice, "confidence")
  axes.axline((1, 1), slope=1, color="black", linewidth=1, linestyle=":", label="as expected")
  axes.axvline(below, color=ORANGE, linewidth=1.5, label="review below")
  axes.set_xlim(confidence[np.isfinite(confidence)].min(initial=below) - 0.02, 1.02)
  axes.legend(frameon=False)
  return figure


def labelled_points(
  x: Sequence[float], y: Sequence[float], names: Sequence[str], x_label: str, y_label: str
) -> Figure:
  """Draws named points, with a logarithmic axis across.

  Args:
    x: N positive numbers.
    y: N numbers.
    names: of the points; the first one stands out.
    x_label: label of x.
    y_label: label of y.

  Returns:
    The chart.
  """
  figure, axes = _chart(x_label, y_label)
  axes.set_xscale("log")
  axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter("{x:g}")
  axes.xaxis.set_minor_formatter(NullFormatter())
  colors = [ORANGE, *[BLUE] * (len(names) - 1)]
  axes.scatter(x, y, c=colors, s=22)
  for name, across, up in zip(names, x, y, strict=True):
    axes.annotate(name, (across, up), (4, 3), textcoords="offset points", fontsize=7)
  axes.margins(x=0.3, y=0.12)
  return figure


def reliability(predicted: Sequence[float], observed: Sequence[float]) -> Figure:
  """Draws a reliability diagram: observed frequency of lesion against predicted probability.

  Args:
    predicted: mean probability of each bin.
    observed: fraction of each bin's pixels that are lesion.

  Returns:
    The chart.
  """
  figure, axes = _chart("mean probability of the pixels", "share that is lesion")
  axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":", label="perfect")
  axes.plot(predicted, observed, "o-", color=BLUE, markersize=4, label="network")
  axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
  axes.legend(frameon=False)
  return figure


def training_curve(rows: Sequence[Mapping[str, Any]], name: str, label: str) -> Figure | None:
  """Draws a metric of training and validation over epochs.

  Args:
    rows: rows of `metrics.jsonl`.
    name: name of the metric; rows without it are left out.
    label: label of the metric.

  Returns:
    The chart, or None if no row has the metric.
  """
  known = [row for row in rows if row.get(name) is not None]
  figure, axes = _chart("epoch", label)
  for split, color in (("train", BLUE), ("val", ORANGE)):
    x, y = ([row[key] for row in known if row["split"] == split] for key in ("epoch", name))
    if x:
      marker = "." if len(x) < 50 else ""
      axes.plot(x, y, color=color, linewidth=1.4, marker=marker, label=split)
  if not axes.lines:
    return None
  axes.legend(frameon=False)
  return figure
