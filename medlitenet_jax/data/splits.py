"""Assigns photographs to splits: by `splits.csv`, by a hash of their name or group, or in folds."""

import collections
import dataclasses
import hashlib
import heapq
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from medlitenet_jax.data.images.image_files import without_ending
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.tables import Table, read_table

SPLITS = ("train", "val", "test")
ALL = "all"  # every split together; cases are scored in it, not assigned to it
SPLITS_FILE = "splits.csv"
# What else a split is called, in any capitals. Not "dev": some call so what a network learns from.
OTHER_NAMES = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}


@dataclasses.dataclass(frozen=True)
class SplitRule:
  """How cases without a given split are split.

  Attributes:
    group_column: column of `splits.csv`; rows with the same value stay in one split; "" for none.
    seed: seed of the split.
    val_fraction: fraction of the groups, from 0 to 1.
    test_fraction: fraction of the groups, from 0 to 1.
    folds: number of parts that `deal` makes of train and val; 0: it leaves them as they are.
    fold: which of them is val, from 0.
  """

  group_column: str
  seed: int
  val_fraction: float
  test_fraction: float
  folds: int = 0
  fold: int = 0

  def split_of(self, name: str) -> str:
    """Split of a case or group. It depends only on the name, so adding files changes no split.

    The name is hashed into [0, 1): test takes the lower end and val the upper, so changing one
    fraction does not affect the other split.
    """
    position = self._position(name)
    if position < self.test_fraction:
      return "test"
    return "val" if position >= 1 - self.val_fraction else "train"

  def deal(self, splits: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, str]:
    """Divides train and val anew into `folds` parts, of which number `fold` is val.

    The largest groups are dealt first, each to the part with the fewest cases, so the parts differ
    by no more cases than the largest group has. Among equals the hash of the name decides. Unlike
    in `split_of`, a new file can move others to another part.

    Args:
      splits: split of each case, by name.
      groups: group of each case that has one, by name.

    Returns:
      The new split of each case, in the same order; those of test stay.

    Raises:
      InputError: if a part would be empty.
    """
    if not self.folds:
      return dict(splits)
    group_of = {name: groups.get(name) or name for name in splits if splits[name] != "test"}
    sizes = collections.Counter(group_of.values())
    if len(sizes) < self.folds:
      raise InputError(
        f"config.data.folds is {self.folds}, but outside of test there are {len(sizes)} "
        f"{'groups' if groups else 'cases'}; set a smaller number"
      )
    parts = [(0, number) for number in range(self.folds)]  # a heap of (cases, part)
    part = {}
    for group in sorted(sizes, key=lambda group: (-sizes[group], self._position(group), group)):
      cases, part[group] = parts[0]
      heapq.heapreplace(parts, (cases + sizes[group], part[group]))
    return {
      name: ("val" if part[group_of[name]] == self.fold else "train") if name in group_of else split
      for name, split in splits.items()
    }

  def _position(self, name: str) -> float:
    """The hash of a name, as a number in [0, 1)."""
    digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_rule(data: Mapping[str, Any]) -> SplitRule:
  """The rule that `config.data` describes, given as a mapping."""
  return SplitRule(
    group_column=data["group_column"],
    seed=data["split_seed"],
    val_fraction=data["val_fraction"],
    test_fraction=data["test_fraction"],
    folds=data["folds"],
    fold=data["fold"],
  )


@dataclasses.dataclass(frozen=True)
class Assignment:
  """The result of splitting.

  Attributes:
    splits: split of each case, by name.
    refusals: (name, one-line reason) of each row or group that cannot be used.
    unlisted: photographs without a row in the file.
  """

  splits: dict[str, str]
  refusals: list[tuple[str, str]]
  unlisted: list[str]


