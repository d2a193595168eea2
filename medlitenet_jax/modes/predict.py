"""Prediction: masks, outlines, uncertainty and measurements of anyone's photographs."""

import collections
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.cases import MASK_SUFFIX
from medlitenet_jax.data.images.gather import gather
from medlitenet_jax.data.images.image_files import (
  decode_image,
  read_content,
  same_name,
  write_color,
  write_grey,
  write_mask,
)
from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.inference.networks import Network, create_predict, precision_of
from medlitenet_jax.inference.outline import Outline, mask_rule, outline_of_maps
from medlitenet_jax.inference.stream import predict_cases
from medlitenet_jax.inference.threshold import read_threshold
from medlitenet_jax.modes.call import Call, begin
from medlitenet_jax.modes.opening import open_networks
from medlitenet_jax.pages.outlines import PREDICTION_COLOR, outlined
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.scores.review import review_list
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import (
  LONGEST_NAME,
  TEMPORARY_SUFFIX,
  claim_folder,
  fixed_part,
)
from medlitenet_jax.system.lock import lock_folder
from medlitenet_jax.system.rules import Rule
from medlitenet_jax.system.starts import record_start

logger = logging.getLogger(__name__)

SETTINGS_FILE, MEASUREMENTS_FILE = "predict.json", "measurements.csv"
FAILED_FILE, REVIEW_FILE = "failed.csv", "review.csv"
# Of a number in --mm_per_pixel: another is a slip, as of µm for mm, and all measurements with it.
SCALE = Rule(
  lambda value: 0.001 <= value <= 1,
  "the side of a pixel in mm, from 0.001 to 1 (20 µm are 0.02; a dermoscope has 0.005 to 0.1)",
)
VIEW_SIDE = 2048  # pixels; overlays and maps of larger photographs are reduced to it


@dataclasses.dataclass(frozen=True)
class Photograph:
  """A photograph to be outlined.

  Attributes:
    index: place in its source.
    case_id: its place below the folder that was given, without ending, with / between folders.
    path: of its file.
    image: [H, W, 3] uint8 as read; `predict_cases` replaces it by one of the network's size. One
      black pixel where it cannot be read.
    view: the same with the longer side at most `VIEW_SIDE`, for the overlay.
    height: of the photograph itself, in pixels.
    width: of the photograph itself, in pixels.
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
      _refuse_long_name(path)
      content = read_content(path)
      image = decode_image(content, path)
    except InputError as error:
      nothing = np.zeros((1, 1, 3), np.uint8)
      return Photograph(index, case_id, path, nothing, nothing, 1, 1, error=str(error))
    height, width = image.shape[:2]
    scale = min(1.0, VIEW_SIDE / max(height, width))
    view = resize_image(image, max(1, round(height * scale)), max(1, round(width * scale)))
    return Photograph(index, case_id, path, image, view, height, width, _sha256(content))


def _refuse_long_name(path: Path) -> None:
  longest = LONGEST_NAME - len(f"{MASK_SUFFIX}.png{TEMPORARY_SUFFIX}")
  if len(os.fsencode(path.stem)) > longest:
    raise InputError(
      f"{path}: its name without ending is longer than {longest} bytes, so none of its results can "
      "be named after it; rename it"
    )


def find_photographs(inputs: Sequence[Path]) -> dict[Path, str]:
  """Lists the photographs that files, folders and patterns stand for; see `gather`.

  Args:
    inputs: image files, folders, or patterns.

  Returns:
    {path: name in the results}, in the order given, those of a folder sorted.

  Raises:
    InputError: if an input does not exist, holds no image, or two photographs share a name.
  """
  found: dict[str, Path] = {}
  for path, place in gather(inputs, SETTINGS_FILE).items():
    name = place.with_suffix("").as_posix()
    if found.setdefault(name, path) is not path:
      raise InputError(same_name(found[name], path))
  folded = collections.Counter(name.casefold() for name in found)
  if alike := sum(count for count in folded.values() if count > 1):
    logger.warning(
      "%d photographs have names that differ in case only; some file systems keep only one of "
      "two such files",
      alike,
    )
  return {path: name for name, path in found.items()}


def main(call: Call) -> None:
  """Outlines the photographs that the command line names; see `predict`."""
  begin(call, call.output, weights=True, inputs=True)
  if call.mm_per_pixel is not None:
    SCALE.check("--mm_per_pixel", call.mm_per_pixel)
  config, networks = open_networks(call)
  paths = find_photographs(call.inputs)
  _question_output(call.inputs, call.output)
  threshold = config.eval.threshold or read_threshold(networks, config, call.workdir)
  rule = mask_rule(config.eval, threshold)
  predict(config, networks, rule, paths, call.output, call.mm_per_pixel)


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
  mm_per_pixel: float | None = None,
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
    mm_per_pixel: side of a pixel on the skin, above 0, or None if it is not known.

  Raises:
    InputError: if nothing can be predicted, if `output` was made with other settings or another
      process writes to it, and, once all others are done, if a photograph could not be read.
  """
  settings = _settings(config, networks, rule, mm_per_pixel)
  notes = {"runs": [network.origin["run"] for network in networks]}
  claim_folder(output, SETTINGS_FILE, settings, "--output")
  with lock_folder(output, "is predicting into it", "--output"):
    # Again: another process may have written to it between the first check and the lock.
    claim_folder(output, SETTINGS_FILE, settings, "--output", notes)
    _predict_rest(config, networks, rule, mm_per_pixel, paths, output)


