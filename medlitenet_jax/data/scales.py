"""The scale of photographs: how many millimetres of skin a pixel shows."""

import dataclasses
import logging
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.tables import read_table

logger = logging.getLogger(__name__)

FLAG = "--mm_per_pixel"
COLUMN = "mm_per_pixel"
USUAL = (0.001, 0.5)  # mm; a photograph of 1000 pixels would show 1 mm to half a metre of skin


@dataclasses.dataclass(frozen=True)
class Scales:
  """Sides of a pixel on the skin, in mm.

  Attributes:
    every: that of every photograph, or None.
    by_name: those of single photographs, by the name of their file, with or without ending; None
      if there is no table of them.
  """

  every: float | None = None
  by_name: Mapping[str, float] | None = None

  def of(self, path: Path, stated: float | None) -> float | None:
    """The scale of a photograph: that of the table or of every photograph, else its file's own.

    Args:
      path: of the photograph.
      stated: what its file states, or None.

    Returns:
      Side of a pixel in mm, or None if it is not known.
    """
    for name in (path.name, path.stem):
      if scale := (self.by_name or {}).get(unicodedata.normalize("NFC", name)):
        return scale
    return self.every or stated


def read_scales(given: str | None) -> Scales:
  """Reads the scale that the command line gives.

  Args:
    given: a number of mm, the path of a table with the columns id and mm_per_pixel, as `read_table`
      reads it, or None. Where the columns are not separated by commas, numbers may have one.

  Returns:
    The scales.

  Raises:
    InputError: if it is neither a number above 0 nor such a table.
  """
  if given is None:
    return Scales()
  try:
    number = float(given)
  except ValueError:
    return Scales(by_name=_read_rows(Path(given)))
  if not 0 < number < math.inf:
    raise InputError(f"{FLAG} is {given}; it takes a number above 0")
  _question(FLAG, [number])
  return Scales(every=number)


def _read_rows(path: Path) -> dict[str, float]:
  if not path.is_file():
    raise InputError(
      f"{FLAG} is {str(path)!r}; it takes a number above 0, or a CSV file with the columns "
      f"id,{COLUMN}"
    )
  table = read_table(path)
  id_column, column = table.column("id"), table.column(COLUMN)
  if id_column is None or column is None:
    raise InputError(f"{path}: needs a first line with the columns id and {COLUMN}")
  scales: dict[str, float] = {}
  for number, row in table.rows:
    name, text = row[id_column], row[column]
    try:
      scale = float(text.replace(",", "."))
    except ValueError:
      scale = math.nan
    if not 0 < scale < math.inf:
      raise InputError(f"{path} line {number}: {COLUMN} is {text!r}; give a number above 0")
    if not name or name in scales:
      fault = f"{name} is listed twice" if name else "the id is empty"
      raise InputError(f"{path} line {number}: {fault}; correct or remove it")
    scales[name] = scale
  _question(str(path), list(scales.values()))
  return scales


def _question(where: str, scales: Sequence[float]) -> None:
  """Warns of scales that are likely of another unit, such as micrometres."""
  odd = [scale for scale in scales if not USUAL[0] <= scale <= USUAL[1]]
  if odd:
    logger.warning(
      "%s: %g mm a pixel is unusual, for 1000 pixels would show %g mm of skin%s",
      *(where, odd[0], 1000 * odd[0]),
      f"; {len(odd)} of {len(scales)} scales are" if len(scales) > 1 else "",
    )
