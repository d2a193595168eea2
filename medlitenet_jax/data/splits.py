"""Which split a photograph is in: as `splits.csv` says, or by a hash of its name or group."""

import csv
import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_text

SPLITS = ("train", "val", "test")
SPLITS_FILE = "splits.csv"


@dataclasses.dataclass(frozen=True)
class SplitRule:
  """How cases are split where no file says it.

  Attributes:
    group_column: column of `splits.csv` whose values must not be torn apart; "" for none.
    seed: another one gives another split.
    val_fraction: of the groups, from 0 to 1.
    test_fraction: of the groups, from 0 to 1.
  """

  group_column: str
  seed: int
  val_fraction: float
  test_fraction: float

  def split_of(self, name: str) -> str:
    """Split of a case or group, from its name alone: files that are added change it for none.

    Test counts from 0 and val from 1, so that a change of one fraction leaves the other split.
    """
    digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
    place = int.from_bytes(digest[:6], "big") / 2**48
    if place < self.test_fraction:
      return "test"
    return "val" if place >= 1 - self.val_fraction else "train"


@dataclasses.dataclass(frozen=True)
class Assignment:
  """Who is where.

  Attributes:
    splits: split of each case, by name.
    refusals: (name, line that says why) of each row or group that cannot be used.
    unlisted: photographs that the file has no row for.
  """

  splits: dict[str, str]
  refusals: list[tuple[str, str]]
  unlisted: list[str]


def assign_splits(path: Path, case_ids: Iterable[str], rule: SplitRule) -> Assignment:
  """Splits cases.

  Args:
    path: of `splits.csv` with the column id and split, or id and the rule's group column, or all
      three; may be missing. Where it has a split, a case without a row is in none; where it has
      not, such a case is a group of its own, as is one whose group is left empty.
    case_ids: names of the photographs.
    rule: for cases without a given split.

  Returns:
    The split of every case.

  Raises:
    InputError: if the file cannot be read or lacks a column.
  """
  columns, rows = _read_rows(path, rule.group_column)
  if not columns:
    return Assignment({case_id: rule.split_of(case_id) for case_id in case_ids}, [], [])
  given = "split" in columns
  splits: dict[str, str] = {}
  members: dict[str, set[str]] = {}  # splits that each group stands in
  refusals = []
  for number, row in rows:
    case_id, group = row["id"] or "", (row[rule.group_column] or "") if rule.group_column else ""
    split = row["split"] if given else rule.split_of(group or case_id)
    if split not in SPLITS:
      reason = f"split {split!r} is not one of {', '.join(SPLITS)}"
    elif case_id in splits:
      reason = f"{case_id} stands there twice; remove one line"
    elif not case_id:
      reason = "the id is empty; fill it in or remove the line"
    else:
      splits[case_id] = split
      if group:
        members.setdefault(group, set()).add(split)
      continue
    refusals.append((case_id, f"{path} line {number}: {reason}"))
  for group, found in sorted(members.items()):
    if len(found) > 1:
      where = " and ".join(split for split in SPLITS if split in found)
      refusals.append(
        (group, f"{path}: {rule.group_column} {group!r} stands in {where}; keep it in one split")
      )
  unlisted = [case_id for case_id in case_ids if case_id not in splits]
  if not given:
    splits |= {case_id: rule.split_of(case_id) for case_id in unlisted}
  return Assignment(splits, refusals, unlisted)


def _read_rows(path: Path, group_column: str) -> tuple[list[str], list[tuple[int, dict]]]:
  """Columns, and rows with their line numbers; no columns where there is no such file."""
  if not path.exists():
    if group_column:
      raise InputError(
        f"{path}: missing, and config.data.group_column={group_column!r} names a column of it"
      )
    return [], []
  try:
    lines = unicodedata.normalize("NFC", read_text(path)).splitlines()
    reader = csv.DictReader(lines, skipinitialspace=True)
    rows = [(reader.line_num, row) for row in reader]
  except (OSError, ValueError, csv.Error) as error:
    raise InputError(f"{path}: cannot be read ({error}); save it as CSV in UTF-8") from error
  columns = list(reader.fieldnames or ())
  if group_column and group_column not in columns:
    raise InputError(
      f"{path}: has no column {group_column!r}, which config.data.group_column names, but "
      f"{', '.join(map(repr, columns)) or 'none'}"
    )
  if "id" not in columns or ("split" not in columns and not group_column):
    raise InputError(
      f"{path}: needs a first line with the columns id and split, or id and the one that "
      "config.data.group_column names"
    )
  return columns, rows
