"""Rules for values of the configuration: a test, and the words that say what is allowed."""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from medlitenet_jax.system.errors import InputError


class Rule(NamedTuple):
  """What values a field takes.

  Attributes:
    holds: whether a value can be used; may raise TypeError, ValueError or OverflowError for a value
      of a wrong type.
    takes: what can be used, to follow "takes" in an error message.
  """

  holds: Callable[[Any], bool]
  takes: str

  def check(self, field: str, value: Any) -> None:
    """Refuses a value that breaks the rule.

    Args:
      field: its name, as the user writes it.
      value: of the field.

    Raises:
      InputError: names the field, what it takes and the value.
    """
    try:
      holds = bool(self.holds(value))
    except (TypeError, ValueError, OverflowError):
      holds = False
    if not holds:
      raise InputError(f"{field} takes {self.takes}, not {value!r:.80}")

  def verdict(self, value: Any) -> tuple[bool, str]:
    """Whether a value keeps the rule, and what is allowed, as `Entry.rules` has them."""
    return self.holds(value), f"takes {self.takes}"


def whole(least: int, most: int) -> Rule:
  """A whole number from `least` to `most`."""
  return Rule(
    lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most,
    f"a whole number from {least} to {most}",
  )


def number(
  *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf, below=math.inf
) -> Rule:
  """A finite number from `least` to `most` that is greater than `above` and less than `below`."""
  bounds = [
    f"{word} {bound:g}"
    for word, bound in (("of at least", least), ("above", above), ("up to", most), ("below", below))
    if math.isfinite(bound)
  ]
  return Rule(
    lambda v: math.isfinite(v) and least <= v <= most and above < v < below,
    f"a number {' and '.join(bounds)}" if bounds else "a finite number",
  )


def several(count: int, each: Rule) -> Rule:
  """A tuple of `count` values that keep a rule."""
  return Rule(
    lambda v: len(v) == count and all(map(each.holds, v)), f"{count} values, each {each.takes}"
  )


def one_of(names: Collection[str]) -> Rule:
  """One of some names."""
  return Rule(lambda v: v in names, f"one of {', '.join(names)}")


def some_of(names: Collection[str]) -> Rule:
  """Any of some names, each once."""
  return Rule(
    lambda v: set(v) <= set(names) and len(set(v)) == len(v),
    f"any of {', '.join(names)}, each once",
  )
