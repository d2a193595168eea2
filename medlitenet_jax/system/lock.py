"""A lock that lets one process at a time write to a folder."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from medlitenet_jax.system.errors import InputError

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"  # names the process that writes to the folder; empty if none does


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
    InputError: if another process has locked it.
  """
  with (folder / LOCK_FILE).open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      holder = file.read().strip() or "another process"
      raise InputError(
        f"{folder}: {holder} {doing}; wait until it ends, or choose another {flag}"
      ) from error
    except OSError as error:  # some network file systems have no locks
      logger.warning("%s: cannot be locked (%s); start no second process there", folder, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)
