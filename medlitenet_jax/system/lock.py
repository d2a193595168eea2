"""One process at a time in a folder."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from medlitenet_jax.system.errors import InputError

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"  # names the process that writes to a folder; empty when there is none


@contextlib.contextmanager
def lock_folder(folder: Path, doing: str, flag: str) -> Iterator[None]:
  """Keeps other processes out; the system lets go when this one ends, however it does.

  The lock's file stays, empty: removing it would let two processes lock two files of one name.

  Args:
    folder: exists.
    doing: what the others are told of this process: "is training in it".
    flag: that names the folder.

  Yields:
    Nothing.

  Raises:
    InputError: if another process is in it.
  """
  with (folder / LOCK_FILE).open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      holder = file.read().strip() or "another process"
      raise InputError(
        f"{folder}: {holder} {doing}; wait for its end or choose another {flag}"
      ) from error
    except OSError as error:  # some network file systems have no locks
      logger.warning("%s: cannot be locked (%s); start no second process in it", folder, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)
