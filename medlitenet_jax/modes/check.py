"""Reads a data set and says what is in it and what is wrong with it, changing nothing.

`--mode=check` reads the whole set; a training takes a short look at a sample before it starts.
"""

import collections
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.cases import Source
from medlitenet_jax.data.findings import (
  Look,
  find_in_masks,
  find_other_sizes,
  find_small_splits,
  look_at,
)
from medlitenet_jax.data.folder import FolderCase, Problem, Scan, create_scan, damage
from medlitenet_jax.data.images.duplicates import Pair, near_duplicates, thumbnail
from medlitenet_jax.data.sources import FolderSource, class_names, create_source, drawn
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

# Most pairs that are read of each split before a training starts, and for how long at most.
LOOK_PAIRS, LOOK_SECONDS = {"train": 64, "val": 32}, 5.0
TWO_SIZES = 0.1  # fraction of the photographs that are smaller copies, from which it is told
CHECK_FILE, PROBLEMS_FILE, SHEET_FILE = "check.json", "problems.csv", "contact_sheet.png"


def main(call: Call) -> None:
  """Checks the data set of the recipe; see `check`."""
  begin(call, call.output)
  check(resolve_recipe(call), call.output, force=call.force)


def check(config: ConfigDict, output: Path, *, force: bool = False) -> None:
  """Reads every case and writes a table, a list of problems and a sheet of pictures.

  Args:
    config: resolved; of it only `data` and `seed` are read.
    output: folder that receives `check.json`, `problems.csv` and `contact_sheet.png`.
    force: whether findings that would make training pointless are warnings.

  Raises:
    InputError: if the data cannot be opened at all and, once all is written, if a problem would
      stop training.
  """
  if output.exists() and not output.is_dir():
    raise InputError(f"{output}: is a file; choose another --output")
  root = Path(config.data.root).resolve()
  if config.data.source == "folder" and output.resolve().is_relative_to(root):
    raise InputError(f"{output}: lies in the data, which is left as it is; choose another --output")
  sources, files, problems, findings = _open(config)
  record_start(output)
  readings, found = _read(sources, files, config.data.num_threads)
  problems += found
  pairs, left_out = near_duplicates(
    [reading.thumbnail for reading in readings], config.data.num_threads
  )
  problems += _odd_masks(readings) + _same_pictures(readings, pairs)
  of_masks = find_in_masks([reading.look for reading in readings])
  if force:
    of_masks = [dataclasses.replace(finding, stops_training=False) for finding in of_masks]
  findings += of_masks + _two_sizes(readings, pairs)
  findings += find_small_splits({split: len(source) for split, source in sources.items()})
  problems += findings
  if left_out:
    what = f"{left_out} pairs of photographs that look alike when small were not compared further"
    problems.append(Problem("not_compared", "", "", what, False))
  problems.sort(key=lambda problem: (not problem.stops_training, problem.kind))
  summary = check_page.summary(config, sources, readings, problems, findings)

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
    forced = {finding.kind for finding in of_masks if finding.stops_training}
    way = f" ({', '.join(sorted(forced))}: only warnings with --force)" if forced else ""
    raise InputError(
      f"{stopping.total()} problem{'s' * (stopping.total() > 1)} would stop training: {counts}; "
      f"{output / PROBLEMS_FILE} says what to do about each{way}"
    )


def short_look(config: ConfigDict, sources: Mapping[str, Source], *, force: bool) -> None:
  """Refuses to train on masks that would make it pointless, as far as a sample of pairs shows it.

  Warns of what is merely odd. Generated pictures are not looked at.

  Args:
    config: resolved; of it only `data` and `seed` are read.
    sources: of the splits that `LOOK_PAIRS` names.
    force: whether to warn of it only.

  Raises:
    InputError: if most masks are wrong, or a pair of the sample cannot be read.
  """
  if config.data.source == "synthetic":
    return
  answers = _read_sample(config, sources)
  found = find_in_masks([answer for answer in answers if isinstance(answer, Look)])
  counts = {split: len(source) for split, source in sources.items()}
  if config.data.source == "folder":
    counts["test"] = len(create_scan(config.data, ("test",)).cases["test"])
  found += find_small_splits(counts)
  stopping = [str(answer) for answer in answers if isinstance(answer, InputError)]
  stopping += [finding.what for finding in found if finding.stops_training]
  for finding in found:
    if not finding.stops_training:
      logger.warning("Of %s: %s", config.data.root, finding.what)
  if stopping and not force:
    raise InputError(
      f"{stopping[0]}; --mode=check lists what is wrong with the whole set, --force trains all the "
      "same"
    )
  for line in stopping:
    logger.warning("%s", line)


