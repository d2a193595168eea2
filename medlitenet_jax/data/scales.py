"""The scale of photographs: how many millimetres of skin a pixel shows."""

import dataclasses
import functools
import logging
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.rules import Rule
from medlitenet_jax.system.tables import read_table

logger = logging.getLogger(__name__)

FLAG = "--mm_per_pixel"
COLUMN = "mm_per_pixel"
# Another scale is a slip, as of µm for mm, and all measurements with it.
SCALE = Rule(
  lambda value: 0.001 <= value <= 1,
  "the side of a pixel in mm, from 0.001 to 1 (20 µm are 0.02; a dermoscope has 0.005 to 0.1)",
)


@dataclasses.dataclass(frozen=True)
class Scales:
  """Sides of a pixel on the skin, in mm.

  Attributes:
    every: that of every photograph, or None.
    by_name: those of single photographs, by the name of their file, with or without its ending and
      its folder; None if there is no table of them.
  """

  every: float | None = None
  by_name: Mapping[str, float] | None = None

  def of(self, file: str, stated: float | None) -> float | None:
    """The scale of a photograph: that of the table or of every photograph, else its file's own.

    Args:
      file: of the photograph, as `measurements.csv` names it, with / between folders.
      stated: what the file states, or None. What `SCALE` does not take is ignored, with a warning.

    Returns:
      Side of a pixel in mm, or None if it is not known.
    """
    place = PurePosixPath(file)
    for name in (str(place), str(place.with_suffix("")), place.name, place.stem):
      if scale := (self.by_name or {}).get(unicodedata.normalize("NFC", name)):
        return scale
    if self.every is not None or stated is None or SCALE.holds(stated):
      return self.every or stated
    _warn_of_stated(file, stated)
    return None


@functools.cache  # once per file
def _warn_of_stated(file: str, stated: float) -> None:
  logger.warning(
    "%s: states %g mm per pixel, which no dermoscope has; it is measured in pixels alone",
    *(file, stated),
  )


def read_scales(given: str | None) -> Scales:
  """Reads the scale that the command line gives.

  Args:
    given: a number of mm, the path of a table with the columns id and mm_per_pixel, as `read_table`
      reads it, or None. Where the columns are not separated by commas, numbers may have one.

  Returns:
    The scales.

  Raises:
    InputError: if it is neither a number that `SCALE` takes nor a table of such numbers.
  """
  if given is None:
    return Scales()
  try:
    number = float(given)
  except ValueError:
    return Scales(by_name=_read_rows(Path(given)))
  SCALE.check(FLAG, number)
  return Scales(every=number)


def _read_rows(path: Path) -> dict[str, float]:
  if not path.is_file():
    raise InputError(
      f"{FLAG} is {str(path)!r}; it takes a number from 0.001 to 1, or a CSV file with the columns "
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
      raise InputError(
        f"{path} line {number}: {COLUMN} takes {SCALE.takes}, not {text!r}"
      ) from None
    SCALE.check(f"{path} line {number}: {COLUMN}", scale)
    if not name or name in scales:
      fault = f"{name} is listed twice" if name else "the id is empty"
      raise InputError(f"{path} line {number}: {fault}; correct or remove it")
    scales[name] = scale
  return scales
