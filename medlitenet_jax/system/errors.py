"""The one exception that a user's mistake raises."""


class InputError(Exception):
  """Something the user gave cannot be used.

  The message is one line that names the file or field and says what to do about it. The command
  line prints it without a traceback and exits with status 2.
  """
