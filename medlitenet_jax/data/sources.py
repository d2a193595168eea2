"""Sources of cases: a folder of photographs and masks, a public set, or generated pictures.

A source is a sequence of cases that are read on access. `create_source` chooses one by
`config.data.source`; a new source needs a class here and a branch there.
"""

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medlitenet_jax.data.cases import CLASS, Case, Source
from medlitenet_jax.data.folder import FolderCase, Scan, create_scan, size_mismatch
from medlitenet_jax.data.images import image_files
from medlitenet_jax.data.splits import ALL, SPLITS, SPLITS_FILE, read_classes, split_rule
from medlitenet_jax.data.synthetic import draw_dermoscopy
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.rules import one_of

logger = logging.getLogger(__name__)

SET_NAMES = ("isic2018", "isic2017", "isic2016", "ph2", "ham10000")  # keys of official.BUILDERS
GROUPED = ("ham10000",)  # several photographs of a lesion, whose names are not kept
SOURCES = ("folder", "synthetic", *SET_NAMES)
FOLDED = ("train", "val")  # what config.data.folds divides


class SyntheticSource:
  """Generated dermoscopic pictures with exact masks.

  Attributes:
    case_ids: "synthetic_" and the number of the picture.
  """

  def __init__(self, *, seed: int, first: int, count: int, image_size: int):
    """Selects the `count` pictures from number `first` on, with sides of `image_size` pixels."""
    self._seed, self._first, self._image_size = seed, first, image_size
    self.case_ids = [f"synthetic_{first + i:07d}" for i in range(count)]

  def __len__(self) -> int:
    """Number of cases."""
    return len(self.case_ids)

  def __getitem__(self, index: int) -> Case:
    """Draws one case."""
    image, mask = draw_dermoscopy(self._seed, self._first + index, self._image_size)
    return Case(index, self.case_ids[index], image, mask)


class FolderSource:
  """Photographs in `images/` with masks in `masks/`.

  Attributes:
    case_ids: names of the photographs.
  """

  def __init__(self, cases: Sequence[FolderCase], classes: Sequence[int] | None = None):
    """Takes pairs of files as `folder.py` finds them, read on access, and the class of each."""
    self._files, self.case_ids = cases, [case.case_id for case in cases]
    self._classes = classes

  def __len__(self) -> int:
    """Number of cases."""
    return len(self.case_ids)

  def __getitem__(self, index: int) -> Case:
    """Reads one case.

    Raises:
      InputError: if a file cannot be decoded.
    """
    files = self._files[index]
    image, mask = image_files.read_image(files.image), image_files.read_mask(files.mask)
    if image.shape[:2] != mask.shape:
      raise InputError(size_mismatch(files.mask, mask.shape, files.image, image.shape[:2]))
    targets = {} if self._classes is None else {CLASS: np.int32(self._classes[index])}
    return Case(index, files.case_id, image, mask, targets)


class CachedCases:
  """Wraps a source and keeps the cases that were read in memory, as many as fit.

  Which cases are kept depends on the order of reading; the values read do not.

  Attributes:
    case_ids: names of the cases.
  """

  def __init__(self, source: Source, limit: float):
    """Keeps up to `limit` bytes of pixels of `source`; safe to use from several threads."""
    self._source, self.case_ids = source, source.case_ids
    self._free, self._lock = limit, threading.Lock()
    self._kept: dict[int, Case] = {}

  def __len__(self) -> int:
    """Number of cases."""
    return len(self.case_ids)

  def __getitem__(self, index: int) -> Case:
    """Reads one case; its arrays are read-only."""
    if (kept := self._kept.get(index)) is not None:
      return kept
    case = self._source[index]
    case.image.flags.writeable = case.mask.flags.writeable = False
    size = case.image.nbytes + case.mask.nbytes
    with self._lock:
      if size <= self._free and index not in self._kept:
        self._kept[index] = case
        self._free -= size
    return case


class SomeCases:
  """Some of the cases of one source, or of several together.

  Attributes:
    case_ids: names of the cases.
  """

  def __init__(self, places: Sequence[tuple[Source, int]]):
    """Takes each case's source and its index there, in their new order."""
    self._places = places
    self.case_ids = [source.case_ids[index] for source, index in places]

  def __len__(self) -> int:
    """Number of cases."""
    return len(self.case_ids)

  def __getitem__(self, index: int) -> Case:
    """Reads one case."""
    source, place = self._places[index]
    return dataclasses.replace(source[place], index=index)


def create_source(
  data: Mapping[str, Any],
  split: str,
  seed: int,
  *,
  to_score: bool = True,
  with_classes: bool = False,
) -> Source:
  """Opens the cases of a split.

  Args:
    data: `config.data` as a mapping.
    split: one of `SPLITS`, or `ALL` for the cases of all that are not empty.
    seed: seed of generated cases, and of the draw where `max_train_images` limits `train`.
    to_score: True: masks at the photograph's original size, for scoring; False: at the size of the
      image, for training, for which no split of a folder may have a case that cannot be used.
    with_classes: whether cases carry the class that `class_column` says, if it names a column.

  Returns:
    A source of at least one case.

  Raises:
    InputError: if the source, its folder or the split cannot be used.
  """
  if split not in (*SPLITS, ALL):
    raise InputError(f"split {split!r} is not one of {', '.join((*SPLITS, ALL))}")
  one_of(SOURCES).check("config.data.source", data["source"])
  column = data["class_column"] if with_classes else ""
  if column and data["source"] != "folder":
    raise InputError(
      f"config.data.class_column names a column of splits.csv, which {data['source']} has not; "
      "leave it empty, or set config.data.source=folder"
    )
  if data["folds"] and data["source"] in GROUPED:
    raise InputError(
      f"config.data.folds: {data['source']} has several photographs of a lesion, which folds would "
      "take apart; give it as a folder with the lesions in splits.csv (config.data.group_column)"
    )
  splits = SPLITS if split == ALL else (split,)
  if (
    data["folds"] and split in FOLDED and data["source"] != "folder"
  ):  # which deals with its groups
    found = _open(data, FOLDED, seed, to_score, bool(column))
    return limited(_fold(found, split, data), data, split, seed)
  found = _open(data, splits, seed, to_score, bool(column))
  return limited(_joined(found) if split == ALL else found[0], data, split, seed)


