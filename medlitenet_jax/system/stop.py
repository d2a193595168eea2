"""Stops a run on a signal: the signal is noted, and the loop ends after it saved its state.

The main thread may be in a call that does not return for a minute, as compiling does not. Another
thread then saves what there is and ends the process.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from medlitenet_jax.system.errors import InputError, error_lines

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0  # for the main thread to end; whoever sent the signal may wait for 10
_TURN_SECONDS = 0.5  # between two tries of the watching thread


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
    save: called by the watching thread where the main thread does not end in time. It returns how
      far the run came, to follow "stopped by SIGTERM", once everything that was learned is saved,
      and None as long as it is not. The process then ends at once, so it may keep locks.
  """

  signal: int | None = None
  save: Callable[[], str | None] = staticmethod(lambda: "before it began")

  def __call__(self) -> bool:
    """Whether there was a signal."""
    return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
  """Notes SIGTERM and Ctrl-C instead of ending the process; a second Ctrl-C ends it at once.

  Python runs its handlers in the main thread, which may be compiling for a minute, so another
  thread watches for the signals. If the main thread has not left this context some seconds after
  one, that thread ends the process, once `StopRequest.save` allows it. Call this from the main
  thread.

  Yields:
    The request to stop, which the loop asks before each batch.
  """
  request = StopRequest()
  reading, writing = socket.socketpair()  # Windows takes a pipe only from Python 3.12 on
  writing.setblocking(False)
  watcher = threading.Thread(target=_watch, args=(reading, request), name="signals", daemon=True)
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


def _watch(reading: socket.socket, request: StopRequest) -> None:
  """Receives the signals, until the other end of the socket is closed."""
  deadline = 0.0
  while True:
    try:
      received = reading.recv(1)
    except TimeoutError:
      if time.monotonic() > deadline:
        _end_if_saved(request)
      continue
    if not received:
      return
    number = received[0]
    if number not in (signal.SIGINT, signal.SIGTERM):
      continue
    if request.signal is None:
      request.signal = number
      deadline = time.monotonic() + PATIENCE_SECONDS
      reading.settimeout(_TURN_SECONDS)
      logger.warning("Finishing the batch and saving; Ctrl-C exits at once without saving.")
    elif number == signal.SIGINT:
      os._exit(128 + number)


def _end_if_saved(request: StopRequest) -> None:
  """Ends the process, if what was learned is saved or cannot be; says which."""
  number, program = request.signal or signal.SIGTERM, Path(sys.argv[0]).name
  try:
    where = request.save()
  except InputError as error:  # a full disk
    status, lines = 2, error_lines(program, error)
  else:
    if where is None:
      return
    status, lines = 128 + number, [f"{program}: {Stopped(number, where)}"]
  sys.stdout.flush()
  print("\n".join(["", *lines]), file=sys.stderr, flush=True)
  os._exit(status)
