"""Finds the files of a data set as it is handed out: in zip archives, or unpacked."""

import functools
import hashlib
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import MAX_BYTES, read_bytes

Reader = Callable[[], bytes]
# What a zip file or a member of one raises that is damaged, encrypted or of another kind.
_DAMAGE = (
  OSError,
  EOFError,
  ValueError,
  RuntimeError,
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
)


def find_archive(folder: Path, name: str) -> Path | None:
  """Looks for an archive that may have been unpacked.

  Args:
    folder: to look in; for what it unpacks to, in the folders directly in it as well.
    name: of the archive without ".zip".

  Returns:
    The unpacked folder or, without one, the zip file; None if there is neither.
  """
  for pattern in (name, f"*/{name}"):
    for path in sorted(folder.glob(pattern)):
      if path.is_dir():
        return path
  return next((path for path in sorted(folder.glob(f"{name}.zip"))), None)


def find_members(archives: Sequence[Path], name: re.Pattern[str]) -> dict[str, Reader]:
  """Lists the files of archives whose name says that they belong to a case.

  Args:
    archives: zip files, or folders, which are looked into at every depth.
    name: fully matches a file's name without its ending; its first group is the case.

  Returns:
    By case, in order, a function that reads the file's bytes; safe to call from many threads.

  Raises:
    InputError: if an archive is damaged, or two files belong to one case.
  """
  found: dict[str, Reader] = {}
  for archive in archives:
    for stem, read in _walk(archive):
      match = name.fullmatch(stem)
      if match is None:
        continue
      if match[1] in found:
        raise InputError(f"{archive}: {stem} is there twice, or in another archive; remove one")
      found[match[1]] = read
  return dict(sorted(found.items()))


def _walk(archive: Path) -> Iterator[tuple[str, Reader]]:
  """Every file's name without its ending, with its reader."""
  if archive.is_dir():
    for path in sorted(archive.rglob("*")):
      if path.is_file():
        yield path.stem, functools.partial(_read_file, path)
    return
  try:
    packed = zipfile.ZipFile(archive)
  except _DAMAGE as error:
    raise InputError(f"{archive}: not a readable zip ({error}); fetch it again") from error
  lock = threading.Lock()  # a ZipFile has one position for all who read from it

  def reader(member: zipfile.ZipInfo) -> Reader:
    def read() -> bytes:
      try:
        with lock:
          return _read_member(packed, member)
      except _DAMAGE as error:
        raise InputError(
          f"{archive}: {member.filename} cannot be read ({error}); fetch it again"
        ) from error

    return read

  for member in packed.infolist():
    if member.filename and not member.is_dir():
      yield Path(member.filename).stem, reader(member)


def _read_file(path: Path) -> bytes:
  try:
    return read_bytes(path)
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read ({error}); fetch it again") from error


def _read_member(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
  """Unpacks no more of a member than it says to hold, and refuses where that is absurd."""
  if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError("neither stored nor deflated")  # the others cannot be bounded
  if member.file_size > MAX_BYTES:
    raise ValueError(f"larger than the {MAX_BYTES >> 20} MiB that are read")
  with packed.open(member) as file:
    content = file.read(member.file_size)
    if file.read(1) or len(content) != member.file_size:
      raise ValueError("cut off")
  return content


def refuse_other_file(path: Path, sha256: str) -> None:
  """Compares a zip file with its published checksum.

  Args:
    path: of the file.
    sha256: 64 hexadecimal digits.

  Raises:
    InputError: if they differ.
  """
  digest = hashlib.sha256()
  total = path.stat().st_size
  with (
    path.open("rb") as file,
    tqdm(total=total, unit="B", unit_scale=True, desc=f"checksum of {path.name}") as bar,
  ):
    while block := file.read(1 << 22):
      digest.update(block)
      bar.update(len(block))
  if digest.hexdigest() != sha256:
    raise InputError(f"{path}: not the published file (SHA-256 differs); fetch it again")
