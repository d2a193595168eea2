"""Tables: CSV files that spreadsheets can open, and Markdown."""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import named_errors, read_text, replace_file

logger = logging.getLogger(__name__)

# Beginnings by which a spreadsheet takes a cell for a formula, and the mark that prevents it.
FORMULA_STARTS, TEXT_MARK = ("=", "+", "-", "@", "\t", "\r"), "'"


def write_csv(
  path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
  """Writes a CSV file with a line of column names.

  Args:
    path: of the file; it is complete at any moment, see `replace_file`.
    rows: mappings with the same names. Text that a spreadsheet would take for a formula is written
      with a `'` before it, which `read_csv` removes.
    columns: their names; may be left out if there is a row.

  Raises:
    OSError: if the file cannot be written.
  """
  text = io.StringIO()
  writer = csv.DictWriter(text, columns or rows[0].keys(), lineterminator="\n")
  writer.writeheader()
  writer.writerows(map(_as_text, rows))
  replace_file(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
  """Reads a CSV file that `write_csv` or `append_csv` wrote.

  Args:
    path: of the file.

  Returns:
    The rows, all cells as text; without the last line if it was cut off, and empty where there is
    no file.

  Raises:
    InputError: if the file is damaged or no such table.
  """
  if not path.exists():
    return []
  try:
    text = read_text(path)
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    rows = list(csv.DictReader(whole, strict=True))
  except (OSError, ValueError, csv.Error) as error:
    raise InputError(f"{path}: cannot be read ({error}); restore or remove it") from error
  for number, row in enumerate(rows, 1):
    if None in row or None in row.values():
      raise InputError(
        f"{path}: row {number} has more or fewer cells than there are columns; restore or remove it"
      )
  return [{name: cell.removeprefix(TEXT_MARK) for name, cell in row.items()} for row in rows]


def _as_text(row: Mapping[str, Any]) -> dict[str, Any]:
  """The row with `TEXT_MARK` before each text that begins like a formula or with that mark."""
  starts = (*FORMULA_STARTS, TEXT_MARK)

  def marked(cell: Any) -> Any:
    if not isinstance(cell, str):
      return cell
    # The csv module writes a carriage return without quotes and reads it as the end of a row.
    return (TEXT_MARK if cell.startswith(starts) else "") + cell.replace("\r", " ")

  return {name: marked(cell) for name, cell in row.items()}


def append_csv(path: Path, row: Mapping[str, Any]) -> None:
  """Appends a row to a CSV file with the same columns, making the file if there is none.

  Args:
    path: of the file.
    row: cells by column.

  Raises:
    OSError: if the file cannot be written.
  """
  new = not path.exists()
  with named_errors(path), path.open("a", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
    if new:
      writer.writeheader()
    writer.writerow(_as_text(row))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Formats a Markdown table that is readable as plain text.

  Args:
    columns: their names.
    rows: cells of each row; a column that holds only numbers is aligned to the right.

  Returns:
    The lines of the table, without a line break at the end.
  """
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
