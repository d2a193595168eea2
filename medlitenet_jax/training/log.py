"""A run's figures on disk, as JSON lines and TensorBoard events."""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from medlitenet_jax.system.devices import is_main_process
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import named_errors, read_text, replace_file

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
  """Appends a run's figures to `metrics.jsonl` and to the TensorBoard events in `events/`."""

  def __init__(self, workdir: Path, resume_step: int, *, validated: bool = True):
    """Opens the log of a run.

    Args:
      workdir: folder of the run.
      resume_step: batches seen so far. Lines of later batches are dropped, since those batches will
        be seen again; so are damaged lines.
      validated: whether the scores after that batch are saved; if not, their line is dropped too.

    Raises:
      InputError: if an earlier log is no text.
      OSError: if the folder cannot be written.
    """
    self._path = workdir / METRICS_FILE
    kept = [
      row
      for row in read_metrics(workdir)
      if row["step"] < resume_step
      or (row["step"] == resume_step and (validated or row["split"] != "val"))
    ]
    replace_file(self._path, "".join(json.dumps(row) + "\n" for row in kept))
    self._file = self._path.open("a", buffering=1, encoding="utf-8", newline="\n")
    # Written by this thread: on a full disk the thread of tensorboardX dies and the loop then waits
    # for it forever. The name has the process in it because two may start within a second.
    self._events = EventsWriter(str(workdir / "events"), filename_suffix=f".{os.getpid()}")
    start = SessionLog(status=SessionLog.START)
    self._events.write_event(Event(step=resume_step + 1, session_log=start))

  def write(
    self,
    *,
    step: int,
    epoch: float,
    split: str,
    figures: Mapping[str, float],
    case_ids: Sequence[str] = (),
  ) -> None:
    """Adds a line.

    Args:
      step: batches seen.
      epoch: epochs done.
      split: "train", "val", or "skipped" for a batch that was skipped.
      figures: numbers by name; one that is not finite is written as null, since JSON has no other
        word for it.
      case_ids: names of the cases of a skipped batch.

    Raises:
      OSError: if the line cannot be written.
    """
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    row: dict[str, Any] = {"step": step, "epoch": round(epoch, 4), "split": split, **finite}
    if case_ids:
      row["case_ids"] = list(case_ids)
    with named_errors(self._path):
      self._file.write(json.dumps(row) + "\n")
      for name, value in figures.items():
        summary = scalar(f"{split}/{name}", value)
        self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
      self._events.flush()

  def close(self) -> None:
    """Writes what is still buffered and closes the files."""
    with named_errors(self._path), contextlib.ExitStack() as stack:
      stack.callback(self._events.close)
      stack.callback(self._file.close)


class NullLog:
  """Takes the place of the log in processes other than 0 and writes nothing."""

  def write(self, **_) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


def open_log(workdir: Path, resume_step: int, *, validated: bool) -> MetricsLog | NullLog:
  """Opens the log of a run in process 0, and one that writes nothing in the others.

  Args:
    workdir: as `MetricsLog` takes it, as are the others.
    resume_step: batches seen so far.
    validated: whether the scores after that batch are saved.
  """
  return MetricsLog(workdir, resume_step, validated=validated) if is_main_process() else NullLog()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """Reads `metrics.jsonl`; damaged lines are left out, and a warning says how many.

  Args:
    workdir: folder of a run.

  Returns:
    A mapping for each line, with "step" (int), "epoch" (float), "split" (text) and the figures,
    where None stands for one that was not finite; an empty list where there is no file.

  Raises:
    InputError: if the file cannot be read as text.
  """
  path = workdir / METRICS_FILE
  if not path.exists():
    return []
  try:
    lines = read_text(path).splitlines()
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read ({error}); restore or remove it") from error
  rows = [row for line in lines if (row := _metrics_row(line)) is not None]
  if len(rows) < len(lines):  # cut off while it was written, or damaged since
    logger.warning("%s: left out %d damaged lines", path, len(lines) - len(rows))
  return rows


def _metrics_row(line: str) -> dict[str, Any] | None:
  """Parses a line; None if `MetricsLog` did not write it like this."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    return None
  if not isinstance(row, dict) or not isinstance(row.get("split"), str):
    return None
  figures = [value for name, value in row.items() if name not in ("split", "case_ids")]
  whole = type(row.get("step")) is int and all(_is_figure(value) for value in figures)
  case_ids = row.get("case_ids", [])
  whole = whole and isinstance(case_ids, list) and all(type(name) is str for name in case_ids)
  return row if whole and _is_figure(row.get("epoch")) and row.get("epoch") is not None else None


def _is_figure(value: Any) -> bool:
  return value is None or type(value) in (int, float)
