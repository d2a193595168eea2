"""Comparison of evaluations: one table, paired tests case by case, pictures side by side."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.cases import MASK_SUFFIX, Source
from medlitenet_jax.data.images.image_files import read_mask
from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.modes.call import Call, begin
from medlitenet_jax.modes.evaluate import CASES_FILE, MASK_FOLDER, SUMMARY_FILE
from medlitenet_jax.pages.comparison import (
  TESTED,
  Evaluation,
  _body,
  _results_row,
  _results_table,
  _tests_table,
)
from medlitenet_jax.pages.figures import (
  draw_run_curves,
  draw_side_by_side,
)
from medlitenet_jax.pages.html import page
from medlitenet_jax.scores.statistics import holm, paired_difference
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import expand, read_json, replace_file
from medlitenet_jax.system.starts import record_start
from medlitenet_jax.training import log

logger = logging.getLogger(__name__)

LOWER_IS_BETTER = ("hd95",)
SHOWN_CASES = 8
# Fields of a protocol that must be equal for scores to differ by the networks alone.
PROTOCOL = (
  *("split", "split_hash", "scored_at", "threshold", "threshold_chosen_on", "hysteresis_low"),
  *("postprocessing", "test_time_augmentation", "network_size", "precision"),
  *("preprocessing", "cases_trained_on", "cases_selected_by"),
)


def main(call: Call) -> None:
  """Compares the evaluations that the command line names; see `compare`."""
  begin(call, call.output, inputs=True)
  compare([path for given in call.inputs for path in expand(given)], call.output)


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
  if len(evaluations) == 1:
    logger.warning("One evaluation alone is compared with nothing; name others by more --input.")
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
  record_start(output, computes=False)
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

  curves = {e.name: log.read_metrics(e.folder.parent.parent) for e in evaluations}
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
      raise InputError(f"{folder}: {CASES_FILE} has no column {sorted(missing)[0]}; evaluate again")
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
        "can be compared"
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
    if any(protocol.get(name) != protocols[0].get(name) for protocol in protocols)
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


def _open_photographs(evaluation: Evaluation) -> Source | None:
  """The photographs that were scored; None, with a line in the log, where they are gone."""
  try:
    config = config_lib.load(evaluation.folder)
    source = create_source(config.data, config.eval.split, config.seed)
  except (InputError, KeyError, AttributeError) as error:  # also of a damaged config.json
    logger.warning("No pictures of cases, because the photographs cannot be read: %s", error)
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
