"""Evaluation: scores at each photograph's own size, with the protocol by which they were made."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.cases import MASK_SUFFIX, Source, split_hash
from medlitenet_jax.data.images.image_files import read_grey, read_mask, write_grey, write_mask
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.inference.networks import Network, Predict, create_predict, precision_of
from medlitenet_jax.inference.outline import mask_rule
from medlitenet_jax.inference.stream import predict_cases
from medlitenet_jax.inference.threshold import choose_threshold
from medlitenet_jax.modes.call import Call, begin
from medlitenet_jax.modes.opening import count_seen, open_networks
from medlitenet_jax.pages.evaluation import PageCase, write_page
from medlitenet_jax.pages.figures import draw_failures, draw_grid
from medlitenet_jax.scores import metrics
from medlitenet_jax.scores.case_scores import CaseScore, score_case, summarise_scores
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.scores.statistics import Calibration
from medlitenet_jax.system import devices, limits, tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file
from medlitenet_jax.system.starts import record_start
from medlitenet_jax.training import log
from medlitenet_jax.training.layout import whole_steps

logger = logging.getLogger(__name__)

SUMMARY_FILE, CASES_FILE = "summary.json", "cases.csv"
MASK_FOLDER, UNCERTAINTY_FOLDER, DISAGREEMENT_FOLDER = "masks", "uncertainty", "disagreement"
GRID_ROWS = 8
PAGE_CASES = {"Best": 4, "Median": 4, "Worst": 8, "To be looked at": 4}


def main(call: Call) -> None:
  """Scores the network that the command line names; see `evaluate`."""
  begin(call, call.workdir, shared=True, weights=True)
  evaluate(*open_networks(call), call.workdir, call.command)


def evaluate(
  config: ConfigDict, networks: Sequence[Network], workdir: Path, command: str
) -> dict[str, Any]:
  """Scores a network, or an ensemble of networks, on a split.

  Args:
    config: resolved; what the networks are evaluated with.
    networks: one, or the members of an ensemble with weights of sum 1.
    workdir: folder that receives `eval/SPLIT/` with masks, tables, pictures and a page; an earlier
      one is replaced once everything is written.
    command: the command line, for the protocol.

  Returns:
    The summary, as `summary.json` holds it.

  Raises:
    InputError: if the data cannot be used, if the folder holds another network's run, or if a
      member of an ensemble was trained on or selected by a case that is scored.
  """
  of_run = _is_of_run(networks, workdir)
  split = config.eval.split
  source = create_source(config.data, split, config.seed)
  seen = count_seen(networks, source.case_ids, split)
  _refuse_without_room(networks, len(source), workdir)
  predict = create_predict(networks, config.eval.tta)
  threshold = config.eval.threshold or choose_threshold(predict, networks, config, workdir)
  rule = mask_rule(config.eval, threshold)

  final, folder = workdir / "eval" / split, workdir / "eval" / f"{split}.partial"

  def begin_folder() -> None:
    record_start(final.parent)
    shutil.rmtree(folder, ignore_errors=True)

  devices.on_main_process(begin_folder)
  sizes = [network.image_size for network in networks]
  rows, stages, calibration = score_cases(predict, source, sizes, config, rule, folder)

  summary = {
    **summarise_scores(rows, stages, calibration, max(sizes), config.eval.review_below),
    "protocol": _protocol(config, source, networks, seen, rule, command),
  }

  def finish() -> None:
    tables.write_csv(folder / CASES_FILE, rows)
    curves = log.read_metrics(workdir) if of_run else []
    _draw(folder, summary, rows, source, curves)
    replace_file(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    config_lib.save(config, folder)
    if config.ensemble.members:
      config_lib.save(config, workdir)
    shutil.rmtree(final, ignore_errors=True)
    folder.rename(final)
    print(tables.table(*_summary_table(summary)))
    logger.info("Scored %d cases of %s; report: %s", len(rows), split, final / "report.html")

  devices.on_main_process(finish)
  return summary


def _is_of_run(networks: Sequence[Network], workdir: Path) -> bool:
  """Whether it is the folder's own run that is scored; refuses a folder with another one."""
  origins = [network.origin["run"] for network in networks]
  of_run = origins == [str(workdir)]
  if not of_run and whole_steps(workdir):
    raise InputError(
      f"{workdir}: holds a run, and the scores of {', '.join(origins)} would replace its own; "
      "choose another --workdir"
    )
  return of_run


def _refuse_without_room(networks: Sequence[Network], cases: int, workdir: Path) -> None:
  """Refuses an evaluation whose maps will not fit on the disk, which take a quarter byte a pixel.

  Raises:
    InputError: says how much room they need at least.
  """
  limits.refuse_more_than(
    limits.free_disk(workdir),
    cases * max(network.image_size for network in networks) ** 2 / 4,
    f"{workdir}: the maps of {cases} cases take at least",
    of="of the disk",
    instead="make room, choose another --workdir, or set config.data.max_eval_images",
  )