def assign_splits(path: Path, case_ids: Collection[str], rule: SplitRule) -> Assignment:
  """Splits cases.

  Args:
    path: path of `splits.csv` with the columns id and split, or id and the rule's group column, or
      all three, as `read_table` reads it; may be missing. If there is a split column, a case
      without a row is in no split. Otherwise a case without a row or with an empty group forms a
      group of its own. Names of columns and splits may have other capitals, splits those of
      `OTHER_NAMES` too, and an id the ending of the photograph's file.
    case_ids: names of the photographs.
    rule: splits the cases if the file has no split column.

  Returns:
    The split of every case.

  Raises:
    InputError: if the file cannot be read or lacks a column.
  """
  table = _read_rows(path, rule.group_column)
  if table is None:
    hashed = {case_id: rule.split_of(case_id) for case_id in case_ids}
    return Assignment(rule.deal(hashed, {}), [], [])
  id_column, split_column = table.column("id") or "", table.column("split")
  group_column = table.column(rule.group_column) if rule.group_column else None
  splits: dict[str, str] = {}
  groups: dict[str, str] = {}
  members: dict[str, set[str]] = {}  # the splits of each group's rows
  refusals = []
  known = frozenset(case_ids)
  for number, row in table.rows:
    case_id = without_ending(row[id_column], known)
    group = row[group_column] if group_column else ""
    given = row[split_column] if split_column else rule.split_of(group or case_id)
    split = OTHER_NAMES.get(given.lower(), given.lower())
    if split not in SPLITS:
      reason = f"split {given!r} is not one of {', '.join(SPLITS)}"
    elif case_id in splits:
      reason = f"{case_id} is listed twice; remove one line"
    elif not case_id:
      reason = "the id is empty; fill it in or remove the line"
    else:
      splits[case_id] = split
      if group:
        groups[case_id] = group
        members.setdefault(group, set()).add(split)
      continue
    refusals.append((case_id, f"{path} line {number}: {reason}"))
  for group, found in sorted(members.items()):
    if len(found) > 1:
      where = " and ".join(split for split in SPLITS if split in found)
      refusals.append(
        (group, f"{path}: {rule.group_column} {group!r} is in {where}; keep it in one split")
      )
  unlisted = [case_id for case_id in case_ids if case_id not in splits]
  if not split_column:
    splits |= {case_id: rule.split_of(case_id) for case_id in unlisted}
  return Assignment(rule.deal(splits, groups), refusals, unlisted)


def read_classes(path: Path, column: str, case_ids: Sequence[str]) -> tuple[list[str], list[int]]:
  """Reads the class of each case.

  Args:
    path: path of `splits.csv`.
    column: of it; it holds the name of a class, or nothing where it is not known.
    case_ids: names of the photographs.

  Returns:
    names: of the classes of all splits, sorted.
    classes: of each case, a place in `names`; -1 where it is not known.

  Raises:
    InputError: if the file cannot be read, lacks a column, names fewer than two classes, or two
      that differ in capitals alone.
  """
  if not path.exists():
    raise InputError(
      f"{path}: missing, but config.data.class_column={column!r} names a column of it"
    )
  table = read_table(path)
  id_column, class_column = table.column("id"), table.column(column)
  if id_column is None or class_column is None:
    lacking = "id" if id_column is None else column
    raise InputError(
      f"{path}: has no column {lacking!r}, which config.data.class_column needs; its columns are "
      f"{', '.join(map(repr, table.columns)) or 'none'}"
    )
  known = frozenset(case_ids)
  given = {without_ending(row[id_column], known): row[class_column] for _, row in table.rows}
  names = sorted({name for name in given.values() if name})
  folded: dict[str, str] = {}
  for name in names:
    if (other := folded.setdefault(name.casefold(), name)) != name:
      raise InputError(f"{path}: {other!r} and {name!r} differ in capitals alone; give one name")
  if len(names) < 2:
    raise InputError(
      f"{path}: the column {column!r}, which config.data.class_column names, has "
      f"{'one class' if names else 'no class'}, which tells nothing apart; choose another column, "
      "or leave the field empty"
    )
  number = {"": -1} | {name: place for place, name in enumerate(names)}
  return names, [number[given.get(case_id, "")] for case_id in case_ids]


def _read_rows(path: Path, group_column: str) -> Table | None:
  """The file; None if it does not exist."""
  if not path.exists():
    if group_column:
      raise InputError(
        f"{path}: missing, but config.data.group_column={group_column!r} names a column of it"
      )
    return None
  table = read_table(path)
  if group_column and table.column(group_column) is None:
    raise InputError(
      f"{path}: has no column {group_column!r}, which config.data.group_column names; its columns "
      f"are {', '.join(map(repr, table.columns)) or 'none'}"
    )
  if table.column("id") is None or (table.column("split") is None and not group_column):
    raise InputError(
      f"{path}: needs a first line with the columns id and split, or id and the column that "
      "config.data.group_column names"
    )
  return table
