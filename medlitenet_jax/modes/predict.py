"""Prediction: masks, outlines, uncertainty and measurements of anyone's photographs."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.photographs import PhotographSource, file_name, find_photographs
from medlitenet_jax.data.scales import Scales, read_scales
from medlitenet_jax.inference.networks import Network, create_predict, lowest_likeness_bound
from medlitenet_jax.inference.outline import mask_rule, outline_of_maps
from medlitenet_jax.inference.stream import predict_cases
from medlitenet_jax.inference.threshold import read_threshold
from medlitenet_jax.modes.call import Call, begin
from medlitenet_jax.modes.opening import open_networks
from medlitenet_jax.modes.predict_output import (
  FAILED_FILE,
  MEASUREMENTS_FILE,
  SETTINGS_FILE,
  finish,
  is_done,
  refuse_other_names,
  row_of,
  rows_of,
  settings_of,
  write_pictures,
)
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.system import limits, tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import claim_folder, fixed_part
from medlitenet_jax.system.lock import lock_folder
from medlitenet_jax.system.starts import record_start

logger = logging.getLogger(__name__)

# What is written for a photograph, nearly all of it the overlay, which is a PNG, takes eleven times
# the bytes of its JPEG file for ISIC 2018 and five for files of the highest quality. Whoever has
# room must not be refused.
GROWTH_OF_JPEG = 4


def main(call: Call) -> None:
  """Outlines the photographs that the command line names; see `predict`."""
  begin(call, call.output, weights=True, inputs=True)
  scales = read_scales(call.mm_per_pixel)
  config, networks = open_networks(call)
  paths = find_photographs(call.inputs, SETTINGS_FILE)
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
  settings = settings_of(config, networks, rule, scales)
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
  done, failed_before = rows_of(output)
  refuse_other_names(paths, done, output)
  left = [path for path in paths if not is_done(path, paths[path], scales, done, output)]
  if len(left) < len(paths):
    logger.info("%s: %d of %d were done before.", output, len(paths) - len(left), len(paths))

  _refuse_without_room(left, output)
  record_start(output)
  failed: list[dict[str, str]] = []
  source = PhotographSource(left, paths)
  for photograph, maps in _predicted(config, networks, source):
    if photograph.error:
      failed.append({"photograph": str(photograph.path), "reason": photograph.error})
      tqdm.write(photograph.error)
      continue
    size = photograph.height, photograph.width
    scale = scales.of(file_name(photograph.path, photograph.case_id), photograph.stated_mm)
    found = outline_of_maps(maps, *size, rule, scale)
    write_pictures(photograph, found, rule, output)
    row = row_of(photograph, found, scale)
    tables.append_csv(output / MEASUREMENTS_FILE, row)
    done[photograph.case_id] = row
  asked = {path.resolve() for path in paths}
  others = [row for row in failed_before if Path(row["photograph"]).resolve() not in asked]
  bounds = config.eval.review_below, lowest_likeness_bound(networks)
  finish(output, done, [*others, *failed], *bounds)
  _count_without_scale([done[name] for name in paths.values() if name in done], scales)
  logger.info("Outlined %d of %d photographs: %s", len(paths) - len(failed), len(paths), output)
  if failed:
    names = [Path(row["photograph"]).name for row in failed]
    named = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise InputError(
      f"{len(failed)} of {len(paths)} photographs could not be read: {named}; the reasons are in "
      f"{output / FAILED_FILE}, the other {len(paths) - len(failed)} are done"
    )


def _refuse_without_room(paths: Sequence[Path], output: Path) -> None:
  """Refuses photographs whose pictures will not fit on the disk.

  Raises:
    InputError: says how much room they need at least.
  """
  sizes = ((path.suffix.lower(), path.stat().st_size) for path in paths)
  limits.refuse_more_than(
    limits.free_disk(output),
    sum(size * (GROWTH_OF_JPEG if suffix in (".jpg", ".jpeg") else 1) for suffix, size in sizes),
    f"{output}: the pictures of {len(paths)} photographs take at least",
    of="of the disk",
    instead="make room, choose another --output, or outline fewer at a time",
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
