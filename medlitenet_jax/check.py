"""Reads a whole data set and says what is in it and what is wrong with it, changing nothing."""

import collections
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax import report
from medlitenet_jax.data.duplicates import near_duplicates, thumbnail
from medlitenet_jax.data.folder import FolderCase, Problem, Scan, create_scan, damage
from medlitenet_jax.data.resize import resize_image, resize_mask
from medlitenet_jax.data.sources import (
  FolderSource,
  Source,
  create_source,
  limited,
  split_hash,
)
from medlitenet_jax.data.splits import SPLITS
from medlitenet_jax.errors import InputError
from medlitenet_jax.figures import draw_cases

logger = logging.getLogger(__name__)

CHECK_FILE, PROBLEMS_FILE, SHEET_FILE = "check.json", "problems.csv", "contact_sheet.png"
NEARLY_FULL = 0.95  # of the frame; such a mask leaves no skin to tell the lesion from
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SAMPLE = 12  # cases of each split on the sheet
MOST_ODD = 48  # odd cases on it; problems.csv lists all
PICTURE = 256  # pixels, longer side, on the sheet


@dataclasses.dataclass(frozen=True)
class Reading:
  """What is kept of a case once it has been read; the photograph is not.

  Attributes:
    split: of the case.
    index: place in its source.
    case_id: its name.
    height: in pixels.
    width: in pixels.
    lesion: fraction of the frame.
    digest: of the pixels.
    thumbnail: as `duplicates.thumbnail` makes it.
  """

  split: str
  index: int
  case_id: str
  height: int
  width: int
  lesion: float
  digest: bytes
  thumbnail: np.ndarray


def check(config: ConfigDict, output: Path) -> None:
  """Reads every case and writes a table, a list of problems and a sheet of pictures.

  Args:
    config: resolved; of it only `data` and `seed` are read.
    output: folder that receives `check.json`, `problems.csv` and `contact_sheet.png`.

  Raises:
    InputError: if the data cannot be opened at all and, once all is written, if a problem would
      stop training.
  """
  if output.exists() and not output.is_dir():
    raise InputError(f"{output}: is a file; choose another --output")
  sources, files, problems = _open(config)
  readings, found = _read(sources, files, config.data.num_threads)
  problems += found
  problems += _odd_masks(readings) + _same_pictures(readings, config.data.num_threads)
  summary = _summary(config, sources, readings, problems)

  output.mkdir(parents=True, exist_ok=True)
  report.replace_file(output / CHECK_FILE, json.dumps(summary, indent=2) + "\n")
  columns = [field.name for field in dataclasses.fields(Problem)]
  report.write_csv(output / PROBLEMS_FILE, [dataclasses.asdict(p) for p in problems], columns)
  if readings:
    draw_cases(_sheet(sources, readings), output / SHEET_FILE)
  _print(summary, output)
  stopping = collections.Counter(p.kind for p in problems if p.stops_training)
  if stopping:
    counts = ", ".join(f"{count} {kind}" for kind, count in stopping.items())
    raise InputError(
      f"{stopping.total()} problems would stop training: {counts}; {output / PROBLEMS_FILE} says "
      "what to do about each"
    )


# The files of each split's cases, where they are files of a folder.
Files = Mapping[str, Sequence[FolderCase]]


def _open(config: ConfigDict) -> tuple[dict[str, Source], Files, list[Problem]]:
  """The splits that can be opened, and what was found wrong without reading a case."""
  sources: dict[str, Source]
  if config.data.source == "folder":
    scan = create_scan(config.data)
    sources = {
      split: limited(FolderSource(cases), config.data, split) for split, cases in scan.cases.items()
    }
    problems = [_only_warn_of_test(p) for p in scan.problems] + _hidden_damage(scan)
    return sources, scan.cases, problems
  sources, problems = {}, []
  for split in SPLITS:
    try:
      sources[split] = create_source(config.data, split, config.seed)
    except InputError as error:
      problems.append(_only_warn_of_test(Problem("empty_split", split, split, str(error), True)))
  if not sources:
    raise InputError(problems[0].what)
  return sources, {}, problems


def _only_warn_of_test(problem: Problem) -> Problem:
  """Training needs no case in test."""
  if (problem.kind, problem.split) == ("empty_split", "test"):
    return dataclasses.replace(problem, stops_training=False)
  return problem


def _hidden_damage(scan: Scan) -> list[Problem]:
  """What decoding shows of pairs that are left out for another reason already."""
  known = {problem.name for problem in scan.problems if problem.kind == "unreadable"}
  found = [damage(case, split) for split, cases in scan.broken.items() for case in cases]
  return [problem for problems in found for problem in problems if problem.name not in known]


