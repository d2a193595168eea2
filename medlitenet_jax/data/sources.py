"""Sources of cases: a folder of photographs and masks, a public set, or generated pictures.

A source is a sequence of cases that are read on access. `create_source` chooses one by
`config.data.source`; a new source needs a class here and a branch there.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medlitenet_jax.data.cases import Case, Source
from medlitenet_jax.data.folder import FolderCase, Scan, create_scan, size_mismatch
from medlitenet_jax.data.images import image_files
from medlitenet_jax.data.splits import SPLITS
from medlitenet_jax.data.synthetic import draw_dermoscopy
from medlitenet_jax.system.errors import InputError

logger = logging.getLogger(__name__)

SET_NAMES = ("isic2018", "isic2017", "isic2016", "ph2", "ham10000")  # keys of official.BUILDERS


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

  def __init__(self, cases: Sequence[FolderCase]):
    """Takes pairs of files as `folder.py` finds them; they are read on access."""
    self._files, self.case_ids = cases, [case.case_id for case in cases]

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
    return Case(index, files.case_id, image, mask)


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


class FirstCases:
  """The first cases of another source.

  Attributes:
    case_ids: names of the cases kept.
  """

  def __init__(self, source: Source, count: int):
    """Keeps the first `count` cases of `source`."""
    self._source, self.case_ids = source, source.case_ids[:count]

  def __len__(self) -> int:
    """Number of cases."""
    return len(self.case_ids)

  def __getitem__(self, index: int) -> Case:
    """Reads one case."""
    return self._source[index]


def create_source(
  data: Mapping[str, Any], split: str, seed: int, *, to_score: bool = True
) -> Source:
  """Opens the cases of a split.

  Args:
    data: `config.data` as a mapping.
    split: one of `SPLITS`.
    seed: seed of generated cases.
    to_score: True: masks at the photograph's original size, for scoring; False: at the size of the
      image, for training.

  Returns:
    A source of at least one case.

  Raises:
    InputError: if the source, its folder or the split cannot be used.
  """
  if split not in SPLITS:
    raise InputError(f"split {split!r} is not one of {', '.join(SPLITS)}")
  source: Source
  if data["source"] == "folder":
    scan = create_scan(data, (split,))
    scan.refuse(split)
    _warn_of_unlisted(scan)
    source = FolderSource(scan.cases[split])
  elif data["source"] == "synthetic":
    synthetic = data["synthetic"]
    count = synthetic[f"num_{split}"]
    if count < 1:
      raise InputError(f"config.data.synthetic.num_{split} is {count}; give it 1 or more")
    source = SyntheticSource(
      seed=seed,
      first=SPLITS.index(split) * 1_000_000,  # far apart, so that no picture is in two splits
      count=count,
      image_size=synthetic["image_size"],
    )
  elif data["source"] in SET_NAMES:
    from medlitenet_jax.data.public import official  # here because importing TFDS is slow

    builder = official.create_builder(data["source"], Path(data["root"]), data["working_size"])
    source = official.PreparedSource(builder, split, to_score)
  else:
    names = ", ".join(("folder", "synthetic", *SET_NAMES))
    raise InputError(f"config.data.source: {data['source']!r} is not one of {names}")
  return limited(source, data, split)


def limited(source: Source, data: Mapping[str, Any], split: str) -> Source:
  """Limits a source to its first cases, as `max_train_images` and `max_eval_images` say.

  Args:
    source: all cases of the split.
    data: `config.data` as a mapping.
    split: one of `SPLITS`.

  Returns:
    The limited source, or `source` itself if there is no limit.
  """
  limit = data["max_train_images"] if split == "train" else data["max_eval_images"]
  return FirstCases(source, limit) if 0 < limit < len(source) else source


def _warn_of_unlisted(scan: Scan) -> None:
  for kind, fate in (
    ("no_split", "in no split and are left out"),
    ("no_group", "in no group"),
    ("names_differ_in_case", "named like another one except for upper and lower case"),
  ):
    if count := scan.count(kind):
      logger.warning("%s: %d photographs are %s", scan.root, count, fate)
