"""Photographs without ground truth: found, named for the results, and read on access."""

import collections
import dataclasses
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath

import numpy as np

from medlitenet_jax.data.cases import MASK_SUFFIX
from medlitenet_jax.data.images.gather import gather
from medlitenet_jax.data.images.image_files import decode_image, mm_per_pixel, read_content
from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import LONGEST_NAME, TEMPORARY_SUFFIX

logger = logging.getLogger(__name__)

VIEW_SIDE = 2048  # pixels; overlays and maps of larger photographs are reduced to it


@dataclasses.dataclass(frozen=True)
class Photograph:
  """A photograph to be outlined.

  Attributes:
    index: place in its source.
    case_id: its place below the folder that was given, with / between folders, without ending
      unless another photograph differs in that alone.
    path: of its file.
    image: [H, W, 3] uint8 as read; `predict_cases` replaces it by one of the network's size. One
      black pixel where it cannot be read.
    view: the same with the longer side at most `VIEW_SIDE`, for the overlay.
    height: of the photograph itself, in pixels.
    width: of the photograph itself, in pixels.
    stated_mm: side of a pixel in mm, as its file states it, or None.
    sha256: of its file, hexadecimal; empty where it cannot be read.
    error: why it cannot be read; empty where it can.
  """

  index: int
  case_id: str
  path: Path
  image: np.ndarray
  view: np.ndarray
  height: int
  width: int
  stated_mm: float | None = None
  sha256: str = ""
  error: str = ""


class PhotographSource:
  """Photographs in files; one that cannot be read has the reason in `error`."""

  def __init__(self, paths: Sequence[Path], case_ids: Mapping[Path, str]):
    """Keeps the paths, and their names in the results; a file is read when it is indexed."""
    self._paths, self._case_ids = paths, case_ids

  def __len__(self) -> int:
    """Number of files."""
    return len(self._paths)

  def __getitem__(self, index: int) -> Photograph:
    """Reads one photograph."""
    path = self._paths[index]
    case_id = self._case_ids[path]
    try:
      _refuse_long_name(path, case_id)
      content = read_content(path)
      image, stated = decode_image(content, path), mm_per_pixel(content, path)
    except InputError as error:
      nothing = np.zeros((1, 1, 3), np.uint8)
      return Photograph(index, case_id, path, nothing, nothing, 1, 1, error=str(error))
    height, width = image.shape[:2]
    scale = min(1.0, VIEW_SIDE / max(height, width))
    view = resize_image(image, max(1, round(height * scale)), max(1, round(width * scale)))
    return Photograph(index, case_id, path, image, view, height, width, stated, sha256_of(content))


def _refuse_long_name(path: Path, case_id: str) -> None:
  longest = LONGEST_NAME - len(f"{MASK_SUFFIX}.png{TEMPORARY_SUFFIX}")
  if len(os.fsencode(PurePosixPath(case_id).name)) > longest:
    raise InputError(
      f"{path}: its name is longer than {longest} bytes, so none of its results can be named after "
      "it; rename it"
    )


def names_of(places: Mapping[Path, PurePath]) -> dict[Path, str]:
  """The names of photographs in the results.

  Args:
    places: of the photographs, as `gather` gives them.

  Returns:
    The place of each without ending, with / between folders. Of files that differ in the ending
    alone, it is the whole place of each.

  Raises:
    InputError: if two would still have one name.
  """
  count = collections.Counter(place.with_suffix("") for place in places.values())
  found: dict[str, Path] = {}
  for path, place in places.items():
    bare = place.with_suffix("")
    name = (bare if count[bare] == 1 else place).as_posix()
    if found.setdefault(name, path) is not path:
      raise InputError(
        f"{path}: its results would have the name of those of {found[name]}; rename one of the two"
      )
  return {path: name for name, path in found.items()}


def find_photographs(inputs: Sequence[Path], results_file: str) -> dict[Path, str]:
  """Lists the photographs that files, folders and patterns stand for; see `gather`.

  Args:
    inputs: image files, folders, or patterns.
    results_file: name of a file by which a folder of results is known, which is left out.

  Returns:
    {path: name in the results}, in the order given, those of a folder sorted; see `names_of`.

  Raises:
    InputError: if an input does not exist, holds no image, or two photographs share a name with
      its ending.
  """
  paths = names_of(gather(inputs, results_file))
  folded = collections.Counter(name.casefold() for name in paths.values())
  if alike := sum(count for count in folded.values() if count > 1):
    logger.warning(
      "%d photographs have names that differ in case only; some file systems keep only one of "
      "two such files",
      alike,
    )
  return paths


def file_name(path: Path, case_id: str) -> str:
  """The file of a photograph as tables name it: below the folder that was given."""
  return str(PurePosixPath(case_id).with_name(path.name))


def sha256_of(content: bytes) -> str:
  """The SHA-256 of a file's content, hexadecimal."""
  return hashlib.sha256(content).hexdigest()
