"""The one exception that a user's mistake raises."""


class InputError(Exception):
  """Something the user gave cannot be used.

  The message is one line that names the file or field and says what to do about it. `launch.py`
  prints it alone, without a traceback, and leaves with exit status 2.
  """
