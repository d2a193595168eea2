"""A short look, before a download begins, for what it needs: a network, and room on the disk."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from medlitenet_jax.system import limits
from medlitenet_jax.system.errors import InputError

SECONDS = 8.0  # in which some server has to answer


def refuse_download(urls: Sequence[str], folder: Path, instead: str) -> None:
  """Refuses a download that cannot be reached, or does not fit on the disk.

  Args:
    urls: addresses of the files.
    folder: that receives them; it need not exist yet.
    instead: what else can be done, for the message.

  Raises:
    InputError: if no server answers in time, or the disk is too small.
  """
  if not urls:
    return
  answers: dict[str, int | Exception] = {}
  # Daemons, for looking up the name of a server may take minutes, and the process need not wait.
  threads = [threading.Thread(target=_ask, args=(u, answers), daemon=True) for u in urls]
  deadline = time.monotonic() + SECONDS
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(max(0.0, deadline - time.monotonic()))
  found = dict(answers)
  sizes = [answer for answer in found.values() if isinstance(answer, int)]
  if not sizes:
    errors = [answer for answer in found.values() if isinstance(answer, Exception)]
    reason = type(errors[0]).__name__ if errors else f"no answer within {SECONDS:.0f} s"
    raise InputError(
      f"{urls[0]}: cannot be reached ({reason}); connect to the network, or {instead}"
    )
  limits.refuse_more_than(
    limits.free_disk(folder),
    sum(sizes),
    f"{folder}: the archives to be downloaded take",
    of="of the disk",
    instead=f"make room, or {instead}",
  )


def _ask(url: str, answers: dict[str, int | Exception]) -> None:
  """Notes the size of a file in bytes, 0 if the server does not tell; or why there is no answer."""
  try:
    answer = requests.head(url, timeout=SECONDS, allow_redirects=True)
    answers[url] = int(answer.headers.get("content-length", 0)) if answer.ok else 0
  except (requests.RequestException, ValueError) as error:
    answers[url] = error