def _open(
  data: Mapping[str, Any], splits: Sequence[str], seed: int, to_score: bool, with_classes: bool
) -> Sequence[Source]:
  """Splits of the source that the configuration names; of several, those that are not empty."""
  if data["source"] == "folder":
    return _folder_sources(data, splits, to_score, with_classes)
  if data["source"] == "synthetic":
    return _synthetic_sources(data["synthetic"], splits, seed)
  from medlitenet_jax.data.public import official  # here because importing TFDS is slow

  builder = official.create_builder(data["source"], Path(data["root"]), data["working_size"])
  return official.prepared_sources(builder, splits, to_score)


def _joined(sources: Sequence[Source]) -> SomeCases:
  """The cases of several sources, one after the other."""
  return SomeCases([(source, index) for source in sources for index in range(len(source))])


def _fold(sources: Sequence[Source], split: str, data: Mapping[str, Any]) -> SomeCases:
  """The cases of train and val that are in a split by `config.data.folds`."""
  places = {source.case_ids[i]: (source, i) for source in sources for i in range(len(source))}
  splits = split_rule(data).deal(dict.fromkeys(places, "train"), {})
  return SomeCases([place for case_id, place in places.items() if splits[case_id] == split])


def _folder_sources(
  data: Mapping[str, Any], splits: Sequence[str], to_score: bool, with_classes: bool
) -> list[FolderSource]:
  """The splits of a folder; of several, those that are not empty."""
  checked = splits if to_score else SPLITS
  scan = create_scan(data, checked)
  scan.refuse(may_be_empty=checked if len(splits) > 1 else [s for s in checked if s not in splits])

  def classes(cases: Sequence[FolderCase]) -> Sequence[int] | None:
    return class_names(data, [case.case_id for case in cases])[1] if with_classes else None

  found = [
    FolderSource(scan.cases[split], classes(scan.cases[split]))
    for split in splits
    if scan.cases[split]
  ]
  if not found:
    raise InputError(f"{scan.root}: every split is empty; put cases there")
  _warn_of_unlisted(scan)
  return found


def class_names(
  data: Mapping[str, Any], case_ids: Sequence[str] = ()
) -> tuple[list[str], list[int]]:
  """The classes that `config.data.class_column` tells apart, and those of some cases.

  Args:
    data: `config.data` as a mapping.
    case_ids: names of the cases.

  Returns:
    See `read_classes`.

  Raises:
    InputError: as `read_classes`.
  """
  return read_classes(Path(data["root"]) / SPLITS_FILE, data["class_column"], case_ids)


def _synthetic_sources(
  synthetic: Mapping[str, Any], splits: Sequence[str], seed: int
) -> list[SyntheticSource]:
  """The generated splits; of several, those that are not empty."""
  counts = {split: synthetic[f"num_{split}"] for split in splits}
  if not any(counts.values()):
    fields = ", ".join(f"config.data.synthetic.num_{split}" for split in splits)
    raise InputError(f"{fields}: 0 cases; give it 1 or more")
  return [
    SyntheticSource(
      seed=seed,
      first=SPLITS.index(split) * 1_000_000,  # far apart, so that no picture is in two splits
      count=count,
      image_size=synthetic["image_size"],
    )
    for split, count in counts.items()
    if count
  ]


def drawn(
  case_ids: Sequence[str], data: Mapping[str, Any], split: str, seed: int
) -> Sequence[int] | None:
  """Draws the cases that `max_train_images` or `max_eval_images` leave of a split.

  A larger limit keeps those of a smaller one. Those of other splits than `train` do not depend on
  the seed, for scores of runs with several seeds to be of the same cases.

  Args:
    case_ids: names of all cases of the split.
    data: `config.data` as a mapping.
    split: one of `SPLITS`, or `ALL`.
    seed: of the draw from `train`.

  Returns:
    Indices of the cases, rising; None if there is no limit.
  """
  to_learn = split == "train"
  limit = data["max_train_images"] if to_learn else data["max_eval_images"]
  if not 0 < limit < len(case_ids):
    return None
  start = f"{seed if to_learn else 'eval'} drawn "

  def place(index: int) -> bytes:
    return hashlib.sha256((start + case_ids[index]).encode()).digest()

  how = f"by config.seed={seed}" if to_learn else "for every seed the same"
  logger.info("%s: %d of %d cases, drawn at random, %s.", split, limit, len(case_ids), how)
  return sorted(sorted(range(len(case_ids)), key=place)[:limit])


def limited(source: Source, data: Mapping[str, Any], split: str, seed: int) -> Source:
  """The cases of a source that are `drawn`, or `source` itself if there is no limit."""
  indices = drawn(source.case_ids, data, split, seed)
  return source if indices is None else SomeCases([(source, index) for index in indices])


def _warn_of_unlisted(scan: Scan) -> None:
  for kind, fate in (
    ("no_split", "in no split and are left out"),
    ("no_group", "in no group"),
    ("names_differ_in_case", "named like another one except for upper and lower case"),
  ):
    if count := scan.count(kind):
      logger.warning("%s: %d photographs are %s", scan.root, count, fate)
