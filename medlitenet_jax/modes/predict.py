"""Prediction: masks, outlines, uncertainty and measurements of anyone's photographs."""

import collections
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.cases import MASK_SUFFIX
from medlitenet_jax.data.images.gather import gather
from medlitenet_jax.data.images.image_files import (
  decode_image,
  mm_per_pixel,
  read_content,
  write_color,
  write_grey,
  write_mask,
)
from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.data.scales import Scales, read_scales
from medlitenet_jax.inference.networks import (
  Network,
  create_predict,
  lowest_likeness_bound,
  precision_of,
)
from medlitenet_jax.inference.outline import Outline, mask_rule, outline_of_maps
from medlitenet_jax.inference.stream import predict_cases
from medlitenet_jax.inference.threshold import read_threshold
from medlitenet_jax.modes.call import Call, begin
from medlitenet_jax.modes.opening import open_networks
from medlitenet_jax.pages.outlines import PREDICTION_COLOR, outlined
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.scores.measure import IN_MM
from medlitenet_jax.scores.review import REVIEW_COLUMNS, review_list
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import (
  LONGEST_NAME,
  TEMPORARY_SUFFIX,
  claim_folder,
  fixed_part,
)
from medlitenet_jax.system.lock import lock_folder
from medlitenet_jax.system.starts import record_start

logger = logging.getLogger(__name__)

SETTINGS_FILE, MEASUREMENTS_FILE = "predict.json", "measurements.csv"
FAILED_FILE, REVIEW_FILE = "failed.csv", "review.csv"
VIEW_SIDE = 2048  # pixels; overlays and maps of larger photographs are reduced to it


@dataclasses.dataclass(frozen=True)
class Photograph:
  """A photograph to be outlined.

  Attributes:
    index: place in its source.
    case_id: its place below the folder that was given, with / between folders, without ending
      unless another photograph differs in that alone.
    path: of its file.
    image: [H, W, 3] uint8 as read; `predict_cases` replaces it by one of the network's size. One
      black pixel where it cannot be read.
    view: the same with the longer side at most `VIEW_SIDE`, for the overlay.
    height: of the photograph itself, in pixels.
    width: of the photograph itself, in pixels.
    stated_mm: side of a pixel in mm, as its file states it, or None.
    sha256: of its file, hexadecimal; empty where it cannot be read.
    error: why it cannot be read; empty where it can.
  """

  index: int
  case_id: str
  path: Path
  image: np.ndarray
  view: np.ndarray
  height: int
  width: int
  stated_mm: float | None = None
  sha256: str = ""
  error: str = ""


class PhotographSource:
  """Photographs in files; one that cannot be read has the reason in `error`."""

  def __init__(self, paths: Sequence[Path], case_ids: Mapping[Path, str]):
    """Keeps the paths, and their names in the results; a file is read when it is indexed."""
    self._paths, self._case_ids = paths, case_ids

  def __len__(self) -> int:
    """Number of files."""
    return len(self._paths)

  def __getitem__(self, index: int) -> Photograph:
    """Reads one photograph."""
    path = self._paths[index]
    case_id = self._case_ids[path]
    try:
      _refuse_long_name(path, case_id)
      content = read_content(path)
      image, stated = decode_image(content, path), mm_per_pixel(content, path)
    except InputError as error:
      nothing = np.zeros((1, 1, 3), np.uint8)
      return Photograph(index, case_id, path, nothing, nothing, 1, 1, error=str(error))
    height, width = image.shape[:2]
    scale = min(1.0, VIEW_SIDE / max(height, width))
    view = resize_image(image, max(1, round(height * scale)), max(1, round(width * scale)))
    return Photograph(index, case_id, path, image, view, height, width, stated, _sha256(content))


def _refuse_long_name(path: Path, case_id: str) -> None:
  longest = LONGEST_NAME - len(f"{MASK_SUFFIX}.png{TEMPORARY_SUFFIX}")
  if len(os.fsencode(PurePosixPath(case_id).name)) > longest:
    raise InputError(
      f"{path}: its name is longer than {longest} bytes, so none of its results can be named after "
      "it; rename it"
    )


