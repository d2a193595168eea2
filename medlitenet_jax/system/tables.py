"""Tables: CSV files that spreadsheets can open, and Markdown."""

import codecs
import csv
import io
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import named_errors, read_text, replace_file

logger = logging.getLogger(__name__)

# Beginnings by which a spreadsheet takes a cell for a formula, and the mark that prevents it.
FORMULA_STARTS, TEXT_MARK = ("=", "+", "-", "@", "\t", "\r"), "'"
DELIMITERS = (",", ";", "\t")  # of tables that people write; spreadsheets choose by language


def write_csv(
  path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
  """Writes a CSV file with a line of column names.

  Args:
    path: of the file; it is complete at any moment, see `replace_file`. It is UTF-8, and begins
      with a byte order mark if a letter is not ASCII: without one a spreadsheet shows other
      letters, and in a table of ASCII alone it would only be in the way of simple readers.
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
  content = text.getvalue()
  mark = b"" if content.isascii() else codecs.BOM_UTF8
  replace_file(path, mark + content.encode())


class Table(NamedTuple):
  """A table that a person or another program has written.

  Attributes:
    columns: their names, as written.
    rows: (number of its line, cells by column) of each; all cells as text without blanks around it.
  """

  columns: list[str]
  rows: list[tuple[int, dict[str, str]]]

  def column(self, name: str) -> str | None:
    """The column of this name; if there is none, the first that differs in capitals alone."""
    alike = (column for column in self.columns if column.casefold() == name.casefold())
    return name if name in self.columns else next(alike, None)


def read_table(path: Path) -> Table:
  """Reads a table that a person or another program has written.

  Args:
    path: of a text in UTF-8, with or without a byte order mark, whose first line has the names of
      the columns. They are separated by one of `DELIMITERS`, the one that divides the first line
      into most.

  Returns:
    The table, in NFC. Missing cells are empty. Cells beyond the columns are dropped, and empty
    lines.

  Raises:
    InputError: if the file cannot be read.
  """
  try:
    lines = unicodedata.normalize("NFC", read_text(path)).splitlines()
    delimiter = max(DELIMITERS, key=lambda d: len(next(csv.reader(lines, delimiter=d), ())))
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    columns = [name.strip() for name in next(reader, [])]
    rows = [
      (
        reader.line_num,
        dict.fromkeys(columns, "") | dict(zip(columns, map(str.strip, cells), strict=False)),
      )
      for cells in reader
      if any(cells)
    ]
  except (OSError, ValueError, csv.Error) as error:
    raise InputError(f"{path}: cannot be read ({error}); save it as CSV in UTF-8") from error
  return Table(columns, rows)


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
