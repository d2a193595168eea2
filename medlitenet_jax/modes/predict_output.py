"""What predict writes into its folder: pictures and tables, and what earlier calls have done."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from ml_collections import ConfigDict

from medlitenet_jax.data.cases import MASK_SUFFIX
from medlitenet_jax.data.images.image_files import (
  mm_per_pixel,
  read_content,
  write_color,
  write_grey,
  write_mask,
)
from medlitenet_jax.data.images.resize import resize_image, resize_mask
from medlitenet_jax.data.photographs import Photograph, file_name, sha256_of
from medlitenet_jax.data.scales import Scales
from medlitenet_jax.inference.networks import Network, precision_of
from medlitenet_jax.inference.outline import Outline
from medlitenet_jax.pages.outlines import PREDICTION_COLOR, outlined
from medlitenet_jax.pages.pictures import encode_jpeg, shrink_to
from medlitenet_jax.pages.prediction import prediction_page
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.scores.measure import IN_MM
from medlitenet_jax.scores.review import REVIEW_COLUMNS, review_list
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file

SETTINGS_FILE, MEASUREMENTS_FILE = "predict.json", "measurements.csv"
FAILED_FILE, REVIEW_FILE = "failed.csv", "review.csv"
PAGE_FILE = "index.html"
THUMBNAIL_SIDE = 360  # pixels


def settings_of(
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
  names = {
    "masks": f"{case_id}{MASK_SUFFIX}.png",
    "overlays": f"{case_id}.png",
    "uncertainty": f"{case_id}.png",
    "thumbnails": f"{case_id}.jpg",
  }
  return {folder: output / folder / name for folder, name in names.items()}


def _boundary_file(case_id: str, output: Path) -> Path:
  """Path of the picture that only networks with boundary maps give."""
  return output / "boundaries" / f"{case_id}.png"


def rows_of(output: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
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


def refuse_other_names(
  paths: Mapping[Path, str], done: Mapping[str, Mapping[str, Any]], output: Path
) -> None:
  """Refuses a photograph that is done under another name, which would be listed twice."""
  names = {row["photograph"]: name for name, row in done.items()}
  for path, name in paths.items():
    if (before := names.get(file_name(path, name), name)) != name:
      raise InputError(
        f"{path}: {output} has its results by the name {before}, which would now be {name}, "
        "because of photographs that differ in the ending alone; choose another --output"
      )


def is_done(
  path: Path, case_id: str, scales: Scales, done: Mapping[str, Mapping[str, Any]], output: Path
) -> bool:
  """Whether all results of a photograph are there, made from the same file at the same scale.

  Raises:
    InputError: if they are of another photograph.
  """
  row = done.get(case_id)
  if row is None:
    return False
  try:
    content = read_content(path)
    scale = scales.of(file_name(path, case_id), mm_per_pixel(content, path))
  except InputError:  # no longer readable: it is tried again, and listed as failed
    return False
  if row["photograph"] != file_name(path, case_id) or row["sha256"] != sha256_of(content):
    raise InputError(
      f"{path}: {output} has the results of another photograph of that name, {row['photograph']}; "
      "choose another --output"
    )
  if float(row["mm_per_pixel"] or 0) != (_rounded(scale) if scale else 0):
    return False
  files = [*_files_of(case_id, output).values()]
  if (boundary := _boundary_file(case_id, output)).parent.is_dir():
    files.append(boundary)
  return all(file.exists() for file in files)


def write_pictures(photograph: Photograph, found: Outline, rule: MaskRule, output: Path) -> None:
  """Writes mask, overlay, maps and thumbnail of one photograph."""
  view = photograph.view
  height, width = view.shape[:2]
  same = found.mask.shape == (height, width)
  shown = found.mask if same else rule.mask(found.probs, height, width)
  files = _files_of(photograph.case_id, output)
  for file in files.values():
    file.parent.mkdir(parents=True, exist_ok=True)
  write_color(files["overlays"], outlined(view, (shown, PREDICTION_COLOR)))
  small = shrink_to(height, width, THUMBNAIL_SIDE)
  drawn = outlined(resize_image(view, *small), (resize_mask(shown, *small), PREDICTION_COLOR))
  replace_file(files["thumbnails"], encode_jpeg(drawn))
  grey = {files["uncertainty"]: found.entropy}
  if found.boundary is not None:
    grey[_boundary_file(photograph.case_id, output)] = found.boundary
  for file, values in grey.items():
    file.parent.mkdir(parents=True, exist_ok=True)
    write_grey(file, cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR))
  write_mask(files["masks"], found.mask)


def row_of(photograph: Photograph, found: Outline, scale: float | None) -> dict[str, Any]:
  """The row of `measurements.csv` of one photograph; what is not known is empty."""
  return {
    "case_id": photograph.case_id,
    "photograph": file_name(photograph.path, photograph.case_id),
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


def finish(
  output: Path,
  done: Mapping[str, Mapping[str, Any]],
  failed: Sequence[Mapping[str, str]],
  review_below: float,
  likeness_below: float | None,
) -> None:
  """Sorts the table of measurements, and lists what a person should look at and what failed."""
  rows = [done[case_id] for case_id in sorted(done)]
  review = review_list(rows, review_below, likeness_below)
  reasons = {entry["case_id"]: entry["reasons"] for entry in review}
  paths = {name: _files_of(name, Path()) for name in done}
  replace_file(output / PAGE_FILE, prediction_page(rows, reasons, failed, paths))
  if rows:
    tables.write_csv(output / MEASUREMENTS_FILE, rows)
  tables.write_csv(output / REVIEW_FILE, review, REVIEW_COLUMNS)
  tables.write_csv(output / FAILED_FILE, failed, ("photograph", "reason"))
