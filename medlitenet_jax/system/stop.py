"""Stops a run on a signal: the signal is noted, and the loop ends after it saved its state."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)


class Stopped(Exception):
  """A signal ended a run early; its state is saved.

  Attributes:
    signal: number of the signal; the process exits with status 128 plus that.
  """

  def __init__(self, number: int, where: str):
    """Makes the message.

    Args:
      number: of the signal.
      where: how far the run came, to follow "stopped by SIGTERM".
    """
    super().__init__(f"stopped by {signal.Signals(number).name} {where}")
    self.signal = number


class StopRequest:
  """Whether a run was asked to stop; calling it tells so.

  Attributes:
    signal: number of the first signal, None until there is one.
  """

  signal: int | None = None

  def __call__(self) -> bool:
    """Whether there was a signal."""
    return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
  """Notes SIGTERM and Ctrl-C instead of ending the process; a second Ctrl-C ends it at once.

  Python runs its handlers in the main thread, which may be compiling for a minute, so another
  thread watches for the signals. Call this from the main thread.

  Yields:
    The request to stop, which the loop asks before each batch.
  """
  request = StopRequest()
  reading, writing = socket.socketpair()  # Windows takes a pipe only from Python 3.12 on
  writing.setblocking(False)

  def watch() -> None:
    while received := reading.recv(1):
      number = received[0]
      if number not in (signal.SIGINT, signal.SIGTERM):
        continue
      if request.signal is None:
        request.signal = number
        logger.warning("Finishing the batch and saving; Ctrl-C exits at once without saving.")
      elif number == signal.SIGINT:
        os._exit(128 + number)

  watcher = threading.Thread(target=watch, name="signals", daemon=True)
  watcher.start()
  before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
  # Python writes the signals to the socket; the empty handlers replace those that end the process.
  handlers = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield request
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(before)
    writing.close()
    watcher.join()
    reading.close()