def names_of(places: Mapping[Path, PurePath]) -> dict[Path, str]:
  """The names of photographs in the results.

  Args:
    places: of the photographs, as `gather` gives them.

  Returns:
    The place of each without ending, with / between folders. Of files that differ in the ending
    alone, it is the whole place of each.

  Raises:
    InputError: if two would still have one name.
  """
  count = collections.Counter(place.with_suffix("") for place in places.values())
  found: dict[str, Path] = {}
  for path, place in places.items():
    bare = place.with_suffix("")
    name = (bare if count[bare] == 1 else place).as_posix()
    if found.setdefault(name, path) is not path:
      raise InputError(
        f"{path}: its results would have the name of those of {found[name]}; rename one of the two"
      )
  return {path: name for name, path in found.items()}


def find_photographs(inputs: Sequence[Path]) -> dict[Path, str]:
  """Lists the photographs that files, folders and patterns stand for; see `gather`.

  Args:
    inputs: image files, folders, or patterns.

  Returns:
    {path: name in the results}, in the order given, those of a folder sorted; see `names_of`.

  Raises:
    InputError: if an input does not exist, holds no image, or two photographs share a name with
      its ending.
  """
  paths = names_of(gather(inputs, SETTINGS_FILE))
  folded = collections.Counter(name.casefold() for name in paths.values())
  if alike := sum(count for count in folded.values() if count > 1):
    logger.warning(
      "%d photographs have names that differ in case only; some file systems keep only one of "
      "two such files",
      alike,
    )
  return paths


def main(call: Call) -> None:
  """Outlines the photographs that the command line names; see `predict`."""
  begin(call, call.output, weights=True, inputs=True)
  scales = read_scales(call.mm_per_pixel)
  config, networks = open_networks(call)
  paths = find_photographs(call.inputs)
  _question_output(call.inputs, call.output)
  threshold = config.eval.threshold or read_threshold(networks, config, call.workdir)
  rule = mask_rule(config.eval, threshold)
  predict(config, networks, rule, paths, call.output, scales)


def _question_output(inputs: Sequence[Path], output: Path) -> None:
  """Warns of results among the photographs, where a person may take them for photographs."""
  for given in inputs:
    if output.resolve().is_relative_to(fixed_part(given).resolve()):
      logger.warning(
        "--output=%s lies in --input=%s; later calls leave it out, but a folder of its own is "
        "clearer",
        *(output, given),
      )


def predict(
  config: ConfigDict,
  networks: Sequence[Network],
  rule: MaskRule,
  paths: Mapping[Path, str],
  output: Path,
  scales: Scales | None = None,
) -> None:
  """Outlines the lesions in photographs; a second call goes on where the first stopped.

  Args:
    config: resolved; `eval`, `data` and `preprocess` are used.
    networks: one, or the members of an ensemble with weights of sum 1.
    rule: makes the masks.
    paths: of the photographs, with their names, as `find_photographs` gives them.
    output: receives `masks/ID_segmentation.png` at each photograph's own size, `overlays/ID.png`,
      `uncertainty/ID.png` (black 0, white 1 bit), `measurements.csv`, `review.csv` with what a
      person should look at, and `failed.csv` with what could not be read.
    scales: of the photographs, or None if none is known but what their files state.

  Raises:
    InputError: if nothing can be predicted, if `output` was made with other settings or another
      process writes to it, and, once all others are done, if a photograph could not be read.
  """
  scales = scales or Scales()
  settings = _settings(config, networks, rule, scales)
  notes = {"runs": [network.origin["run"] for network in networks]}
  claim_folder(output, SETTINGS_FILE, settings, "--output")
  with lock_folder(output, "is predicting into it", "--output"):
    # Again: another process may have written to it between the first check and the lock.
    claim_folder(output, SETTINGS_FILE, settings, "--output", notes)
    _predict_rest(config, networks, rule, scales, paths, output)


