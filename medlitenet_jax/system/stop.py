"""Stopping a run from outside: a signal is noted, and the loop leaves once its state is saved."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)


class Stopped(Exception):
  """A signal stopped a run, which has saved what it learned.

  Attributes:
    signal: its number; the process leaves with status 128 plus that.
  """

  def __init__(self, number: int, where: str):
    """Takes the signal's number and how far the run came."""
    super().__init__(f"stopped by {signal.Signals(number).name} {where}")
    self.signal = number


class StopRequest:
  """Whether a run has been asked to stop.

  Attributes:
    signal: number of the first signal, None until there is one.
  """

  signal: int | None = None

  def __call__(self) -> bool:
    """Tells whether there was a signal."""
    return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
  """Notes SIGTERM and Ctrl-C in place of ending the process; a second Ctrl-C ends it at once.

  A thread does so, for the main one may be compiling for a minute, and Python's own handlers wait
  for it. Must be called from the main thread.

  Yields:
    What the loop asks before each batch.
  """
  request = StopRequest()
  reading, writing = os.pipe()
  os.set_blocking(writing, False)

  def watch() -> None:
    while received := os.read(reading, 1):
      number = received[0]
      if number not in (signal.SIGINT, signal.SIGTERM):
        continue
      if request.signal is None:
        request.signal = number
        logger.warning("Finishing the batch and saving; Ctrl-C leaves at once, saving nothing.")
      elif number == signal.SIGINT:
        os._exit(128 + number)

  watcher = threading.Thread(target=watch, name="signals", daemon=True)
  watcher.start()
  before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  # The signals go to the pipe; that they have a handler keeps them from doing anything else.
  handlers = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield request
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(before)
    os.close(writing)
    watcher.join()
    os.close(reading)