def _read_sample(config: ConfigDict, sources: Mapping[str, Source]) -> list[Look | InputError]:
  """Reads pairs at random, as many as `LOOK_PAIRS` says or `LOOK_SECONDS` allows."""
  rng = np.random.default_rng(config.seed)
  places = [
    (split, int(index))
    for split, source in sources.items()
    for index in rng.permutation(len(source))[: LOOK_PAIRS[split]]
  ]
  rng.shuffle(places)  # what is read in time is of both splits

  def look(place: tuple[str, int]) -> Look | InputError:
    split, index = place
    try:
      return look_at(sources[split][index], split)
    except InputError as error:
      return error

  end = time.perf_counter() + LOOK_SECONDS
  answers: list[Look | InputError] = []
  pool = ThreadPoolExecutor(config.data.num_threads)
  try:
    for answer in pool.map(look, places):
      answers.append(answer)
      if time.perf_counter() > end:
        break
  finally:
    pool.shutdown(cancel_futures=True)
  return answers


# The files of each split's cases, where they are files of a folder.
Files = Mapping[str, Sequence[FolderCase]]


def _open(config: ConfigDict) -> tuple[dict[str, Source], Files, list[Problem], list[Problem]]:
  """The splits that can be opened, and problems and findings known without reading a case."""
  sources: dict[str, Source]
  if config.data.source == "folder":
    if config.data.class_column:
      class_names(config.data)  # refuses a column that training could not use
    scan = create_scan(config.data)
    files = {}
    for split, cases in scan.cases.items():
      kept = drawn([case.case_id for case in cases], config.data, split, config.seed)
      files[split] = cases if kept is None else [cases[index] for index in kept]
    problems = [_only_warn_of_test(p) for p in scan.problems] + _hidden_damage(scan)
    sources = {split: FolderSource(cases) for split, cases in files.items()}
    return sources, files, problems, find_other_sizes(scan)
  sources, problems = {}, []
  for split in SPLITS:
    try:
      sources[split] = create_source(config.data, split, config.seed, to_score=False)
    except InputError as error:
      problems.append(_only_warn_of_test(Problem("empty_split", split, split, str(error), True)))
  if not sources:
    raise InputError(problems[0].what)
  return sources, {}, problems, []


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
    small, look = thumbnail(case.image), look_at(case, split)
    return Reading(split, index, case.case_id, height, width, digest.digest(), small, look)

  pool = ThreadPoolExecutor(num_threads)
  try:
    answers = list(
      tqdm(
        pool.map(read, places),
        total=len(places),
        unit="case",
        desc="read",
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
    if _sizes_differ(one, other):
      sizes = f"{one.height}x{one.width} and {other.height}x{other.width}"
      how += f", at two sizes ({sizes}),"
    what = f"{how} as {other.case_id} in {other.split}"
    if one.split != other.split:
      kind = "leakage"
    problems.append(Problem(kind, one.case_id, one.split, what, False))
  return problems


def _sizes_differ(one: Reading, other: Reading) -> bool:
  """Whether two photographs differ in size by more than a crop of a few pixels."""
  larger, smaller = sorted((one.height * one.width, other.height * other.width), reverse=True)
  return larger > 1.5 * smaller


def _two_sizes(readings: Sequence[Reading], pairs: Iterable[Pair]) -> list[Problem]:
  """Warns of a set that holds many of its photographs at two sizes."""
  twice = [p for p in pairs if _sizes_differ(readings[p.first], readings[p.second])]
  smaller = {
    min((p.first, p.second), key=lambda i: readings[i].height * readings[i].width) for p in twice
  }
  if not smaller or len(smaller) < TWO_SIZES * len(readings):
    return []
  what = (
    f"{len(smaller)} of {len(readings)} photographs are smaller copies of others; remove the "
    "smaller ones, or keep both in one split by config.data.group_column"
  )
  return [Problem("two_sizes", "photographs", "", what, False)]
