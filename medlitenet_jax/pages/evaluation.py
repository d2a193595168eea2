"""The page of an evaluation, `report.html`, made from `summary.json` and `cases.csv`."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medlitenet_jax.pages import charts
from medlitenet_jax.pages.cases import PageCase, case_groups, case_names
from medlitenet_jax.pages.html import EMPTY, Html, html_table, join, number, page, svg, tag
from medlitenet_jax.scores.surface import BOUNDARY_TOLERANCE
from medlitenet_jax.system.files import replace_file

LABELS = {
  "dice": "Dice",
  "iou": "IoU",
  "accuracy": "Accuracy",
  "sensitivity": "Sensitivity",
  "specificity": "Specificity",
  "threshold_jaccard": "Threshold Jaccard",
  "hd95": "HD95 (px)",
  "assd": "ASSD (px)",
  "boundary_f": "Boundary F",
}
PIXEL_SCORES = ("hd95", "assd")  # in pixels
COUNTED = tuple(LABELS)[:6]  # computed from pixel counts, so they can be pooled
HEADLINES = ("dice", "iou", "sensitivity", "specificity", "hd95", "boundary_f")
DIFFICULTIES = {  # {column of `cases.csv`: (label, factor that the values are multiplied by)}
  "lesion_fraction": ("Lesion, % of the photograph", 100),
  "contrast": ("Contrast, CIELAB", 1),
}
TIMES = "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}"
TERMS = {
  "TP, FP, FN, TN": "numbers of pixels of a case: lesion found, skin called lesion, lesion missed, "
  "skin called skin. A ratio with a denominator of 0 is 1.",
  "Dice": "2 TP / (2 TP + FP + FN).",
  "IoU": "TP / (TP + FP + FN), also called Jaccard index.",
  "Accuracy": "(TP + TN) / all pixels.",
  "Sensitivity": "TP / (TP + FN), the share of the lesion that was found.",
  "Specificity": "TN / (TN + FP), the share of the skin that was called skin.",
  "Threshold Jaccard": "IoU of a case, or 0 where it is under 0.65.",
  "HD95": "95th percentile of the distances from each border pixel of either mask to the nearest "
  "one of the other, in pixels of the photograph. Undefined where one mask is empty.",
  "ASSD": "mean of the same distances, in pixels of the photograph. Undefined where one mask is "
  "empty.",
  "Boundary F": "harmonic mean of the share of the predicted border that is near the true one "
  f"and the share the other way round; near is {100 * BOUNDARY_TOLERANCE:g} % of the photograph's "
  "diagonal.",
  "Mean ± standard deviation": "over cases; the deviation is that of the cases, not of the mean.",
  "95 % interval": "of the mean, by resampling the cases. It shows how much the mean depends on "
  "the choice of cases, and says nothing about photographs from other sources.",
  "Third": "a third of the cases, sorted by the quantity that heads the table.",
  "Contrast": "distance of the mean colours on the two sides of the true border in CIELAB; about 2 "
  "is just visible, black against white is 100.",
  "Calibration": "whether pixels with a given predicted probability are lesion that often. The "
  "expected calibration error is the mean difference of the two, weighted by pixels.",
  "Confidence": "the Dice to expect of the network's mask if its probabilities are right; it needs "
  "no truth.",
  "Uncertainty": "entropy of a pixel's probability: 0 bit where the network is sure, 1 bit where "
  "it gives lesion and skin the same probability.",
}


def write_page(
  path: Path,
  summary: Mapping[str, Any],
  rows: Sequence[Mapping[str, Any]],
  groups: Mapping[str, Sequence[PageCase]],
  curves: Sequence[Mapping[str, Any]],
) -> None:
  """Writes the page of an evaluation.

  Args:
    path: path of the file; its folder must exist.
    summary: content of `summary.json`.
    rows: rows of `cases.csv`; nan or None where a value is undefined.
    groups: cases to show, by title; a case may be in several.
    curves: rows of the run's `metrics.jsonl`; may be empty.
  """
  protocol = summary["protocol"]
  cases, anchors = case_groups(groups)
  sections = {
    "Scores": _scores(summary),
    "Distribution over cases": _spread(rows),
    "Size of the lesion, and contrast": _difficulty(summary["terciles"], rows),
    "Effect of each step": _steps(summary["steps"]),
    "Other ways of scoring": _other_ways(summary),
    "Calibration": _calibration(summary["calibration"]),
    "Confidence": _confidence(summary, rows, anchors),
    "Cases": join(tag("p", "Lowest Dice first:"), case_names(summary["worst"], anchors), cases),
    "Training": _training(curves),
    "Protocol": html_table(("Field", "Value"), [(_words(k), _cell(protocol[k])) for k in protocol]),
    "What the figures mean": tag(
      "dl", *(tag("div", tag("dt", t), tag("dd", TERMS[t])) for t in TERMS), class_="terms"
    ),
  }
  slugs = {title: title.lower().replace(",", "").replace(" ", "-") for title in sections}
  shown = {title: content for title, content in sections.items() if content}
  links = (tag("li", tag("a", title, href=f"#{slugs[title]}")) for title in shown)
  written = (
    tag("section", tag("h2", title), content, id=slugs[title]) for title, content in shown.items()
  )
  body = join(
    _header(summary, tag("nav", tag("ul", *links), aria_label="Sections")),
    tag("main", _headlines(summary), *written),
  )
  title = f"{protocol.get('model')} on {protocol.get('split')}: evaluation"
  replace_file(Path(path), page(title, body))


def _header(summary, nav: Html) -> Html:
  protocol, cases = summary["protocol"], summary["cases"]
  model, variant, split, digest = (
    protocol.get(name) for name in ("model", "variant", "split", "split_hash")
  )
  return tag(
    "header",
    tag("h1", f"Evaluation of {model} on {split}"),
    tag("p", f"Model {model} ({variant}), split {split}, {_counted(cases, 'case')}, hash {digest}"),
    tag("p", "This is research software, not a medical device.", class_="note"),
    nav,
  )


def _counted(count: int, noun: str) -> str:
  return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _words(name: str) -> str:
  return str(name).replace("_", " ")


def _number(value: float | None, score: str) -> str:
  return number(value, 1 if score in PIXEL_SCORES else 3)


def _mean(figures, score: str) -> str:
  mean = _number(figures["mean"], score)
  return mean if mean == EMPTY else f"{mean} ± {_number(figures['std'], score)}"


def _interval(figures, score: str) -> str:
  ends = [_number(end, score) for end in figures.get("ci95") or ()]
  return " to ".join(ends) if ends and EMPTY not in ends else EMPTY


def _score_cell(figures, score: str) -> Html:
  """Mean, deviation, interval and number of undefined cases, in one cell."""
  notes = [interval for interval in [_interval(figures, score)] if interval != EMPTY]
  if figures.get("undefined"):
    notes.append(f"{figures['undefined']} undefined")
  return join(Html(_mean(figures, score)), *(tag("small", note) for note in notes))


def _headlines(summary) -> Html:
  figures = {**summary, **summary["boundary"]}
  tiles = (
    tag(
      "div",
      tag("dt", LABELS[score]),
      tag("dd", _number(figures[score]["mean"], score), class_="value"),
      tag("dd", tag("small", _interval(figures[score], score))),
    )
    for score in HEADLINES
  )
  return join(
    tag("dl", *tiles, class_="tiles"),
    tag("p", tag("small", "Mean over cases, and the 95 % interval of this mean.")),
  )


def _scores(summary) -> Html:
  figures = {**summary, **summary["boundary"]}

  def line(score):
    found = figures[score]
    undefined = found.get("undefined", 0)
    cases = f"{summary['cases'] - undefined}" + (f" ({undefined} undefined)" if undefined else "")
    return LABELS[score], _mean(found, score), _interval(found, score), cases

  columns = ("Score", "Mean ± standard deviation", "95 % interval of the mean", "Cases")
  return html_table(columns, map(line, LABELS))


def _column(rows, name: str) -> np.ndarray:
  return np.array([math.nan if row.get(name) is None else row[name] for row in rows], np.float64)


def _captioned(figure: Figure, alt: str, caption: str) -> Html:
  return tag("figure", svg(figure, alt), tag("figcaption", caption))


def _spread(rows) -> Html:
  return tag(
    "div", *(_histogram(rows, score) for score in ("dice", "iou", "hd95")), class_="charts"
  )


def _histogram(rows, score: str) -> Html:
  label, column = LABELS[score], _column(rows, score)
  values = column[np.isfinite(column)]
  end = max(1.0, values.max(initial=0)) if score in PIXEL_SCORES else 1.0
  caption = f"{label}: undefined in all cases"
  if values.size:
    mean, median = (_number(middle(values), score) for middle in (np.mean, np.median))
    caption = f"{label}: mean {mean}, median {median}"
    if values.size < len(rows):
      caption += f"; undefined in {_counted(len(rows) - values.size, 'case')}"
  chart = charts.histogram(values, label, end)
  return _captioned(chart, f"Histogram of {label} over cases", caption)


def _difficulty(terciles, rows) -> Html:
  parts = []
  for name, (label, factor) in DIFFICULTIES.items():
    thirds = terciles[name]
    ends = [(factor * third["from"], factor * third["to"]) for third in thirds]
    scores = [third["scores"] for third in thirds]
    means = [(*end, of["dice"]["mean"]) for end, of in zip(ends, scores, strict=True)]
    x, dice = factor * _column(rows, name), _column(rows, "dice")
    chart = _captioned(
      charts.dice_by_difficulty(x, dice, label, means),
      f"Dice of each case against {label}",
      "Each dot is a case, each line the mean Dice of a third of the cases.",
    )
    known = [score for score in LABELS if all(score in of for of in scores)] if scores else []
    lines = [(LABELS[score], *(_score_cell(of[score], score) for of in scores)) for score in known]
    columns = (label, *(f"{start:.1f} to {end:.1f}" for start, end in ends))
    table = html_table(columns, [("Cases", *(third["cases"] for third in thirds)), *lines])
    parts += [tag("h3", label), tag("div", chart, table, class_="beside")]
  return join(*parts)


def _steps(steps) -> Html:
  if len(steps) < 2:
    return Html()
  means = [step["scores"]["dice"]["mean"] for step in steps]
  changes = [EMPTY, *(f"{now - before:+.3f}" for before, now in itertools.pairwise(means))]
  lines = [
    (_words(step["step"]), change, *(_score_cell(step["scores"][s], s) for s in COUNTED))
    for step, change in zip(steps, changes, strict=True)
  ]
  columns = ("After", "Change of Dice", *(LABELS[score] for score in COUNTED))
  note = "Each step is applied to the result of the step before it."
  return join(tag("p", note), html_table(columns, lines))


def _other_ways(summary) -> Html:
  small = summary["network_size"]
  size = TIMES.join([str(small["size"])] * 2)
  lines = [
    (
      LABELS[s],
      _score_cell(summary[s], s),
      number(summary["pooled"][s]),
      _score_cell(small["per_image"][s], s),
      number(small["pooled"][s]),
    )
    for s in COUNTED
  ]
  ways = ("Per case, own size", "All pixels, own size", f"Per case, {size}", f"All pixels, {size}")
  note = (
    "For comparison with papers that score in these ways. This page uses the first column: each "
    f"case at the photograph's own size. {size} is the size of the network's maps."
  )
  return join(tag("p", note), html_table(("Score", *ways), lines))


def _calibration(calibration) -> Html:
  bins = calibration["bins"]
  chart = charts.reliability([b["predicted"] for b in bins], [b["observed"] for b in bins])
  error = number(calibration["expected_calibration_error"])
  lines = [
    (
      f"{b['from']:.2f} to {b['to']:.2f}",
      f"{b['pixels']:,}",
      number(b["predicted"]),
      number(b["observed"]),
    )
    for b in bins
  ]
  columns = ("Probability", "Pixels", "Mean probability", "Share that is lesion")
  diagram = _captioned(chart, "Reliability diagram", f"Expected calibration error {error}")
  return tag("div", diagram, html_table(columns, lines), class_="beside")


def _confidence(summary, rows, anchors) -> Html:
  confidence = summary["confidence"]
  below, review = confidence["review_below"], confidence["review"]
  chart = charts.dice_by_confidence(_column(rows, "confidence"), _column(rows, "dice"), below)
  caption = f"Spearman's rank correlation of confidence and Dice: {number(confidence['spearman'])}"
  lines = [
    (f"Under {below}, for review", len(review), number(confidence["review_mean_dice"])),
    ("The rest", summary["cases"] - len(review), number(confidence["rest_mean_dice"])),
  ]
  table = html_table(("Confidence", "Cases", "Mean Dice"), lines)
  listed = (
    join(tag("p", "Lowest confidence first:"), case_names(review, anchors)) if review else Html()
  )
  figure = _captioned(chart, "Dice of each case against the network's confidence", caption)
  return tag("div", figure, tag("div", table, listed), class_="beside")


def _training(curves) -> Html:
  labels = {"loss": "Loss", "dice": LABELS["dice"], "iou": LABELS["iou"]}
  drawn = {label: charts.training_curve(curves, name, label) for name, label in labels.items()}
  figures = [
    _captioned(chart, f"{label} of training and validation", f"{label} over epochs")
    for label, chart in drawn.items()
    if chart is not None
  ]
  return tag("div", *figures, class_="charts") if figures else Html()


def _cell(value) -> Html:
  """A value of the protocol: text, a list of texts, or a nested list of named values."""
  if isinstance(value, Mapping):
    pairs = (tag("div", tag("dt", _words(k)), tag("dd", _cell(v))) for k, v in value.items())
    return tag("dl", *pairs)
  if isinstance(value, (list, tuple)):
    nested = any(isinstance(item, Mapping) for item in value)
    cells = [_cell(item) for item in value]
    return join(*cells) if nested else Html(", ".join(cells) or "none")
  if value is None:
    return Html(EMPTY)
  return Html(html.escape(f"{value:.6g}" if isinstance(value, float) else str(value)))
