"""Finds the files of a published data set, in zip archives or unpacked."""

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
# Exceptions of a zip file, or a member of one, that is damaged, encrypted or of another kind.
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
  """Finds an archive, unpacked or not.

  Args:
    folder: folder to search; its subfolders are also searched for the unpacked archive.
    name: name of the archive without ".zip".

  Returns:
    The unpacked folder, else the zip file, else None.
  """
  for pattern in (name, f"*/{name}"):
    for path in sorted(folder.glob(pattern)):
      if path.is_dir():
        return path
  return next((path for path in sorted(folder.glob(f"{name}.zip"))), None)


def find_members(archives: Sequence[Path], name: re.Pattern[str]) -> dict[str, Reader]:
  """Lists the files of archives whose names match a case.

  Args:
    archives: zip files, or folders, which are searched recursively.
    name: must fully match the file name without suffix; its first group is the case.

  Returns:
    {case: thread-safe function that reads the file's bytes}, sorted.

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
        raise InputError(f"{archive}: {stem} exists twice, or also in another archive; remove one")
      found[match[1]] = read
  return dict(sorted(found.items()))


def _walk(archive: Path) -> Iterator[tuple[str, Reader]]:
  """Yields every file's name without suffix, and its reader."""
  if archive.is_dir():
    for path in sorted(archive.rglob("*")):
      if path.is_file():
        yield path.stem, functools.partial(_read_file, path)
    return
  try:
    packed = zipfile.ZipFile(archive)
  except _DAMAGE as error:
    raise InputError(f"{archive}: not a readable zip ({error}); fetch it again") from error
  lock = threading.Lock()  # all readers of a ZipFile share its file position

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
  """Unpacks a member, up to its declared size; refuses an excessive one."""
  if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError("neither stored nor deflated")  # other methods' output cannot be bounded
  if member.file_size > MAX_BYTES:
    raise ValueError(f"larger than the limit of {MAX_BYTES >> 20} MiB")
  with packed.open(member) as file:
    content = file.read(member.file_size)
    if file.read(1) or len(content) != member.file_size:
      raise ValueError("cut off")
  return content


def refuse_other_file(path: Path, sha256: str) -> None:
  """Compares a zip file with its published checksum.

  Args:
    path: path of the file.
    sha256: the published checksum, 64 hexadecimal digits.

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
