"""Comparison of evaluations: one table, paired tests case by case, pictures side by side."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.images.image_files import read_mask
from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.data.sources import MASK_SUFFIX, Source, create_source
from medlitenet_jax.modes.evaluate import CASES_FILE, MASK_FOLDER, SUMMARY_FILE
from medlitenet_jax.pages.figures import (
  PREDICTION_COLOR,
  TRUTH_COLOR,
  draw_run_curves,
  draw_side_by_side,
  outlined,
)
from medlitenet_jax.pages.html import Html, html_table, join, page, picture, svg, tag
from medlitenet_jax.scores.statistics import holm, paired_difference
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_json, replace_file

logger = logging.getLogger(__name__)

TESTED = ("dice", "iou", "threshold_jaccard", "hd95")
LOWER_IS_BETTER = ("hd95",)
SHOWN_CASES = 8
# Of a protocol: what must be equal for a difference to be the networks' alone.
PROTOCOL = (
  *("split", "split_hash", "scored_at", "threshold", "threshold_chosen_on", "hysteresis_low"),
  *("postprocessing", "test_time_augmentation", "network_size", "precision"),
  *("preprocessing", "cases_trained_on", "cases_selected_by"),
)


class Evaluation(NamedTuple):
  """One evaluation as its folder has it.

  Attributes:
    name: short, and not like another's.
    folder: `eval/SPLIT` of a run.
    summary: of `summary.json`.
    cases: rows of `cases.csv` by case.
  """

  name: str
  folder: Path
  summary: dict[str, Any]
  cases: dict[str, dict[str, str]]

  def column(self, score: str) -> np.ndarray:
    """[N] float64 scores of the cases in order of their names; nan where one is undefined."""
    return np.array([float(self.cases[case_id][score]) for case_id in sorted(self.cases)])


def compare(inputs: Sequence[Path], output: Path) -> dict[str, Any]:
  """Sets evaluations of the same cases side by side.

  Args:
    inputs: folders of runs or of evaluations; the others are tested against the first.
    output: folder that receives `results.md`, `comparison.json`, `comparison.csv`,
      `comparison.html` and `figures/`.

  Returns:
    What `comparison.json` holds.

  Raises:
    InputError: if a folder holds no evaluation or the evaluations are of different cases.
  """
  evaluations = read_evaluations(inputs)
  first = evaluations[0]
  tests = _tests(evaluations)
  result = {
    "evaluations": [
      {"name": e.name, "folder": str(e.folder), "summary": e.summary} for e in evaluations
    ],
    "protocol_differences": _protocol_differences(evaluations),
    "tests": tests,
  }
  (output / "figures").mkdir(parents=True, exist_ok=True)
  case_ids = sorted(first.cases)
  rows = [
    {"case_id": case_id}
    | {f"{score} {e.name}": e.cases[case_id][score] for score in TESTED for e in evaluations}
    for case_id in case_ids
  ]
  tables.write_csv(output / "comparison.csv", rows)
  replace_file(output / "comparison.json", json.dumps(result, indent=2) + "\n")
  markdown = tables.table(*_results_table(evaluations))
  replace_file(output / "results.md", markdown + "\n")

  curves = {e.name: tables.read_metrics(e.folder.parent.parent) for e in evaluations}
  curves = {name: lines for name, lines in curves.items() if lines}
  if curves:
    draw_run_curves(curves, output / "figures" / "curves.png")
  source = _open_photographs(first)
  pictures = []
  if source is not None:
    pictures = _pictures(evaluations, source)
    draw_side_by_side(pictures, [e.name for e in evaluations], output / "figures" / "grid.png")
  body = _body(evaluations, result, pictures)
  replace_file(output / "comparison.html", page("Comparison of evaluations", body))
  print(markdown)
  if tests:
    print("\n" + tables.table(*_tests_table(tests)))
  logger.info("Compared %d evaluations: %s", len(evaluations), output / "comparison.html")
  return result


def read_evaluations(inputs: Sequence[Path]) -> list[Evaluation]:
  """Reads evaluations of the same cases.

  Args:
    inputs: folders of runs that have one evaluation, or of evaluations (`RUN/eval/SPLIT`).

  Returns:
    One for each, in order.

  Raises:
    InputError: if a folder holds none or several, or their cases differ.
  """
  folders = [_evaluation_folder(path) for path in inputs]
  names = _names(folders)
  evaluations = []
  for name, folder in zip(names, folders, strict=True):
    try:
      summary = read_json(folder / SUMMARY_FILE)
      rows = tables.read_csv(folder / CASES_FILE)
      cases = {row["case_id"]: row for row in rows}
      protocol = summary["protocol"]
      digest = protocol["split_hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise InputError(f"{folder}: not a whole evaluation ({error}); evaluate again") from error
    missing = {*TESTED} - rows[0].keys() if rows else {*TESTED}
    if missing:
      raise InputError(
        f"{folder}: {CASES_FILE} has no {sorted(missing)[0]}; evaluate again with this version"
      )
    evaluation = Evaluation(name, folder, summary, cases)
    try:
      _results_row(evaluation)
      for score in TESTED:
        evaluation.column(score)
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(f"{folder}: not a whole evaluation ({error}); evaluate again") from error
    evaluations.append(evaluation)
    other = evaluations[0]
    if cases.keys() != other.cases.keys() or digest != other.summary["protocol"]["split_hash"]:
      raise InputError(
        f"{folder}: is of other cases than {other.folder}; only evaluations of the same cases "
        "compare"
      )
  return evaluations


def _evaluation_folder(path: Path) -> Path:
  if (path / SUMMARY_FILE).exists():
    return path
  found = sorted(path.glob(f"eval/*/{SUMMARY_FILE}"))
  if len(found) != 1:
    what = (
      f"{len(found)} evaluations in it, name one of its eval/ folders"
      if found
      else ("no evaluation in it; evaluate first")
    )
    raise InputError(f"{path}: {what}")
  return found[0].parent


def _names(folders: Sequence[Path]) -> list[str]:
  """The shortest endings of the paths that tell them apart."""
  parts = [[p for p in folder.resolve().parts if p != "eval"] for folder in folders]
  splits = {p[-1] for p in parts}
  if len(splits) == 1:
    parts = [p[:-1] for p in parts]
  for depth in range(1, max(map(len, parts)) + 1):
    names = ["/".join(p[-depth:]) for p in parts]
    if len(set(names)) == len(names):
      return names
  raise InputError("--input names one evaluation twice; name each once")


def _protocol_differences(evaluations: Sequence[Evaluation]) -> dict[str, list[Any]]:
  protocols = [e.summary["protocol"] for e in evaluations]
  return {
    name: [protocol.get(name) for protocol in protocols]
    for name in PROTOCOL
    # An evaluation that is older than a part of the protocol went without it.
    if any(
      (protocol.get(name) or None) != (protocols[0].get(name) or None) for protocol in protocols
    )
  }


def _tests(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
  """Every other evaluation against the first, score by score, adjusted for their number."""
  tests = []
  for other in evaluations[1:]:
    for score in TESTED:
      pair = np.stack([evaluations[0].column(score), other.column(score)])
      pair = pair[:, np.isfinite(pair).all(axis=0)]
      if pair.size:
        found = paired_difference(*pair, lower_is_better=score in LOWER_IS_BETTER)
        tests.append({"score": score, "first": evaluations[0].name, "second": other.name, **found})
  for test, p_value in zip(tests, holm([t["p_value"] for t in tests]), strict=True):
    test["p_value_holm"] = p_value
  return tests


def _results_table(evaluations: Sequence[Evaluation]):
  """A row an evaluation, with its protocol and the command that made it."""
  columns = ("evaluation", "Dice", "IoU", "threshold Jaccard", "HD95, px", "protocol", "command")
  return columns, [_results_row(evaluation) for evaluation in evaluations]


def _results_row(e: Evaluation) -> tuple[str, ...]:
  def cell(score):
    low, high = score["ci95"] or (float("nan"),) * 2
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


def _open_photographs(evaluation: Evaluation) -> Source | None:
  """The photographs that were scored; None, with a line in the log, where they are gone."""
  try:
    config = config_lib.load(evaluation.folder)
    source = create_source(config.data, config.eval.split, config.seed)
  except (InputError, KeyError) as error:  # KeyError: older than a field of the data
    logger.warning("No pictures of cases, for their photographs cannot be read: %s", error)
    return None
  if set(source.case_ids) != set(evaluation.cases):
    logger.warning("No pictures of cases: the data has changed since %s.", evaluation.folder)
    return None
  return source


def _pictures(evaluations: Sequence[Evaluation], source: Source) -> list[dict[str, Any]]:
  """The cases on which the evaluations differ most in Dice, with every prediction."""
  case_ids = sorted(evaluations[0].cases)
  dice = np.stack([e.column("dice") for e in evaluations])
  spread = np.ptp(dice, axis=0) if len(evaluations) > 1 else -dice[0]
  place = {case_id: i for i, case_id in enumerate(source.case_ids)}
  chosen = []
  for i in np.argsort(-spread, kind="stable")[:SHOWN_CASES]:
    case = source[place[case_ids[i]]]
    case = dataclasses.replace(case, image=resize_image(case.image, *case.mask.shape))
    masks = [
      read_mask(e.folder / MASK_FOLDER / f"{case.case_id}{MASK_SUFFIX}.png") for e in evaluations
    ]
    chosen.append({"case": case, "predictions": masks, "dice": dice[:, i].tolist()})
  return chosen


def _body(evaluations, result, pictures) -> Html:
  """The page between its title and its end."""
  columns, rows = _results_table(evaluations)
  scores = html_table(columns[:-2], [row[:-2] for row in rows])
  protocols = [
    tag("p", tag("strong", row[0]), ": ", row[-2], tag("br"), tag("code", row[-1].strip("`")))
    for row in rows
  ]
  parts = [
    tag("h1", "Comparison of evaluations"),
    tag("h2", "Scores"),
    scores,
    tag("h2", "Protocols and commands"),
    *protocols,
  ]
  differences = result["protocol_differences"]
  if differences:
    changed = [(name, *map(str, values)) for name, values in differences.items()]
    parts += [
      tag("h2", "Where the protocols differ"),
      html_table(("field", *(e.name for e in evaluations)), changed),
    ]
  if result["tests"]:
    note = (
      "Each case is scored by both; the interval is a percentile bootstrap of the mean difference, "
      "p the Wilcoxon signed-rank test's, adjusted for the number of tests by Holm's method."
    )
    parts += [
      tag("h2", "Paired tests over cases"),
      html_table(*_tests_table(result["tests"])),
      tag("p", note),
      tag("h2", "Dice case by case"),
      tag("div", svg(_scatter(evaluations), "Dice of each case in two evaluations")),
    ]
  if pictures:
    parts.append(tag("h2", "Where they differ most" if len(evaluations) > 1 else "Lowest Dice"))
    parts.append(tag("p", "Truth green, prediction yellow."))
  for shown in pictures:
    case = shown["case"]
    truth = outlined(case.image, case.mask, TRUTH_COLOR)
    views = [
      tag(
        "figure",
        tag(
          "div",
          picture(outlined(truth, mask, PREDICTION_COLOR), f"{case.case_id}, {e.name}"),
          class_="pair",
        ),
        tag("figcaption", f"{e.name}: Dice {dice:.3f}"),
      )
      for e, mask, dice in zip(evaluations, shown["predictions"], shown["dice"], strict=True)
    ]
    parts += [tag("h3", case.case_id), tag("div", *views, class_="cases")]
  return join(*parts)


def _scatter(evaluations: Sequence[Evaluation]) -> Figure:
  others = evaluations[1:]
  figure = Figure(figsize=(3.6 * len(others), 3.6), layout="constrained")
  for axis, other in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axis.scatter(evaluations[0].column("dice"), other.column("dice"), s=9, alpha=0.6)
    axis.set(xlabel=f"Dice, {evaluations[0].name}", ylabel=f"Dice, {other.name}", aspect="equal")
  return figure
