"""Where cases come from: a folder of photographs and masks, or generated ones.

A source is a sequence of cases, each read when it is asked for. `create_source` picks one by
`config.data.source`; a new source is a class here and one line there.
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

SET_NAMES = ("isic2018", "isic2017", "isic2016", "ph2", "ham10000")  # builders of data/official.py


class SyntheticSource:
  """Generated dermoscopy whose truth is exact.

  Attributes:
    case_ids: "synthetic_" and the number of the drawing.
  """

  def __init__(self, *, seed: int, first: int, count: int, image_size: int):
    """Prepares drawings `first` to `first + count` of a seed, image_size pixels a side."""
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
    """Takes pairs of files as `folder.py` finds them; each is read when it is asked for."""
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
  """Another source whose cases stay in memory once they were read, as many as fit.

  Which ones stay depends on the order of reading; what is read does not.

  Attributes:
    case_ids: names of the cases.
  """

  def __init__(self, source: Source, limit: float):
    """Keeps up to `limit` bytes of pixels of `source`; safe to read from several threads."""
    self._source, self.case_ids = source, source.case_ids
    self._free, self._lock = limit, threading.Lock()
    self._kept: dict[int, Case] = {}

  def __len__(self) -> int:
    """Number of cases."""
    return len(self.case_ids)

  def __getitem__(self, index: int) -> Case:
    """Reads one case, its arrays read-only."""
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
    seed: of generated cases.
    to_score: whether masks are scored by, so at the photograph's own size, or learnt from.

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
      first=SPLITS.index(split) * 1_000_000,  # far apart: no drawing is in two splits
      count=count,
      image_size=synthetic["image_size"],
    )
  elif data["source"] in SET_NAMES:
    from medlitenet_jax.data.public import official  # TFDS takes its time

    builder = official.create_builder(data["source"], Path(data["root"]), data["working_size"])
    source = official.PreparedSource(builder, split, to_score)
  else:
    names = ", ".join(("folder", "synthetic", *SET_NAMES))
    raise InputError(f"config.data.source: {data['source']!r} is not one of {names}")
  return limited(source, data, split)


def limited(source: Source, data: Mapping[str, Any], split: str) -> Source:
  """The first cases of a source where the configuration limits a run to them.

  Args:
    source: all cases of the split.
    data: `config.data` as a mapping.
    split: one of `SPLITS`.

  Returns:
    The source itself where there is no limit.
  """
  limit = data["max_train_images"] if split == "train" else data["max_eval_images"]
  return FirstCases(source, limit) if 0 < limit < len(source) else source


def _warn_of_unlisted(scan: Scan) -> None:
  for kind, fate in (
    ("no_split", "in no split and are left out"),
    ("no_group", "in no group"),
    ("names_differ_in_case", "named as another but for capital letters"),
  ):
    if count := scan.count(kind):
      logger.warning("%s: %d photographs are %s", scan.root, count, fate)
