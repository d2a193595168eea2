"""Reads a whole data set and says what is in it and what is wrong with it, changing nothing."""

import collections
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.cases import Source
from medlitenet_jax.data.folder import FolderCase, Problem, Scan, create_scan, damage
from medlitenet_jax.data.images.duplicates import Pair, near_duplicates, thumbnail
from medlitenet_jax.data.sources import FolderSource, create_source, limited
from medlitenet_jax.data.splits import SPLITS
from medlitenet_jax.modes.call import Call, begin, resolve_recipe
from medlitenet_jax.pages import check as check_page
from medlitenet_jax.pages.check import NEARLY_FULL, Reading
from medlitenet_jax.pages.figures import draw_cases
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file
from medlitenet_jax.system.starts import record_start

logger = logging.getLogger(__name__)

CHECK_FILE, PROBLEMS_FILE, SHEET_FILE = "check.json", "problems.csv", "contact_sheet.png"


def main(call: Call) -> None:
  """Checks the data set of the recipe; see `check`."""
  begin(call, call.output)
  check(resolve_recipe(call), call.output)


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
  root = Path(config.data.root).resolve()
  if config.data.source == "folder" and output.resolve().is_relative_to(root):
    raise InputError(f"{output}: lies in the data, which is left as it is; choose another --output")
  sources, files, problems = _open(config)
  readings, found = _read(sources, files, config.data.num_threads)
  problems += found
  logger.info("Looking for the same pictures among %d.", len(readings))
  pairs, left_out = near_duplicates(
    [reading.thumbnail for reading in readings], config.data.num_threads
  )
  problems += _odd_masks(readings) + _same_pictures(readings, pairs)
  if left_out:
    what = f"{left_out} pairs of photographs that look alike when small were not compared further"
    problems.append(Problem("not_compared", "", "", what, False))
  problems.sort(key=lambda problem: (not problem.stops_training, problem.kind))
  summary = check_page.summary(config, sources, readings, problems)

  record_start(output)
  replace_file(output / CHECK_FILE, json.dumps(summary, indent=2) + "\n")
  columns = [field.name for field in dataclasses.fields(Problem)]
  tables.write_csv(output / PROBLEMS_FILE, [dataclasses.asdict(p) for p in problems], columns)
  (output / SHEET_FILE).unlink(missing_ok=True)
  if readings:
    draw_cases(check_page.sheet(sources, readings, pairs), output / SHEET_FILE)
  check_page.show(summary, output)
  stopping = collections.Counter(p.kind for p in problems if p.stops_training)
  if stopping:
    counts = ", ".join(f"{count} {kind}" for kind, count in stopping.items())
    raise InputError(
      f"{stopping.total()} problem{'s' * (stopping.total() > 1)} would stop training: {counts}; "
      f"{output / PROBLEMS_FILE} says what to do about each"
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
      sources[split] = create_source(config.data, split, config.seed, to_score=False)
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
  known = [problem.what for problem in scan.problems if problem.kind == "unreadable"]
  hidden = []
  for split, cases in scan.broken.items():
    for case in cases:
      # A photograph and its mask may share their name, so it is by their paths.
      told = tuple(
        start
        for start in (f"{case.image}: ", f"{case.mask}: ")
        if any(what.startswith(start) for what in known)
      )
      hidden += [problem for problem in damage(case, split) if not problem.what.startswith(told)]
  return hidden


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
      kind, what = "nearly_full_mask", f"{reading.lesion:.2%} of the pixels are lesion"
    else:
      continue
    problems.append(Problem(kind, reading.case_id, reading.split, what, False))
  return problems


def _same_pictures(readings: Sequence[Reading], pairs: Iterable[Pair]) -> list[Problem]:
  """Pairs of photographs that are the same to the byte or to the eye."""
  problems = []
  for pair in pairs:
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
