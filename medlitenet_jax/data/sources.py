"""Where cases come from: a folder of photographs and masks, or generated ones.

A source is a sequence of cases, each read when it is asked for. `create_source` picks one by
`config.data.source`; a new source is a class here and one line there.
"""

import csv
import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medlitenet_jax.data import image_files
from medlitenet_jax.data.synthetic import draw_dermoscopy
from medlitenet_jax.errors import InputError

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SET_NAMES = ("isic2018", "isic2017", "isic2016", "ph2", "ham10000")  # builders of data/official.py
MASK_SUFFIX = "_segmentation"


@dataclasses.dataclass(frozen=True)
class Case:
  """One photograph and its truth.

  Attributes:
    index: place of the case in its source.
    case_id: name of the photograph without its ending.
    image: [H, W, 3] uint8 RGB at its own size, or at the working size of a prepared set.
    mask: [H, W] uint8, 0 or 1; of the size of `image` where it is learnt from, of the photograph's
      own where it is scored by.
  """

  index: int
  case_id: str
  image: np.ndarray
  mask: np.ndarray


class Source(Protocol):
  """A sequence of cases with their names known beforehand."""

  @property
  def case_ids(self) -> Sequence[str]:
    """Names of the cases, in order."""

  def __len__(self) -> int:
    """Number of cases."""

  def __getitem__(self, index: int) -> Case:
    """Reads one case."""


class Photographs(Protocol):
  """A sequence of photographs without truth: anything with an `image`, [H, W, 3] uint8."""

  def __len__(self) -> int:
    """Number of photographs."""

  def __getitem__(self, index: int) -> Any:
    """Reads one photograph."""


def split_hash(case_ids: Sequence[str]) -> str:
  """Fingerprint of a split: equal for the same cases in whatever order.

  Args:
    case_ids: names of the cases.

  Returns:
    First 16 hexadecimal digits of the SHA-256 of the sorted names, one a line.
  """
  return hashlib.sha256("\n".join(sorted(case_ids)).encode()).hexdigest()[:16]


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
  """Photographs in `images/` with masks in `masks/`, as ISIC names them.

  Attributes:
    case_ids: names of the photographs of the split, sorted.
  """

  def __init__(self, root: Path, split: str):
    """Finds the cases of a split and checks, from the heads of the files, that they fit.

    Args:
      root: holds `images/ID.jpg` (or .png, .bmp, .tif), `masks/ID_segmentation.png` and,
        optionally, `splits.csv` with the columns id and split. Without that file a case's split
        follows from its name alone: a tenth each for val and test.
      split: one of `SPLITS`.

    Raises:
      InputError: if a folder, a photograph, a mask or the split is missing, two photographs share
        a name, or a mask has another size than its photograph.
    """
    folders = root / "images", root / "masks"
    for folder in folders:
      if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; config.data.root must hold images/ and masks/")
    images, masks = map(image_files.find_images, folders)
    splits = _read_splits(root / "splits.csv")
    if splits is None:
      splits = {
        case_id: split_by_hash(case_id, val_fraction=0.1, test_fraction=0.1) for case_id in images
      }
    self.case_ids = sorted(case_id for case_id, name in splits.items() if name == split)
    if not self.case_ids:
      raise InputError(f"{root}: split {split!r} is empty; choose another or fill splits.csv")

    _refuse_missing(self.case_ids, images, f"{root}/splits.csv names", f"{root}/images")
    unused = len(images.keys() - splits.keys())
    if unused:
      logger.warning("%s: %d photographs are in no split and are left out", root, unused)
    mask_names = {case_id: case_id + MASK_SUFFIX for case_id in self.case_ids}
    _refuse_missing(list(mask_names.values()), masks, f"{root}/images needs", f"{root}/masks")

    self._files = [(images[c], masks[mask_names[c]]) for c in self.case_ids]
    for image, mask in self._files:
      _refuse_sizes(mask, image_files.image_size(mask), image, image_files.image_size(image))

  def __len__(self) -> int:
    """Number of cases."""
    return len(self.case_ids)

  def __getitem__(self, index: int) -> Case:
    """Reads one case.

    Raises:
      InputError: if a file cannot be decoded.
    """
    image_path, mask_path = self._files[index]
    image, mask = image_files.read_image(image_path), image_files.read_mask(mask_path)
    _refuse_sizes(mask_path, mask.shape, image_path, image.shape[:2])
    return Case(index, self.case_ids[index], image, mask)


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
    source = FolderSource(Path(data["root"]), split)
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
    from medlitenet_jax.data import official  # TFDS takes its time

    builder = official.create_builder(data["source"], Path(data["root"]), data["working_size"])
    source = official.PreparedSource(builder, split, to_score)
  else:
    names = ", ".join(("folder", "synthetic", *SET_NAMES))
    raise InputError(f"config.data.source: {data['source']!r} is not one of {names}")
  limit = data["max_train_images"] if split == "train" else data["max_eval_images"]
  return FirstCases(source, limit) if 0 < limit < len(source) else source


def _read_splits(path: Path) -> dict[str, str] | None:
  """Split of each case by its name, or None where there is no such file."""
  if not path.exists():
    return None
  try:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    rows = list(csv.DictReader(lines))
  except (OSError, UnicodeError, csv.Error) as error:
    raise InputError(f"{path}: cannot be read ({error}); save it as CSV in UTF-8") from error
  if not lines or not {"id", "split"} <= set(next(csv.reader(lines[:1]))):
    raise InputError(f"{path}: needs a first line with the columns id and split")
  splits: dict[str, str] = {}
  for number, row in enumerate(rows, start=2):
    if row["split"] not in SPLITS:
      raise InputError(
        f"{path} line {number}: split {row['split']!r} is not one of {', '.join(SPLITS)}"
      )
    if row["id"] in splits:
      raise InputError(f"{path} line {number}: {row['id']} stands there twice; remove one line")
    splits[row["id"]] = row["split"]
  return splits


def split_by_hash(key: str, *, val_fraction: float, test_fraction: float, seed: int = 0) -> str:
  """A split that follows from a name alone, so that adding files changes no other's.

  Args:
    key: name of the case, or of the patient or lesion whose cases stay together.
    val_fraction: share of all keys that `val` gets, on average.
    test_fraction: share that `test` gets.
    seed: for another draw.

  Returns:
    One of `SPLITS`.
  """
  place = int(hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()[:16], 16) / 16**16
  if place < val_fraction:
    return "val"
  return "test" if place < val_fraction + test_fraction else "train"


def _refuse_missing(needed: Sequence[str], found: Mapping[str, Path], who: str, where: str) -> None:
  missing = [name for name in needed if name not in found]
  if missing:
    named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    raise InputError(
      f"{who} {len(missing)} files that are not in {where}: {named}; add them, or "
      "leave these cases out"
    )


def _refuse_sizes(mask, mask_size, image, image_size) -> None:
  if tuple(mask_size) != tuple(image_size):
    raise InputError(
      f"{mask}: mask is {mask_size[0]}x{mask_size[1]} but {image} is "
      f"{image_size[0]}x{image_size[1]} (height x width); give both one size"
    )
