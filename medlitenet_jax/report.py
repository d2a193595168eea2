"""A run's figures on disk: JSON lines, TensorBoard events and tables."""

import contextlib
import csv
import io
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

METRICS_FILE = "metrics.jsonl"
TEMPORARY_SUFFIX = ".tmp"


def replace_file(path: Path, text: str) -> None:
  """Writes a text file that is whole at any instant: as it was, or as it will be."""
  temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
  try:
    temporary.write_text(text)
    os.replace(temporary, path)
  except OSError:  # a full disk needs no half-written file beside the old one
    temporary.unlink(missing_ok=True)
    raise


class MetricsLog:
  """Appends a run's figures to `metrics.jsonl` and to TensorBoard's events."""

  def __init__(self, workdir: Path, resume_step: int, *, validated: bool = True):
    """Opens the log of a run.

    Args:
      workdir: folder of the run.
      resume_step: batches seen so far; lines past that come from batches that will be seen again
        and are dropped, as is a line that was cut off.
      validated: whether the scores after that batch are known; if not, their line comes again.

    Raises:
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
    self._file = self._path.open("a", buffering=1)
    # Written by this thread: tensorboardX's own dies of a full disk and then blocks the loop. The
    # process is in the name because two of them may start within a second.
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
      epoch: the same in epochs.
      split: that the figures are of; "skipped" for a batch that was.
      figures: numbers by name; one that is not finite is written as null, for JSON has none.
      case_ids: of a batch, where they matter.

    Raises:
      OSError: if the line cannot be written.
    """
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    row: dict[str, Any] = {"step": step, "epoch": round(epoch, 4), "split": split, **finite}
    if case_ids:
      row["case_ids"] = list(case_ids)
    with _named_errors(self._path):
      self._file.write(json.dumps(row) + "\n")
      for name, value in figures.items():
        summary = scalar(f"{split}/{name}", value)
        self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
      self._events.flush()

  def close(self) -> None:
    """Writes out what is buffered."""
    with _named_errors(self._path), contextlib.ExitStack() as stack:
      stack.callback(self._events.close)
      stack.callback(self._file.close)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """Reads the whole lines of `metrics.jsonl`; an empty list where there is no file."""
  path = workdir / METRICS_FILE
  rows = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      rows.append(json.loads(line))
    except ValueError:  # cut off while it was written
      continue
  return rows


def write_csv(
  path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
  """Writes rows of one set of columns under a line of their names.

  Args:
    path: of the file, which is whole at any instant.
    rows: mappings of the same names.
    columns: the names, for when there may be no row.
  """
  text = io.StringIO()
  writer = csv.DictWriter(text, columns or rows[0].keys(), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  replace_file(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
  """Reads the rows of a CSV file but for a last one that was cut off; none without a file."""
  if not path.exists():
    return []
  text = path.read_bytes().decode()
  return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def append_csv(path: Path, row: Mapping[str, Any]) -> None:
  """Adds a row to a CSV file of its columns, which is begun where there is none."""
  new = not path.exists()
  with path.open("a", newline="") as file:
    writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
    if new:
      writer.writeheader()
    writer.writerow(row)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Lays out a Markdown table, text to the left and numbers to the right, readable as it stands."""
  cells = [[str(cell) for cell in row] for row in rows]
  widths = [max(len(cell) for cell in column) for column in zip(columns, *cells, strict=True)]
  numeric = [all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(columns))]

  def line(row):
    padded = (
      cell.rjust(width) if right else cell.ljust(width)
      for cell, width, right in zip(row, widths, numeric, strict=True)
    )
    return f"| {' | '.join(padded)} |"

  rule = (
    "-" * (width - 1) + (":" if right else "-")
    for width, right in zip(widths, numeric, strict=True)
  )
  return "\n".join([line(columns), f"| {' | '.join(rule)} |", *map(line, cells)])


def _is_number(cell: str) -> bool:
  try:
    float(cell.replace(",", "").rstrip("x%"))
  except ValueError:
    return False
  return True


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
  """Gives the errors of writing an open file, which name none, the name of that file."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise
