"""Checkpoints that a killed process or a power cut left incomplete: named, and moved or mended."""

import json
import logging
import os
import shutil
from pathlib import Path

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file
from medlitenet_jax.training.layout import (
  DAMAGED,
  DESCRIPTION,
  HALF_WRITTEN,
  checkpoint_folder,
  scores_path,
  whole_steps,
)
from medlitenet_jax.training.log import METRICS_FILE, read_metrics

logger = logging.getLogger(__name__)


def repair_checkpoints(workdir: Path) -> None:
  """Makes the checkpoints of a run readable; each change is logged as a warning.

  Half-written checkpoints are deleted, damaged scores are replaced by those in the log, and a
  checkpoint that is damaged otherwise is renamed.

  Args:
    workdir: folder of the run; only one process may repair it.

  Raises:
    InputError: if there are checkpoints and all are damaged. A run that then began anew would
      overwrite its log.
  """
  folder = checkpoint_folder(workdir)
  for path in sorted(folder.glob(f"*{HALF_WRITTEN}*")):
    logger.warning("%s: half-written; removed", path)
    shutil.rmtree(path)
  checkpoints = [folder / str(step) for step in whole_steps(workdir)]
  for path in checkpoints:
    _mend_scores(workdir, path)
  reasons = {path: _damage(path) for path in checkpoints}
  if not checkpoints:
    reasons = dict.fromkeys(sorted(folder.glob(f"*{DAMAGED}")), "damaged")
  if reasons and all(reasons.values()):
    newest, reason = list(reasons.items())[-1]
    raise InputError(
      f"{newest}: cannot be restored ({reason}), nor can any other checkpoint; bring one back from "
      "a copy, or start a new run in another --workdir"
    )
  for path, reason in reasons.items():
    if reason:
      put_aside(path, reason)


def put_aside(checkpoint: Path, reason: str) -> None:
  """Renames a damaged checkpoint and keeps its files, for a person may still recover something.

  Args:
    checkpoint: its folder.
    reason: what is wrong with it, for the log.
  """
  aside = checkpoint.with_name(f"{checkpoint.name}{DAMAGED}")
  shutil.rmtree(aside, ignore_errors=True)
  os.replace(checkpoint, aside)
  logger.warning("%s: damaged (%s); kept as %s", checkpoint, reason, aside.name)


def first_line(error: BaseException) -> str:
  """The first line of an error's message, or the name of its class where it has none."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _mend_scores(workdir: Path, checkpoint: Path) -> None:
  """Replaces damaged scores of a checkpoint by those in the log of the run."""
  path = scores_path(checkpoint)
  reason = _why_not_json(path)
  if not reason:
    return
  for row in read_metrics(workdir):
    scores = {name: row[name] for name in row.keys() - {"step", "epoch", "split"}}
    validated = (row["step"], row["split"]) == (int(checkpoint.name), "val")
    if validated and None not in scores.values():
      replace_file(path, json.dumps(scores))
      logger.warning("%s: damaged (%s); taken from %s", path, reason, METRICS_FILE)


def _damage(checkpoint: Path) -> str:
  """What is wrong with the small files of a checkpoint; "" if nothing is."""
  description = checkpoint / DESCRIPTION
  if not description.exists():
    return f"{description.name} is missing"
  return _why_not_json(description) or _why_not_json(scores_path(checkpoint))


def _why_not_json(path: Path) -> str:
  """Why a file cannot be read as JSON; "" if it can, or does not exist."""
  try:
    json.loads(path.read_text())
  except FileNotFoundError:
    return ""
  except (OSError, ValueError, RecursionError) as error:
    return f"{path.name}: {first_line(error)}"
  return ""
