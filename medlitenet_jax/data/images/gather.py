"""Gathers the photographs that a command line names: files, folders and patterns."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from medlitenet_jax.data.images.image_files import (
  IMAGE_SUFFIXES,
  image_names,
  no_image,
  refuse_name,
)
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import expand, fixed_part

logger = logging.getLogger(__name__)

NAMED = 5  # files named in a line of the log


def gather(inputs: Sequence[Path], results_marker: str) -> dict[Path, Path]:
  """Lists photographs, and names in the log what is left out.

  Left out are hidden files and folders, files that are no images, links to folders, folders of
  results, and `masks` beside `images`, as in a data set.

  Args:
    inputs: image files, folders, or patterns as `photos/*.jpg`, which the shell left as they are.
    results_marker: name of the file by which a folder of results is known.

  Returns:
    {path: its place}, each file once, in the order given, those of a folder sorted. The place is
    the path from the folder that was given, from the part of a pattern that has no wildcard, or of
    a file its name alone.

  Raises:
    InputError: if an input does not exist, holds no photograph or is a folder of results, or if two
      files have the same place.
  """
  places: dict[Path, Path] = {}
  taken: set[str] = set()
  for given in inputs:
    for path, place in _gather_one(given, results_marker).items():
      if os.path.abspath(path) not in taken:
        taken.add(os.path.abspath(path))
        places[path] = place
  _refuse_same_places(places)
  return places


def _refuse_same_places(places: dict[Path, Path]) -> None:
  """Refuses two files of one place; drops the second of two links to one file."""
  first: dict[Path, Path] = {}
  for path, place in list(places.items()):
    other = first.setdefault(place, path)
    if other is path:
      continue
    if other.resolve() != path.resolve():
      raise InputError(
        f"{path}: {other} has the same name; name a folder that holds both, which keeps them "
        "apart, or predict each into an --output of its own"
      )
    del places[path]


def _gather_one(given: Path, results_marker: str) -> dict[Path, Path]:
  """The photographs of an input with their places."""
  if given.is_dir():
    if (given / results_marker).exists():
      raise InputError(
        f"{given}: holds what predict has written, as {results_marker} says; name photographs"
      )
    found, left_out = _below(given, results_marker)
    if not found:
      raise InputError(no_image(given))
    _name_left_out(given, left_out)
    return {path: path.relative_to(given) for path in found}
  if given.exists():
    if given.suffix.lower() not in IMAGE_SUFFIXES:
      raise InputError(
        f"{given}: not an image file; --input takes a folder, or a file that ends in one of "
        f"{', '.join(IMAGE_SUFFIXES)}"
      )
    refuse_name(given)
    return {given: Path(given.name)}
  top = fixed_part(given)
  if top == given:
    raise InputError(f"{given}: no such file or folder")
  found, left_out = _matching(given, results_marker)
  if not found:
    raise InputError(f"{given}: no image matches this pattern")
  _name_left_out(given, left_out)
  return {path: path.relative_to(top) for path in found}


def _matching(pattern: Path, results_marker: str) -> tuple[list[Path], list[str]]:
  """The photographs that a pattern stands for, and what else."""
  found: list[Path] = []
  left_out: list[str] = []
  top = fixed_part(pattern)
  for path in expand(pattern):
    between = [folder for folder in path.parents if top in folder.parents]
    if any(_is_left_out(folder, results_marker) for folder in between):
      left_out.append(str(path))
    elif path.is_dir() and not _is_left_out(path, results_marker):
      more, others = _below(path, results_marker)
      found += more
      left_out += [str(path / name) for name in others]
    elif path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
      refuse_name(path)
      found.append(path)
    else:
      left_out.append(str(path))
  return found, [*dict.fromkeys(left_out)]


def _is_left_out(folder: Path, results_marker: str) -> bool:
  """Whether a folder found on the way has no photographs that are meant."""
  is_masks = folder.name == "masks" and (folder.parent / "images").is_dir()
  aside = folder.name.startswith(".") or folder.is_symlink()  # which may lead back up
  return is_masks or aside or (folder / results_marker).exists()


def _below(folder: Path, results_marker: str) -> tuple[list[Path], list[str]]:
  """The photographs of a folder and of those below it, and what else is there."""
  found: list[Path] = []
  left_out: list[str] = []
  for place, folders, names in os.walk(folder):
    here = Path(place)
    images = [path for paths in image_names(here).values() for path in paths if path.is_file()]
    found += images
    others = set(names).difference(path.name for path in images)
    skipped = {name for name in folders if _is_left_out(here / name, results_marker)}
    left_out += [str((here / name).relative_to(folder)) for name in sorted(others | skipped)]
    folders[:] = sorted(set(folders) - skipped)
  return found, left_out


def _name_left_out(given: Path, names: Sequence[str]) -> None:
  if names:
    named = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    logger.warning("%s: left out %d that are no photographs: %s", given, len(names), named)