def _predict_rest(
  config: ConfigDict,
  networks: Sequence[Network],
  rule: MaskRule,
  scales: Scales,
  paths: Mapping[Path, str],
  output: Path,
) -> None:
  """Outlines the photographs that earlier calls have left; the folder must be locked."""
  done, failed_before = _rows_of(output)
  _refuse_other_names(paths, done, output)
  left = [path for path in paths if not _is_done(path, paths[path], scales, done, output)]
  if len(left) < len(paths):
    logger.info("%s: %d of %d were done before.", output, len(paths) - len(left), len(paths))

  record_start(output)
  failed: list[dict[str, str]] = []
  source = PhotographSource(left, paths)
  for photograph, maps in _predicted(config, networks, source):
    if photograph.error:
      failed.append({"photograph": str(photograph.path), "reason": photograph.error})
      tqdm.write(photograph.error)
      continue
    size = photograph.height, photograph.width
    scale = scales.of(_file_of(photograph.path, photograph.case_id), photograph.stated_mm)
    found = outline_of_maps(maps, *size, rule, scale)
    _write_pictures(photograph, found, rule, output)
    row = _row(photograph, found, scale)
    tables.append_csv(output / MEASUREMENTS_FILE, row)
    done[photograph.case_id] = row
  asked = {path.resolve() for path in paths}
  others = [row for row in failed_before if Path(row["photograph"]).resolve() not in asked]
  bounds = config.eval.review_below, lowest_likeness_bound(networks)
  _finish(output, done, [*others, *failed], *bounds)
  _count_without_scale([done[name] for name in paths.values() if name in done], scales)
  logger.info("Outlined %d of %d photographs: %s", len(paths) - len(failed), len(paths), output)
  if failed:
    names = [Path(row["photograph"]).name for row in failed]
    named = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise InputError(
      f"{len(failed)} of {len(paths)} photographs could not be read: {named}; the reasons are in "
      f"{output / FAILED_FILE}, the other {len(paths) - len(failed)} are done"
    )


def _count_without_scale(rows: Sequence[Mapping[str, Any]], scales: Scales) -> None:
  """Says how many photographs have no scale, where others have one or were to have one."""
  without = sum(not row["mm_per_pixel"] for row in rows)
  if without and (without < len(rows) or scales.by_name is not None):
    logger.warning(
      "%d of %d photographs have no scale and are measured in pixels alone.", without, len(rows)
    )


def _predicted(
  config: ConfigDict, networks: Sequence[Network], source: PhotographSource
) -> Iterable:
  """The photographs with their maps, under a progress bar."""
  if not len(source):
    return []
  with config.unlocked():  # a row that only fills a batch costs as much as a photograph
    config.eval.batch_size = min(config.eval.batch_size, len(source))
  cases = predict_cases(
    create_predict(networks, config.eval.tta),
    source,
    [network.image_size for network in networks],
    config,
  )
  return tqdm(cases, total=len(source), unit="photograph", desc="predict", dynamic_ncols=True)


def _settings(
  config: ConfigDict, networks: Sequence[Network], rule: MaskRule, scales: Scales
) -> dict[str, Any]:
  """The settings that two calls must share for their results to stand in one table.

  The path of a network is not among them, for it may be moved, unless it has no validation scores
  that tell it from others.
  """
  return {
    "networks": [
      {
        **{k: v for k, v in n.origin.items() if k != "run"},
        **({} if n.origin["validation"] else {"run": str(Path(n.origin["run"]).resolve())}),
        "weight": float(n.weight),
      }
      for n in networks
    ],
    "test_time_augmentation": config.eval.tta,
    "threshold": rule.threshold,
    "hysteresis_low": rule.low,
    "postprocessing": list(rule.steps),
    "precision": precision_of(networks),
    # A table may gain rows, so the scale that was used stands in the row of each photograph.
    "mm_per_pixel": "by photograph" if scales.by_name is not None else scales.every,
  }


def _files_of(case_id: str, output: Path) -> dict[str, Path]:
  """Paths of the pictures of a photograph, by the name of their folder."""
  names = {"masks": f"{case_id}{MASK_SUFFIX}.png"}
  return {
    folder: output / folder / names.get(folder, f"{case_id}.png")
    for folder in ("masks", "overlays", "uncertainty")
  }


