"""A run's figures on disk: JSON lines, TensorBoard events and tables."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


def replace_file(path: Path, text: str) -> None:
  """Writes a text file that is whole at any instant: as it was, or as it will be."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, path)


class MetricsLog:
  """Appends a run's figures to `metrics.jsonl` and to TensorBoard's events."""

  def __init__(self, workdir: Path, resume_step: int):
    """Opens the log of a run.

    Args:
      workdir: folder of the run.
      resume_step: batches seen so far; lines past that come from batches that will be seen again
        and are dropped, as is a line that was cut off.
    """
    self._path = workdir / METRICS_FILE
    kept = [row for row in read_metrics(workdir) if row["step"] <= resume_step]
    replace_file(self._path, "".join(json.dumps(row) + "\n" for row in kept))
    self._file = self._path.open("a", buffering=1)
    self._events = SummaryWriter(str(workdir), purge_step=resume_step + 1)

  def write(self, *, step: int, epoch: float, split: str, figures: Mapping[str, float]) -> None:
    """Adds a line.

    Args:
      step: batches seen.
      epoch: the same in epochs.
      split: that the figures are of.
      figures: numbers by name; one that is not finite is written as null, for JSON has none.
    """
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    row = {"step": step, "epoch": round(epoch, 4), "split": split, **finite}
    self._file.write(json.dumps(row) + "\n")
    for name, value in figures.items():
      self._events.add_scalar(f"{split}/{name}", value, step)

  def close(self) -> None:
    """Writes out what is buffered."""
    self._file.close()
    self._events.close()


class NoLog:
  """Stands for the log in processes that keep none."""

  def write(self, **_) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


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