def _predict_rest(
  config: ConfigDict,
  networks: Sequence[Network],
  rule: MaskRule,
  mm_per_pixel: float | None,
  paths: Mapping[Path, str],
  output: Path,
) -> None:
  """Outlines the photographs that earlier calls have left; the folder must be locked."""
  done, failed_before = _rows_of(output)
  left = {path: name for path, name in paths.items() if not _is_done(path, name, done, output)}
  if len(left) < len(paths):
    logger.info("%s: %d of %d were done before.", output, len(paths) - len(left), len(paths))

  record_start(output)
  failed: list[dict[str, str]] = []
  for photograph, maps in _predicted(config, networks, left):
    if photograph.error:
      failed.append({"photograph": str(photograph.path), "reason": photograph.error})
      tqdm.write(photograph.error)
      continue
    size = photograph.height, photograph.width
    found = outline_of_maps(maps, *size, rule, mm_per_pixel)
    _write_pictures(photograph, found, rule, output)
    row = _row(photograph, found)
    tables.append_csv(output / MEASUREMENTS_FILE, row)
    done[photograph.case_id] = row
  asked = {path.resolve() for path in paths}
  others = [row for row in failed_before if Path(row["photograph"]).resolve() not in asked]
  _finish(output, done, [*others, *failed], config.eval.review_below)
  logger.info("Outlined %d of %d photographs: %s", len(paths) - len(failed), len(paths), output)
  if failed:
    names = [Path(row["photograph"]).name for row in failed]
    named = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise InputError(
      f"{len(failed)} of {len(paths)} photographs could not be read: {named}; the reasons are in "
      f"{output / FAILED_FILE}, the other {len(paths) - len(failed)} are done"
    )


def _predicted(
  config: ConfigDict, networks: Sequence[Network], paths: Mapping[Path, str]
) -> Iterable:
  """The photographs with their maps, under a progress bar."""
  if not paths:
    return []
  with config.unlocked():  # a row that only fills a batch costs as much as a photograph
    config.eval.batch_size = min(config.eval.batch_size, len(paths))
  cases = predict_cases(
    create_predict(networks, config.eval.tta),
    PhotographSource(list(paths), paths),
    [network.image_size for network in networks],
    config,
  )
  return tqdm(cases, total=len(paths), unit="photograph", desc="predict", dynamic_ncols=True)


def _settings(
  config: ConfigDict, networks: Sequence[Network], rule: MaskRule, mm_per_pixel: float | None
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
    "mm_per_pixel": mm_per_pixel,
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
      int(row["regions"]), float(row["frame_share"])
      row["photograph"], row["sha256"]
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


def _is_done(path: Path, case_id: str, done: Mapping[str, Mapping[str, Any]], output: Path) -> bool:
  row = done.get(case_id)
  if row is None:
    return False
  try:
    content = read_content(path)
  except InputError:  # no longer readable: it is tried again, and listed as failed
    return False
  if row["photograph"] != _file_of(path, case_id) or row["sha256"] != _sha256(content):
    raise InputError(
      f"{path}: {output} has the results of another photograph of that name, {row['photograph']}; "
      "choose another --output"
    )
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


def _row(photograph: Photograph, found: Outline) -> dict[str, Any]:
  """The row of `measurements.csv` of one photograph."""
  return {
    "case_id": photograph.case_id,
    "photograph": _file_of(photograph.path, photograph.case_id),
    "sha256": photograph.sha256,
    "height": photograph.height,
    "width": photograph.width,
    "confidence": round(found.confidence, 4),
    "mean_entropy": round(float(found.entropy.mean()), 5),
    "mean_disagreement": round(float(found.disagreement.mean()), 5),
    **{name: _rounded(value) for name, value in found.measurements.items()},
  }


def _rounded(value):
  return float(f"{value:.6g}") if isinstance(value, float) else value


def _finish(
  output: Path,
  done: Mapping[str, Mapping[str, Any]],
  failed: Sequence[Mapping[str, str]],
  review_below: float,
) -> None:
  """Sorts the table of measurements, and lists what a person should look at and what failed."""
  rows = [done[case_id] for case_id in sorted(done)]
  review = review_list(rows, review_below)
  if rows:
    tables.write_csv(output / MEASUREMENTS_FILE, rows)
  tables.write_csv(output / REVIEW_FILE, review, ("case_id", "confidence", "reasons"))
  tables.write_csv(output / FAILED_FILE, failed, ("photograph", "reason"))
