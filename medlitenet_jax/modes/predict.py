"""Prediction: masks, outlines, uncertainty and measurements of anyone's photographs."""

import collections
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.cases import MASK_SUFFIX
from medlitenet_jax.data.images.image_files import (
  IMAGE_SUFFIXES,
  decode_image,
  find_images,
  read_content,
  refuse_name,
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
from medlitenet_jax.system.files import LONGEST_NAME, TEMPORARY_SUFFIX, claim_folder
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
    case_id: its name without ending.
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

  def __init__(self, paths: Sequence[Path]):
    """Keeps the paths; a file is read when it is indexed."""
    self._paths = paths

  def __len__(self) -> int:
    """Number of files."""
    return len(self._paths)

  def __getitem__(self, index: int) -> Photograph:
    """Reads one photograph."""
    path = self._paths[index]
    try:
      _refuse_long_name(path)
      content = read_content(path)
      image = decode_image(content, path)
    except InputError as error:
      nothing = np.zeros((1, 1, 3), np.uint8)
      return Photograph(index, path.stem, path, nothing, nothing, 1, 1, error=str(error))
    height, width = image.shape[:2]
    scale = min(1.0, VIEW_SIDE / max(height, width))
    view = resize_image(image, max(1, round(height * scale)), max(1, round(width * scale)))
    return Photograph(index, path.stem, path, image, view, height, width, _sha256(content))


def _refuse_long_name(path: Path) -> None:
  longest = LONGEST_NAME - len(f"{MASK_SUFFIX}.png{TEMPORARY_SUFFIX}")
  if len(os.fsencode(path.stem)) > longest:
    raise InputError(
      f"{path}: its name without ending is longer than {longest} bytes, so none of its results can "
      "be named after it; rename it"
    )


def find_photographs(inputs: Sequence[Path]) -> list[Path]:
  """Lists the photographs that files and folders hold, and names other files in the log.

  Args:
    inputs: image files, or folders of them.

  Returns:
    Paths without repetition, in the order given, those of a folder sorted.

  Raises:
    InputError: if an input does not exist, holds no image, or two photographs share a name.
  """
  found: dict[str, Path] = {}
  for given in inputs:
    if given.is_dir():
      paths = list(find_images(given).values())
      others = sorted(path.name for path in set(given.iterdir()).difference(paths))
      if others:
        named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        logger.warning("%s: left out %d that are no image files: %s", given, len(others), named)
    elif not given.exists():
      raise InputError(f"{given}: no such file or folder")
    elif given.suffix.lower() not in IMAGE_SUFFIXES:
      raise InputError(
        f"{given}: not an image file; --input takes a folder, or a file that ends in one of "
        f"{', '.join(IMAGE_SUFFIXES)}"
      )
    else:
      refuse_name(given)
      paths = [given]
    for path in paths:
      if found.setdefault(path.stem, path).resolve() != path.resolve():
        raise InputError(
          f"{path}: {found[path.stem]} has the same name; predict each into an --output of its own"
        )
  folded = collections.Counter(name.casefold() for name in found)
  if alike := sum(count for count in folded.values() if count > 1):
    logger.warning(
      "%d photographs have names that differ in case only; some file systems keep only one of "
      "two such files",
      alike,
    )
  return list(found.values())


def main(call: Call) -> None:
  """Outlines the photographs that the command line names; see `predict`."""
  begin(call, call.output, weights=True, inputs=True)
  if call.mm_per_pixel is not None and not 0 < call.mm_per_pixel < float("inf"):
    raise InputError(f"--mm_per_pixel is {call.mm_per_pixel!r}; it takes a number above 0")
  config, networks = open_networks(call)
  paths = find_photographs(call.inputs)
  threshold = config.eval.threshold or read_threshold(networks, config, call.workdir)
  rule = mask_rule(config.eval, threshold)
  predict(config, networks, rule, paths, call.output, call.mm_per_pixel)


def predict(
  config: ConfigDict,
  networks: Sequence[Network],
  rule: MaskRule,
  paths: Sequence[Path],
  output: Path,
  mm_per_pixel: float | None = None,
) -> None:
  """Outlines the lesions in photographs; a second call goes on where the first stopped.

  Args:
    config: resolved; `eval`, `data` and `preprocess` are used.
    networks: one, or the members of an ensemble with weights of sum 1.
    rule: makes the masks.
    paths: of the photographs, as `find_photographs` gives them.
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
    record_start(output)
    _predict_rest(config, networks, rule, mm_per_pixel, paths, output)


def _predict_rest(
  config: ConfigDict,
  networks: Sequence[Network],
  rule: MaskRule,
  mm_per_pixel: float | None,
  paths: Sequence[Path],
  output: Path,
) -> None:
  """Outlines the photographs that earlier calls have left; the folder must be locked."""
  done, failed_before = _rows_of(output)
  left = [path for path in paths if not _is_done(path, done, output)]
  if len(left) < len(paths):
    logger.info("%s: %d of %d were done before.", output, len(paths) - len(left), len(paths))

  failed: list[dict[str, str]] = []
  for photograph, probs, disagreement in _predicted(config, networks, left):
    if photograph.error:
      failed.append({"photograph": str(photograph.path), "reason": photograph.error})
      tqdm.write(photograph.error)
      continue
    size = photograph.height, photograph.width
    found = outline_of_maps(probs, disagreement, *size, rule, mm_per_pixel)
    _write_pictures(photograph, found, rule, output)
    row = _row(photograph, found)
    tables.append_csv(output / MEASUREMENTS_FILE, row)
    done[photograph.case_id] = row
  asked = {path.stem for path in paths}
  others = [row for row in failed_before if Path(row["photograph"]).stem not in asked]
  _finish(output, done, [*others, *failed], config.eval.review_below)
  logger.info("Outlined %d of %d photographs: %s", len(paths) - len(failed), len(paths), output)
  if failed:
    names = [Path(row["photograph"]).name for row in failed]
    named = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise InputError(
      f"{len(failed)} of {len(paths)} photographs could not be read: {named}; the reasons are in "
      f"{output / FAILED_FILE}, the other {len(paths) - len(failed)} are done"
    )


def _predicted(config: ConfigDict, networks: Sequence[Network], paths: Sequence[Path]) -> Iterable:
  """The photographs with their maps, under a progress bar."""
  if not paths:
    return []
  with config.unlocked():  # a row that only fills a batch costs as much as a photograph
    config.eval.batch_size = min(config.eval.batch_size, len(paths))
  cases = predict_cases(
    create_predict(networks, config.eval.tta),
    PhotographSource(paths),
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


def _is_done(path: Path, done: Mapping[str, Mapping[str, Any]], output: Path) -> bool:
  row = done.get(path.stem)
  if row is None:
    return False
  try:
    content = read_content(path)
  except InputError:  # no longer readable: it is tried again, and listed as failed
    return False
  if row["photograph"] != path.name or row["sha256"] != _sha256(content):
    raise InputError(
      f"{path}: {output} has the results of another photograph of that name, {row['photograph']}; "
      "choose another --output"
    )
  return all(file.exists() for file in _files_of(path.stem, output).values())


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _write_pictures(photograph: Photograph, found: Outline, rule: MaskRule, output: Path) -> None:
  """Writes mask, overlay and map of uncertainty of one photograph."""
  view = photograph.view
  height, width = view.shape[:2]
  same = found.mask.shape == (height, width)
  shown = found.mask if same else rule.mask(found.probs, height, width)
  files = _files_of(photograph.case_id, output)
  write_color(files["overlays"], outlined(view, shown, PREDICTION_COLOR))
  enlarged = cv2.resize(found.entropy, (width, height), interpolation=cv2.INTER_LINEAR)
  write_grey(files["uncertainty"], enlarged)
  write_mask(files["masks"], found.mask)


def _row(photograph: Photograph, found: Outline) -> dict[str, Any]:
  """The row of `measurements.csv` of one photograph."""
  return {
    "case_id": photograph.case_id,
    "photograph": photograph.path.name,
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
