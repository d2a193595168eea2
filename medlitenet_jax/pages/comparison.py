"""The page and the tables that compare several evaluations of the same cases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from medlitenet_jax.pages.html import Html, html_table, join, picture, svg, tag
from medlitenet_jax.pages.outlines import (
  PREDICTION_COLOR,
  PREDICTION_NAME,
  TRUTH_COLOR,
  TRUTH_NAME,
  outlined,
)

TESTED = ("dice", "iou", "threshold_jaccard", "hd95")


class Evaluation(NamedTuple):
  """An evaluation, read from its folder.

  Attributes:
    name: short, unique name.
    folder: `eval/SPLIT` of a run.
    summary: content of `summary.json`.
    cases: rows of `cases.csv` by case.
  """

  name: str
  folder: Path
  summary: dict[str, Any]
  cases: dict[str, dict[str, str]]

  def column(self, score: str) -> np.ndarray:
    """[N] float64 scores of the cases, sorted by name; nan where undefined."""
    return np.array([float(self.cases[case_id][score]) for case_id in sorted(self.cases)])


def _results_table(evaluations: Sequence[Evaluation]):
  """One row per evaluation, with its protocol and command."""
  columns = ("evaluation", "Dice", "IoU", "threshold Jaccard", "HD95, px", "protocol", "command")
  return columns, [_results_row(evaluation) for evaluation in evaluations]


def _results_row(e: Evaluation) -> tuple[str, ...]:
  def cell(score):
    if not score["ci95"]:
      return f"{score['mean']:.3f} (one case)"
    low, high = score["ci95"]
    return f"{score['mean']:.3f} ± {score['std']:.3f} ({low:.3f} to {high:.3f})"

  p, hd95 = e.summary["protocol"], e.summary["boundary"]["hd95"]
  protocol = (
    f"{p['split']} ({e.summary['cases']} cases, {p['split_hash']}), per image at "
    f"{p['scored_at']}, network {p['network_size']} px, TTA {p['test_time_augmentation']}, "
    f"threshold {p['threshold']:g}, clean-up {', '.join(p['postprocessing']) or 'none'}"
  )
  for use in ("trained on", "selected by"):
    if count := p.get(f"cases_{use.replace(' ', '_')}"):
      protocol += f"; the network was {use} {count} of the cases"
  return (
    *(e.name, cell(e.summary["dice"]), cell(e.summary["iou"])),
    cell(e.summary["threshold_jaccard"]),
    "-" if hd95["mean"] is None else f"{hd95['mean']:.1f}",
    *(protocol, f"`{p['command']}`"),
  )


def _tests_table(tests: Sequence[Mapping[str, Any]]):
  columns = (
    *("score", "second - first", "mean difference", "95 % interval"),
    *("p, Wilcoxon", "p, Holm", "better/equal/worse"),
  )
  rows = [
    (
      test["score"],
      f"{test['second']} - {test['first']}",
      f"{test['difference']:+.4f}",
      "{:+.4f} to {:+.4f}".format(*test["ci95"]) if test["ci95"] else "-",
      f"{test['p_value']:.2g}",
      f"{test['p_value_holm']:.2g}",
      f"{test['better']}/{test['equal']}/{test['worse']}",
    )
    for test in tests
  ]
  return columns, rows


def _body(evaluations, result, pictures) -> Html:
  """The body of the page."""
  columns, rows = _results_table(evaluations)
  scores = html_table(columns[:-2], [row[:-2] for row in rows])
  protocols = [
    tag("p", tag("strong", row[0]), ": ", row[-2], Html("<br>"), tag("code", row[-1].strip("`")))
    for row in rows
  ]
  parts = [
    tag("header", tag("h1", "Comparison of evaluations")),
    _section("Scores", scores),
    _section("Protocols and commands", *protocols),
  ]
  differences = result["protocol_differences"]
  if differences:
    changed = [(name, *map(str, values)) for name, values in differences.items()]
    table = html_table(("field", *(e.name for e in evaluations)), changed)
    parts.append(_section("Where the protocols differ", table))
  if result["tests"]:
    note = (
      "Both evaluations score each case. The interval is a percentile bootstrap of the mean "
      "difference; p is from the Wilcoxon signed-rank test, adjusted for multiple tests by Holm."
    )
    table = html_table(*_tests_table(result["tests"]))
    chart = tag("div", svg(_scatter(evaluations), "Dice of each case in two evaluations"))
    parts.append(_section("Paired tests over cases", table, tag("p", note)))
    parts.append(_section("Dice case by case", chart))
  if pictures:
    title = "Where they differ most" if len(evaluations) > 1 else "Lowest Dice"
    legend = tag("p", f"Truth {TRUTH_NAME}, prediction {PREDICTION_NAME}.")
    cases = [_case(evaluations, shown) for shown in pictures]
    parts.append(_section(title, legend, *cases))
  return join(*parts)


def _section(title: str, *content: Html) -> Html:
  return tag("section", tag("h2", title), *content)


def _case(evaluations: Sequence[Evaluation], shown: Mapping[str, Any]) -> Html:
  """A case with the outlines of each evaluation."""
  case = shown["case"]
  truth = (case.mask, TRUTH_COLOR)
  views = []
  for e, mask, dice in zip(evaluations, shown["predictions"], shown["dice"], strict=True):
    drawn = outlined(case.image, truth, (mask, PREDICTION_COLOR))
    pair = tag("div", picture(drawn, f"{case.case_id}, {e.name}"), class_="pair")
    views.append(tag("figure", pair, tag("figcaption", f"{e.name}: Dice {dice:.3f}")))
  return join(tag("h3", case.case_id), tag("div", *views, class_="cases"))


def _scatter(evaluations: Sequence[Evaluation]) -> Figure:
  others = evaluations[1:]
  figure = Figure(figsize=(3.6 * len(others), 3.6), layout="constrained")
  for axis, other in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axis.scatter(evaluations[0].column("dice"), other.column("dice"), s=9, alpha=0.6)
    axis.set(xlabel=f"Dice, {evaluations[0].name}", ylabel=f"Dice, {other.name}", aspect="equal")
  return figure
