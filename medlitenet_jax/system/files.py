"""Reads files within limits, and writes them so that they are complete at any moment.

Reading stops at a largest size, and refuses pipes and devices. It follows links, since photographs
often lie elsewhere. Writing never goes through a link below the folder that a mode writes to.
"""

import contextlib
import glob
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medlitenet_jax.system.errors import InputError

MAX_BYTES = 512 * 2**20  # of a picture, enough for 120 million uncompressed pixels of 32 bits
MAX_TEXT_BYTES = 64 * 2**20  # of a table or JSON file, enough for half a million cases
TEMPORARY_SUFFIX = ".tmp"
LONGEST_NAME = 255  # bytes of a file's name that most systems allow


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
  """Reads a file.

  Args:
    path: of a file, or of a link to one.
    most: largest size in bytes.

  Returns:
    The content.

  Raises:
    OSError: if it cannot be read, or is a folder, a pipe or a device; the last two may never end.
    ValueError: if it is larger than `most`.
  """
  if path.exists() and not path.is_file():
    raise OSError("is a folder, not a file" if path.is_dir() else "is a pipe or a device")
  with path.open("rb") as file:
    # Asking for its size only: read(most) would reserve 512 MiB for each of several readers.
    content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
  if len(content) > most:
    raise ValueError(f"is larger than the {most >> 20} MiB that are read")
  return content


def read_text(path: Path) -> str:
  """Reads UTF-8 text, with or without a byte order mark; raises what `read_bytes` raises."""
  return read_bytes(path, MAX_TEXT_BYTES).decode("utf-8-sig")


def read_json(path: Path) -> Any:
  """Reads a JSON file.

  Args:
    path: of the file.

  Returns:
    Its content.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is not JSON.
  """
  try:
    return json.loads(read_text(path))
  except RecursionError as error:
    raise ValueError("nested too deeply") from error


def expand(pattern: Path) -> list[Path]:
  """The paths that a pattern with `*`, `?`, `[...]` or `**` stands for, as a shell expands it.

  Args:
    pattern: a path, with or without wildcards.

  Returns:
    Those that exist, sorted; itself if there is none, or if it exists as it is written.
  """
  if fixed_part(pattern) == pattern:
    return [pattern]
  return sorted(map(Path, glob.glob(str(pattern), recursive=True))) or [pattern]


def fixed_part(pattern: Path) -> Path:
  """The part of a pattern before the first wildcard; all of a path that exists as it is written."""
  if pattern.exists():
    return pattern
  parts = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)
  return Path(*parts)


def replace_file(path: Path, content: str | bytes) -> None:
  """Writes a file so that it has either its former or its new content at any moment.

  Args:
    path: of the file; its folder exists.
    content: text, written in UTF-8, or bytes.

  Raises:
    OSError: if it cannot be written.
  """
  temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
  temporary.unlink(missing_ok=True)  # else writing could go through a symbolic or hard link
  try:
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
  except OSError as error:  # as on a full disk, where a half-written file would only take room
    temporary.unlink(missing_ok=True)
    error.filename = error.filename or str(path)
    raise


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
  """Adds a file's name to the errors of writing to it while it is open, which lack it."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise


def claim_folder(
  folder: Path,
  marker: str,
  settings: Mapping[str, Any],
  flag: str,
  notes: Mapping[str, Any] | None = None,
) -> None:
  """Makes a folder for results with these settings, or checks that it was made for the same.

  Args:
    folder: that a mode writes to; missing, empty, or left by an earlier call.
    marker: name of the file in it that holds the settings.
    settings: that all results in the folder share; anything that JSON can hold.
    flag: command-line flag that names the folder, for error messages.
    notes: written beside the settings and not compared; those of the newest call that has any stay.

  Raises:
    InputError: if the folder holds anything else; nothing is changed then.
  """
  path = folder / marker
  if folder.exists() and not folder.is_dir():
    raise InputError(f"{folder}: is a file; choose another {flag}")
  if path.exists():
    try:
      saved = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
      raise InputError(f"{path}: holds no settings ({error}); choose another {flag}") from error
    changed = [name for name in settings if saved.get(name) != settings[name]]
    if changed:
      name, old, new = _difference(changed[0], saved.get(changed[0]), settings[changed[0]])
      raise InputError(
        f"{folder}: was made with {name}={old!r:.100}, not {new!r:.100}; choose another {flag}"
      )
  elif folder.is_dir() and any(folder.iterdir()):
    raise InputError(f"{folder}: not empty and without {marker}; choose another {flag}")
  refuse_links(folder)
  folder.mkdir(parents=True, exist_ok=True)
  if notes or not path.exists():
    replace_file(path, json.dumps({**settings, **(notes or {})}, indent=2) + "\n")


def _difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
  """The dotted name of the innermost value that differs, with both values."""
  pairs: list[tuple[Any, Any, Any]] = []
  if isinstance(old, dict) and isinstance(new, dict):
    pairs = [(key, old.get(key), new.get(key)) for key in {**new, **old}]
  elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    pairs = [(place, *pair) for place, pair in enumerate(zip(old, new, strict=True))]
  for key, before, after in pairs:
    if before != after:
      return _difference(f"{name}.{key}", before, after)
  return name, old, new


def refuse_links(folder: Path) -> None:
  """Refuses a folder that contains links; the folder itself may be a link.

  Args:
    folder: that a mode writes to; may be missing.

  Raises:
    InputError: names the first link.
  """
  for place, folders, names in os.walk(folder):
    for name in sorted(folders + names):
      path = Path(place, name)
      if path.is_symlink():
        raise InputError(
          f"{path}: is a link, so that writing to it could change something outside {folder}; "
          "remove it, or make a link of the whole folder"
        )
