"""The one exception that a user's mistake raises."""

from collections.abc import Sequence
from typing import NamedTuple

NO_MEMORY = (
  "not enough memory; set smaller sizes or batches, config.model.remat=True, "
  "config.data.cache_gib=0, or fewer config.data.num_threads"
)


class Way(NamedTuple):
  """Something that can be done about a mistake.

  Attributes:
    what: it does, in a few words.
    command: that does it, to be pasted into a shell.
  """

  what: str
  command: str


def error_lines(program: str, reason: object) -> list[str]:
  """The lines that tell a mistake: what is wrong, and the ways on below it.

  Args:
    program: its name.
    reason: an `InputError`, or text.

  Returns:
    Lines in which what a file's name or content brought along cannot steer the terminal.
  """
  ways = [line for way in getattr(reason, "ways", ()) for line in (f"  {way[0]}:", f"    {way[1]}")]
  return [
    "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    for line in (f"{program}: error: {' '.join(str(reason).split())}", *ways)
  ]


class InputError(Exception):
  """Something the user gave cannot be used.

  The message is one line that names the file or field and says what to do about it. The command
  line prints it alone, without a traceback, and leaves with exit status 2. Where there are several
  ways on, each with a command of its own, they are printed below that line.

  Attributes:
    ways: that lead on; mostly none beyond what the message says.
  """

  def __init__(self, reason: object = "", ways: Sequence[Way] = ()):
    """Takes the line, and the ways on."""
    super().__init__(reason)
    self.ways = tuple(ways)