def _read(
  sources: Mapping[str, Source], files: Files, num_threads: int
) -> tuple[list[Reading], list[Problem]]:
  """Reads every case once; the photographs of as many as there are threads are held at a time."""
  cv2.setNumThreads(1)  # each thread reads a case of its own
  places = [(split, index) for split, source in sources.items() for index in range(len(source))]

  def read(place: tuple[str, int]) -> Reading | list[Problem]:
    split, index = place
    try:
      case = sources[split][index]
    except InputError as error:
      found = damage(files[split][index], split) if split in files else []
      name = sources[split].case_ids[index]
      return found or [Problem("unreadable", name, split, str(error), True)]
    height, width = case.mask.shape
    digest = hashlib.blake2b(f"{height}x{width}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(case.image).data)
    lesion = np.count_nonzero(case.mask) / case.mask.size
    small = thumbnail(case.image)
    return Reading(split, index, case.case_id, height, width, lesion, digest.digest(), small)

  pool = ThreadPoolExecutor(num_threads)
  try:
    answers = list(
      tqdm(
        pool.map(read, places),
        total=len(places),
        unit="case",
        desc="check",
        dynamic_ncols=True,
      )
    )
  finally:
    pool.shutdown(cancel_futures=True)
  readings = [answer for answer in answers if isinstance(answer, Reading)]
  return readings, [p for answer in answers if isinstance(answer, list) for p in answer]


def _odd_masks(readings: Iterable[Reading]) -> list[Problem]:
  problems = []
  for reading in readings:
    if reading.lesion == 0:
      kind, what = "empty_mask", "no pixel is lesion"
    elif reading.lesion == 1:
      kind, what = "full_mask", "every pixel is lesion"
    elif reading.lesion >= NEARLY_FULL:
      kind, what = "nearly_full_mask", f"{reading.lesion:.1%} of the pixels are lesion"
    else:
      continue
    problems.append(Problem(kind, reading.case_id, reading.split, what, False))
  return problems


def _same_pictures(readings: Sequence[Reading], num_threads: int) -> list[Problem]:
  """Pairs of photographs that are the same to the byte or to the eye."""
  problems = []
  for pair in near_duplicates([reading.thumbnail for reading in readings], num_threads):
    one, other = readings[pair.first], readings[pair.second]
    kind, how = "near_duplicate", f"nearly the same picture (correlation {pair.correlation:.2f})"
    if one.digest == other.digest:
      kind, how = "duplicate", "the same pixels"
    elif pair.turned:
      how += ", flipped or turned"
    what = f"{how} as {other.case_id} in {other.split}"
    if one.split != other.split:
      kind = "leakage"
    problems.append(Problem(kind, one.case_id, one.split, what, False))
  return problems


def _summary(
  config: ConfigDict,
  sources: Mapping[str, Source],
  readings: Sequence[Reading],
  problems: Sequence[Problem],
) -> dict[str, Any]:
  splits = {}
  for split, source in sources.items():
    rows = [reading for reading in readings if reading.split == split]
    by_area = sorted((row.height * row.width, row.height, row.width) for row in rows)
    fractions = [row.lesion for row in rows]
    middle = {"smallest": 0, "median": len(rows) // 2, "largest": -1}
    splits[split] = {
      "cases": len(source),
      "read": len(rows),
      "split_hash": split_hash(source.case_ids) if len(source) else None,
      "height_width": {name: by_area[i][1:] for name, i in middle.items()} if rows else None,
      "lesion_fraction": {
        f"{q:g}": round(float(value), 5)
        for q, value in zip(QUANTILES, np.quantile(fractions, QUANTILES), strict=True)
      }
      if rows
      else None,
    }
  return {
    "source": config.data.source,
    "root": config.data.root if config.data.source == "folder" else None,
    "splits": splits,
    "problems": dict(collections.Counter(p.kind for p in problems if p.stops_training)),
    "warnings": dict(collections.Counter(p.kind for p in problems if not p.stops_training)),
  }


def _sheet(
  sources: Mapping[str, Source], readings: Sequence[Reading]
) -> list[tuple[str, list[tuple[str, np.ndarray, np.ndarray]]]]:
  """Titled groups of cases: a sample of each split, from the smallest lesion to the largest."""
  groups = {}
  for split in sources:
    rows = sorted((r for r in readings if r.split == split), key=lambda r: (r.lesion, r.case_id))
    if rows:
      spread = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int)
      groups[f"{split}, from the smallest lesion to the largest"] = [rows[i] for i in spread]
  odd = [r for r in readings if not 0 < r.lesion < NEARLY_FULL]
  if odd:
    shown = f", {MOST_ODD} of {len(odd)}" if len(odd) > MOST_ODD else ""
    groups[f"empty, full or nearly full{shown}"] = odd[:MOST_ODD]

  def picture(reading: Reading) -> tuple[str, np.ndarray, np.ndarray]:
    case = sources[reading.split][reading.index]
    scale = min(1.0, PICTURE / max(case.mask.shape))
    size = [max(1, round(side * scale)) for side in case.mask.shape]
    label = f"{reading.case_id}\n{reading.lesion:.1%}"
    return label, resize_image(case.image, *size), resize_mask(case.mask, *size)

  return [(title, [picture(reading) for reading in rows]) for title, rows in groups.items()]


def _print(summary: Mapping[str, Any], output: Path) -> None:
  rows = []
  for split, found in summary["splits"].items():
    sizes = found["height_width"] or {}
    shown = ["x".join(map(str, size)) for size in sizes.values()] or ["-"] * 3
    fractions = found["lesion_fraction"] or {}
    lesion = [f"{fractions[q]:.3f}" if fractions else "-" for q in ("0.05", "0.5", "0.95")]
    rows.append((split, found["cases"], found["split_hash"] or "-", *shown, *lesion))
  columns = ("split", "cases", "hash", "smallest", "median", "largest")
  print(report.table((*columns, "lesion 5 %", "median", "95 %"), rows))
  counts = [
    (kind, count, effect)
    for effect, group in (("stops training", "problems"), ("warning", "warnings"))
    for kind, count in summary[group].items()
  ]
  if counts:
    print("\n" + report.table(("found", "count", "effect"), counts))
  else:
    print("\nNothing to complain of.")
  logger.info("Sizes are height x width, lesions fractions of the frame: %s", output)
