"""A lock that lets one process at a time write to a folder."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

from medlitenet_jax.system.errors import InputError

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"  # names the process that writes to the folder; empty if none does


class InUseError(InputError):
  """Another process writes to the folder."""


@contextlib.contextmanager
def lock_folder(folder: Path, doing: str, flag: str) -> Iterator[None]:
  """Locks a folder until the context ends.

  The system releases the lock of a process that ends in any other way, so a lock left by a dead
  process is ignored. The file of the lock stays, empty: if it were removed, two processes could
  each lock a file of that name.

  Args:
    folder: exists.
    doing: what this process does, to complete "process 7 ..." in the error message of another:
      "is training in it".
    flag: command-line flag that names the folder, for error messages.

  Yields:
    Nothing.

  Raises:
    InUseError: if another process has locked it.
  """
  with (folder / LOCK_FILE).open("ab+", buffering=0) as file:
    try:
      locked = lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:  # some network file systems have no locks
      logger.warning("%s: cannot be locked (%s); start no second process there", folder, error)
      locked = True
    if not locked:
      file.seek(1)  # on Windows no other process can read the first byte, which is what is locked
      holder = file.read().decode(errors="replace").strip() or "another process"
      raise InUseError(f"{folder}: {holder} {doing}; wait until it ends, or choose another {flag}")
    file.truncate(0)
    file.write(f"\nprocess {os.getpid()} on {socket.gethostname()}\n".encode())
    try:
      yield
    finally:
      file.truncate(0)
