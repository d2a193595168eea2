"""Files read as others left them, and written so that they are whole at any instant.

What is read is of bounded size and never a pipe or a device. Links to files are followed there, for
photographs often lie elsewhere. Nothing is written through a link below the folder that a mode
writes to.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medlitenet_jax.system.errors import InputError

MAX_BYTES = 512 * 2**20  # of a picture's file: 120 million uncompressed pixels of 32 bits fit
MAX_TEXT_BYTES = 64 * 2**20  # of a table or JSON file: half a million cases fit
TEMPORARY_SUFFIX = ".tmp"
LONGEST_NAME = 255  # bytes of a file's name, on most systems


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
  """Reads a file.

  Args:
    path: of a file, or a link to one.
    most: bytes that are read.

  Returns:
    The content.

  Raises:
    OSError: if it cannot be read, or is a pipe or a device, which may have no end.
    ValueError: if it is larger.
  """
  if path.exists() and not path.is_file():
    raise OSError("is no file" if path.is_dir() else "is a pipe or a device")
  with path.open("rb") as file:
    # No more room than it takes: four readers would else ask for two GiB.
    content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
  if len(content) > most:
    raise ValueError(f"is larger than the {most >> 20} MiB that are read")
  return content


def read_text(path: Path) -> str:
  """Reads a text in UTF-8, with or without a byte order mark; raises as `read_bytes` does."""
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


def replace_file(path: Path, content: str | bytes) -> None:
  """Writes a file that is whole at any instant: as it was, or as it will be.

  Args:
    path: of the file; its folder exists.
    content: text, which is written in UTF-8, or bytes.

  Raises:
    OSError: if it cannot be written.
  """
  temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
  temporary.unlink(missing_ok=True)  # a link, or one file with that of another folder, is let go
  try:
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
  except OSError as error:  # a full disk needs no half-written file beside the old one
    temporary.unlink(missing_ok=True)
    error.filename = error.filename or str(path)
    raise


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
  """Gives the errors of writing an open file, which name none, the name of that file."""
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
  """Makes a folder for results of these settings, or checks that it was made for them.

  Args:
    folder: that a mode writes to; missing, empty, or as an earlier call left it.
    marker: name of the file in it that keeps the settings.
    settings: that all results in one folder must share; what JSON can hold.
    flag: that names the folder.
    notes: kept beside them, of the newest call that gives any.

  Raises:
    InputError: if it holds anything else; nothing is changed then.
  """
  path = folder / marker
  if folder.exists() and not folder.is_dir():
    raise InputError(f"{folder}: is a file; choose another {flag}")
  if path.exists():
    try:
      saved = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
      raise InputError(f"{path}: no settings ({error}); choose another {flag}") from error
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
  """The innermost name under which two values differ, and what stands there."""
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
  """Refuses to write into a folder with links in it; the folder itself may be one.

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
          f"{path}: is a link, through which something outside {folder} would be written; remove "
          "it, or link the whole folder"
        )