def _rows_of(output: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
  """Makes the folders of pictures; returns what earlier calls have measured, and what failed."""
  for path in _files_of("any", output).values():
    path.parent.mkdir(exist_ok=True)
  rows = tables.read_csv(output / MEASUREMENTS_FILE)
  if rows:  # the reader drops a last line that was cut off
    tables.write_csv(output / MEASUREMENTS_FILE, rows)
  else:
    (output / MEASUREMENTS_FILE).unlink(missing_ok=True)
  try:
    for row in rows:
      float(row["confidence"]), float(row["area_px"]), int(row["touches_frame"])
      int(row["regions"]), float(row["frame_share"]), float(row["mm_per_pixel"] or 0)
      float(row["likeness"] or 0), row["photograph"], row["sha256"]
    done = {row["case_id"]: row for row in rows}
  except (KeyError, ValueError) as error:
    raise InputError(
      f"{output / MEASUREMENTS_FILE}: not as predict writes it ({error}); restore it, or choose "
      "another --output"
    ) from error
  failed = tables.read_csv(output / FAILED_FILE)
  if any(row.keys() != {"photograph", "reason"} for row in failed):
    raise InputError(f"{output / FAILED_FILE}: not as predict writes it; restore or remove it")
  return done, failed


def _file_of(path: Path, case_id: str) -> str:
  """The file of a photograph as the tables name it: below the folder that was given."""
  return str(PurePosixPath(case_id).with_name(path.name))


def _refuse_other_names(
  paths: Mapping[Path, str], done: Mapping[str, Mapping[str, Any]], output: Path
) -> None:
  """Refuses a photograph that is done under another name, which would be listed twice."""
  names = {row["photograph"]: name for name, row in done.items()}
  for path, name in paths.items():
    if (before := names.get(_file_of(path, name), name)) != name:
      raise InputError(
        f"{path}: {output} has its results by the name {before}, which would now be {name}, "
        "because of photographs that differ in the ending alone; choose another --output"
      )


def _is_done(
  path: Path, case_id: str, scales: Scales, done: Mapping[str, Mapping[str, Any]], output: Path
) -> bool:
  row = done.get(case_id)
  if row is None:
    return False
  try:
    content = read_content(path)
    scale = scales.of(_file_of(path, case_id), mm_per_pixel(content, path))
  except InputError:  # no longer readable: it is tried again, and listed as failed
    return False
  if row["photograph"] != _file_of(path, case_id) or row["sha256"] != _sha256(content):
    raise InputError(
      f"{path}: {output} has the results of another photograph of that name, {row['photograph']}; "
      "choose another --output"
    )
  if float(row["mm_per_pixel"] or 0) != (_rounded(scale) if scale else 0):
    return False
  return all(file.exists() for file in _files_of(case_id, output).values())


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _write_pictures(photograph: Photograph, found: Outline, rule: MaskRule, output: Path) -> None:
  """Writes mask, overlay and map of uncertainty of one photograph."""
  view = photograph.view
  height, width = view.shape[:2]
  same = found.mask.shape == (height, width)
  shown = found.mask if same else rule.mask(found.probs, height, width)
  files = _files_of(photograph.case_id, output)
  for file in files.values():
    file.parent.mkdir(parents=True, exist_ok=True)
  write_color(files["overlays"], outlined(view, shown, PREDICTION_COLOR))
  enlarged = cv2.resize(found.entropy, (width, height), interpolation=cv2.INTER_LINEAR)
  write_grey(files["uncertainty"], enlarged)
  write_mask(files["masks"], found.mask)


def _row(photograph: Photograph, found: Outline, scale: float | None) -> dict[str, Any]:
  """The row of `measurements.csv` of one photograph; what is not known is empty."""
  return {
    "case_id": photograph.case_id,
    "photograph": _file_of(photograph.path, photograph.case_id),
    "sha256": photograph.sha256,
    "height": photograph.height,
    "width": photograph.width,
    "confidence": round(found.confidence, 4),
    "likeness": None if found.likeness is None else round(found.likeness, 4),
    "mean_entropy": round(float(found.entropy.mean()), 5),
    "mean_disagreement": round(float(found.disagreement.mean()), 5),
    **{name: _rounded(value) for name, value in found.measurements.items() if name not in IN_MM},
    "mm_per_pixel": _rounded(scale),
    **{name: _rounded(found.measurements.get(name)) for name in IN_MM},
  }


def _rounded(value):
  return float(f"{value:.6g}") if isinstance(value, float) else value


def _finish(
  output: Path,
  done: Mapping[str, Mapping[str, Any]],
  failed: Sequence[Mapping[str, str]],
  review_below: float,
  likeness_below: float | None,
) -> None:
  """Sorts the table of measurements, and lists what a person should look at and what failed."""
  rows = [done[case_id] for case_id in sorted(done)]
  review = review_list(rows, review_below, likeness_below)
  if rows:
    tables.write_csv(output / MEASUREMENTS_FILE, rows)
  tables.write_csv(output / REVIEW_FILE, review, REVIEW_COLUMNS)
  tables.write_csv(output / FAILED_FILE, failed, ("photograph", "reason"))