def score_cases(
  predict: Predict,
  source: Source,
  image_sizes: Sequence[int],
  config: ConfigDict,
  rule: MaskRule,
  folder: Path,
) -> tuple[list[dict[str, Any]], list[Any], Calibration]:
  """Scores the cases of a source and writes their masks and maps.

  The networks compute a batch while the one before it is scored. Of several processes, each scores
  and writes its own cases, all in one folder.

  Args:
    predict: runs the networks, as `create_predict` makes it.
    source: the cases.
    image_sizes: sides that the networks take, in pixels.
    config: resolved; `eval`, `data` and `preprocess` are used.
    rule: makes the masks.
    folder: receives masks and maps.

  Returns:
    rows: one for each case, as `cases.csv` holds it.
    stages: the scores after each step of the mask's making, one mapping for each case.
    calibration: over all pixels of all cases.
  """

  def make_folders() -> None:
    for name in (MASK_FOLDER, UNCERTAINTY_FOLDER, DISAGREEMENT_FOLDER):
      (folder / name).mkdir(parents=True)

  devices.on_main_process(make_folders)
  own = Calibration()
  found = []
  cases = predict_cases(predict, source, image_sizes, config)
  for case, maps in tqdm(
    cases,
    total=len(source),
    unit="case",
    desc="evaluate",
    dynamic_ncols=True,
    disable=not devices.is_main_process(),
  ):
    scored = score_case(case, maps.probs, maps.disagreement, rule, own)
    _write_case(folder, scored)
    found.append((case.index, (scored.row, scored.stages)))
  rows, stages = zip(*devices.gather_cases(found), strict=True)
  calibration = Calibration()
  for sums in devices.gather(own.sums()):
    calibration.add_sums(sums)
  return list(rows), list(stages), calibration


def _write_case(folder: Path, scored: CaseScore) -> None:
  case_id = scored.row["case_id"]
  write_mask(folder / MASK_FOLDER / f"{case_id}{MASK_SUFFIX}.png", scored.prediction)
  write_grey(folder / UNCERTAINTY_FOLDER / f"{case_id}.png", scored.entropy)
  # A standard deviation of probabilities is at most one half: white.
  write_grey(folder / DISAGREEMENT_FOLDER / f"{case_id}.png", 2 * scored.disagreement)


def _protocol(
  config: ConfigDict,
  source: Source,
  networks: Sequence[Network],
  seen: Mapping[str, int],
  rule: MaskRule,
  command: str,
) -> dict[str, Any]:
  """How the scores were made. Two evaluations compare where their protocols agree."""
  members = [{**network.origin, "weight": float(network.weight)} for network in networks]
  single = members[0] if len(members) == 1 else None
  return {
    "split": config.eval.split,
    "split_hash": split_hash(source.case_ids),
    "data_source": config.data.source,
    "scored_at": "each photograph's own size",
    "aggregation": "per image, then mean and standard deviation over images",
    "interval": "95 % percentile bootstrap over images",
    "threshold": rule.threshold,
    "threshold_chosen_on": None if config.eval.threshold else "val, by mean Dice",
    "hysteresis_low": rule.low,
    "postprocessing": list(rule.steps),
    "test_time_augmentation": config.eval.tta,
    "preprocessing": Preprocessing(**config.preprocess).steps,
    "network_size": max(network.image_size for network in networks),
    "empty_masks": "a ratio with nothing in its denominator is 1",
    "threshold_jaccard": f"IoU, or 0 under {metrics.JACCARD_THRESHOLD}",
    "precision": precision_of(networks),
    "model": single["model"] if single else "ensemble",
    "variant": single["variant"] if single else ", ".join(m["variant"] for m in members),
    "weights": "exponential moving average",
    **seen,
    "command": command,
    **({"checkpoint": single} if single else {"members": members}),
  }


def _summary_table(summary):
  columns = {**{name: summary[name] for name in metrics.SCORES}, **summary["boundary"]}

  def number(value):
    return "-" if value is None else f"{value:.4f}"

  rows = [
    (
      name,
      number(score["mean"]),
      number(score["std"]),
      " to ".join(map(number, score["ci95"])) if score["ci95"] else "-",
    )
    for name, score in columns.items()
  ]
  return ("score", "mean", "std", "95 % interval of the mean"), rows


def _draw(folder: Path, summary, rows, source: Source, curves) -> None:
  """Draws the pictures of an evaluation and its page."""
  place = {row["case_id"]: i for i, row in enumerate(rows)}

  def page_case(row) -> PageCase:
    case = source[place[row["case_id"]]]
    prediction = read_mask(folder / MASK_FOLDER / f"{case.case_id}{MASK_SUFFIX}.png")
    entropy = read_grey(folder / UNCERTAINTY_FOLDER / f"{case.case_id}.png")
    image = resize_image(case.image, *case.mask.shape)  # a prepared set keeps it smaller
    return PageCase(row, image, case.mask, prediction, entropy)

  ranked = sorted(rows, key=lambda row: -row["dice"])
  spread = np.linspace(0, len(ranked) - 1, min(GRID_ROWS, len(ranked))).round().astype(int)
  draw_grid([page_case(ranked[i]) for i in np.unique(spread)], folder / "figures" / "grid.png")
  failures = [page_case(row) for row in _boundary_failures(rows)]
  draw_failures(failures, folder / "figures" / "failures.png")

  middle = max(0, len(ranked) // 2 - PAGE_CASES["Median"] // 2)
  chosen = {
    "Best": ranked[: PAGE_CASES["Best"]],
    "Median": ranked[middle : middle + PAGE_CASES["Median"]],
    "Worst": ranked[::-1][: PAGE_CASES["Worst"]],
    "To be looked at": [rows[place[case_id]] for case_id in summary["confidence"]["review"]],
  }
  groups = {
    title: [page_case(row) for row in cases[: PAGE_CASES[title]]] for title, cases in chosen.items()
  }
  write_page(folder / "report.html", summary, rows, groups, curves)


def _boundary_failures(rows, count: int = 6):
  """Cases of the lower half of contrast whose predicted border lies farthest off, worst first."""
  known = [r for r in rows if np.isfinite(r["contrast"]) and np.isfinite(r["hd95"])]
  blurred = sorted(known, key=lambda row: row["contrast"])[: max(1, (len(known) + 1) // 2)]
  return sorted(blurred, key=lambda r: -r["hd95"] / np.hypot(r["height"], r["width"]))[:count]
