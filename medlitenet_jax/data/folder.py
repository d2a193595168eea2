"""A user's folder of photographs and masks: pairs the files and finds problems.

Training stops at the first problem of any split, scoring at the first of the split that is scored;
`--mode=check` lists all of them.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medlitenet_jax.data.images import image_files
from medlitenet_jax.data.images.mask_values import UnclearMaskError
from medlitenet_jax.data.splits import SPLITS, SPLITS_FILE, SplitRule, assign_splits, split_rule
from medlitenet_jax.system.errors import InputError

# Whether each kind of problem stops training. Training reports the earliest kind in this order.
STOPS_TRAINING = {
  "unusable_row": True,  # of splits.csv; also a group in more than one split
  "empty_split": True,
  "missing_photograph": True,
  "missing_mask": True,
  "same_name": True,
  "unreadable": True,
  "size_mismatch": True,
  "unclear_mask": True,
  "no_split": False,
  "no_group": False,
  "mask_without_photograph": False,
  "names_differ_in_case": False,
  "no_image": False,
}


@dataclasses.dataclass(frozen=True)
class Problem:
  """A problem of a data set.

  Attributes:
    kind: what is wrong, as `problems.csv` names it.
    name: the case, file or group with the problem.
    split: the affected split; "" for all.
    what: one line that says what is wrong and, if necessary, what to do.
    stops_training: False for a warning.
  """

  kind: str
  name: str
  split: str
  what: str
  stops_training: bool


@dataclasses.dataclass(frozen=True)
class FolderCase:
  """Paths of a photograph and its mask."""

  case_id: str
  image: Path
  mask: Path


@dataclasses.dataclass(frozen=True)
class Scan:
  """The contents of a folder.

  Attributes:
    root: the folder.
    cases: usable cases by split, sorted by name.
    broken: by split, the cases with both files but a problem that stops training.
    problems: all problems that can be found without decoding images.
  """

  root: Path
  cases: dict[str, list[FolderCase]]
  broken: dict[str, list[FolderCase]]
  problems: list[Problem]

  def refuse(self, may_be_empty: Sequence[str] = ()) -> None:
    """Raises InputError for the first problem that stops the splits from being used, if any.

    Args:
      may_be_empty: the splits that need no case.
    """
    found = [
      problem
      for problem in self.problems
      if problem.stops_training
      and not (problem.kind == "empty_split" and problem.split in may_be_empty)
    ]
    if not found:
      return
    first = min(found, key=lambda problem: list(STOPS_TRAINING).index(problem.kind))
    alike = [problem for problem in found if problem.kind == first.kind]
    names = [f"{p.name} ({p.split})" if len(self.cases) > 1 else p.name for p in alike]
    named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    who = {
      "missing_photograph": (f"{self.root}/{SPLITS_FILE} names", "images"),
      "missing_mask": (f"{self.root}/images needs", "masks"),
    }.get(first.kind)
    if who is None:
      raise InputError(first.what)
    what = "1 file that is" if len(names) == 1 else f"{len(names)} files that are"
    raise InputError(
      f"{who[0]} {what} not in {self.root}/{who[1]}: {named}; add what is missing, or leave the "
      "case out"
    )

  def count(self, kind: str) -> int:
    """Number of problems of a kind."""
    return sum(problem.kind == kind for problem in self.problems)


def create_scan(data: Mapping[str, Any], splits: Sequence[str] = SPLITS) -> Scan:
  """Scans the folder that the configuration names.

  Args:
    data: `config.data` as a mapping.
    splits: splits whose files are checked.

  Returns:
    See `scan_folder`.

  Raises:
    InputError: see `scan_folder`.
  """
  return scan_folder(Path(data["root"]), data["mask_suffix"], split_rule(data), splits)


def scan_folder(root: Path, mask_suffix: str, rule: SplitRule, splits: Sequence[str]) -> Scan:
  """Pairs the photographs of a folder with their masks, reading only file names and headers.

  Args:
    root: contains `images/ID.jpg` (or another of `IMAGE_SUFFIXES`), `masks/ID_segmentation.png`
      and, optionally, `splits.csv`.
    mask_suffix: text after ID in the name of a mask.
    rule: assigns splits to cases without one in `splits.csv`.
    splits: splits whose files are checked.

  Returns:
    Cases and problems. Problems of the folder as a whole are included for any `splits`.

  Raises:
    InputError: if nothing can be paired: a folder is missing or empty, `splits.csv` cannot be read,
      or the masks have another suffix.
  """
  folders = root / "images", root / "masks"
  for folder in folders:
    if not folder.is_dir():
      raise InputError(f"{folder}: no such folder; config.data.root must hold images/ and masks/")
  images, masks = map(image_files.image_names, folders)
  for folder, found in zip(folders, (images, masks), strict=True):
    if not found:
      raise InputError(image_files.no_image(folder))
  _refuse_other_suffix(folders[1], images, masks, mask_suffix)
  assigned = assign_splits(root / SPLITS_FILE, images, rule)
  problems = [_problem("unusable_row", *refusal) for refusal in assigned.refusals]
  problems += _warnings(folders, images, masks, mask_suffix)
  for name in assigned.unlisted:
    kind = "no_group" if name in assigned.splits else "no_split"
    problems.append(_problem(kind, name, _UNLISTED[kind]))

  cases: dict[str, list[FolderCase]] = {split: [] for split in splits}
  broken: dict[str, list[FolderCase]] = {split: [] for split in splits}
  for case_id, split in sorted(assigned.splits.items()):
    if split in cases:
      pair = images.get(case_id, []), masks.get(case_id + mask_suffix, [])
      found_here = list(_pairing_problems(root, case_id, split, mask_suffix, pair))
      problems += found_here
      if all(pair):
        case = FolderCase(case_id, pair[0][0], pair[1][0])
        (broken if found_here else cases)[split].append(case)
  for split in splits:
    if split not in assigned.splits.values():
      what = f"{root}: split {split!r} is empty; choose another or fill {SPLITS_FILE}"
      problems.append(_problem("empty_split", split, what, split))
  return Scan(root, cases, broken, problems)


_UNLISTED = {
  "no_split": f"has no row in {SPLITS_FILE} and is left out",
  "no_group": f"has no row in {SPLITS_FILE} and forms a group of its own",
}


def _problem(kind: str, name: str, what: str, split: str = "") -> Problem:
  return Problem(kind, name, split, what, STOPS_TRAINING[kind])


def _refuse_other_suffix(folder: Path, images, masks, mask_suffix: str) -> None:
  """Raises InputError if no mask matches this suffix but masks match another one."""
  if any(case_id + mask_suffix in masks for case_id in images):
    return
  suffixes = collections.Counter(
    name[end:] for name in masks for end in range(1, len(name) + 1) if name[:end] in images
  )
  if suffixes:
    suffix, count = suffixes.most_common(1)[0]
    raise InputError(
      f"{folder}: no mask has the name of its photograph and {mask_suffix!r}; with "
      f"--config.data.mask_suffix={suffix} {count} of {len(images)} photographs have one"
    )


def _warnings(folders, images, masks, mask_suffix: str):
  """Yields problems that do not stop training."""
  needed = {case_id + mask_suffix for case_id in images}
  for name, paths in masks.items():
    if name not in needed:
      what = f"{paths[0]}: no photograph belongs to this mask, which is left out"
      yield _problem("mask_without_photograph", paths[0].name, what)
  for folder, found in zip(folders, (images, masks), strict=True):
    known = {path for paths in found.values() for path in paths}
    for path in sorted(folder.iterdir()):
      if path not in known and not path.name.startswith("."):
        yield _problem("no_image", path.name, f"{path}: not an image file, ignored")
  folded: dict[str, str] = {}
  for case_id in images:
    other = folded.setdefault(case_id.casefold(), case_id)
    if other != case_id:
      what = f"{case_id} and {other} differ only in case; some systems treat them as one file"
      yield _problem("names_differ_in_case", case_id, what)


def _pairing_problems(root: Path, case_id: str, split: str, mask_suffix: str, pair):
  """Yields the problems of a case's files that can be found without decoding them."""
  kinds = ("missing_photograph", "missing_mask")
  for kind, paths, folder in zip(kinds, pair, ("images", "masks"), strict=True):
    name = case_id if folder == "images" else case_id + mask_suffix
    if not paths:
      what = f"{root / folder}: {name} is missing; add it, or leave the case out"
      yield _problem(kind, name, what, split)
    for other in paths[1:]:
      yield _problem("same_name", case_id, image_files.same_name(paths[0], other), split)
  sizes = []
  for path in (paths[0] for paths in pair if paths):
    try:
      sizes.append(image_files.image_size(path))
    except InputError as error:
      yield _problem("unreadable", path.name, str(error), split)
  if len(sizes) == 2 and sizes[0] != sizes[1]:
    what = size_mismatch(pair[1][0], sizes[1], pair[0][0], sizes[0])
    yield _problem("size_mismatch", case_id, what, split)


def size_mismatch(mask: Path, mask_size, image: Path, image_size) -> str:
  """Error message for a mask whose (height, width) differs from its photograph's."""
  return (
    f"{mask}: mask is {mask_size[0]}x{mask_size[1]} but {image} is "
    f"{image_size[0]}x{image_size[1]} (height x width); give both one size"
  )


def damage(case: FolderCase, split: str) -> list[Problem]:
  """Decodes both files of a case and lists their problems.

  Args:
    case: the files.
    split: the case's split.

  Returns:
    At most one problem per file.
  """
  problems = []
  for read, path in ((image_files.read_image, case.image), (image_files.read_mask, case.mask)):
    try:
      read(path)
    except UnclearMaskError as error:
      problems.append(_problem("unclear_mask", path.name, str(error), split))
    except InputError as error:
      problems.append(_problem("unreadable", path.name, str(error), split))
  return problems
