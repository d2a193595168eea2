"""What the project has to know of a network besides its module."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

Fields = Mapping[str, Any]


class Sizes(NamedTuple):
  """The sides of the photographs that a network takes.

  Attributes:
    multiple: of which every side is one, in pixels.
    smallest: side, in pixels.
    only: the sides that it takes, where its parameters are made for some; empty for any multiple.
  """

  multiple: int = 32
  smallest: int = 64
  only: tuple[int, ...] = ()

  def check(self, *sides: int) -> None:
    """Refuses sides that the network cannot take.

    Args:
      *sides: in pixels.

    Raises:
      ValueError: says what it takes.
    """
    for side in sides:
      if self.only and side not in self.only:
        takes = f"sides of {' or '.join(map(str, self.only))} pixels alone"
      elif not isinstance(side, int) or side < self.smallest or side % self.multiple:
        takes = f"sides that are multiples of {self.multiple} from {self.smallest} up"
      else:
        continue
      raise ValueError(f"the network takes {takes}, not {side!r}")

  def take(self, side: int) -> bool:
    """Whether the network takes a side."""
    try:
      self.check(side)
    except ValueError:
      return False
    return True


class Drawing(NamedTuple):
  """Where the picture of a network shows its parts.

  Attributes:
    places: centre of each part's box by its name, in units of a box's distance.
    wires: pairs of parts that an arrow joins.
    skips: pairs that a dashed arrow joins.
  """

  places: dict[str, tuple[float, float]]
  wires: Sequence[tuple[str, str]]
  skips: Sequence[tuple[str, str]] = ()


def _no_rules(fields: Fields) -> dict[str, tuple[bool, str]]:
  del fields
  return {}


def _any_size(fields: Fields) -> Sizes:
  del fields
  return Sizes()


@dataclasses.dataclass(frozen=True)
class Entry:
  """A network of the registry.

  Attributes:
    module: Linen module, called as `module(image, train=...)` with a normalised [B, H, W, 3]
      photograph. It returns a dict with "mask", the [B, H, W, 1] float32 logits, and whatever else
      loss terms need. Its attributes are the fields of `config.model.NAME`, besides `dtype` and
      those of `SHARED_FIELDS` that it has.
    variants: values of fields by variant; what neither the configuration nor the variant gives is
      the module's default.
    rules: from the resolved fields, by field: whether its value can be used, and what it takes.
    sizes: from the resolved fields, the sizes of photographs that the network takes.
    parts: names of submodules by the part of the network that they belong to, for tables of time;
      the first part that is found decides. Empty: every submodule is a part.
    expanded: submodules whose own submodules are parts of their own in the table of parts, joined
      by what stands before the first "_" of their names.
    drawing: from the names of the parts and the resolved fields, where they stand in a picture;
      None: one above the other.
  """

  module: type[nn.Module]
  variants: Mapping[str, Fields] = dataclasses.field(default_factory=lambda: {"base": {}})
  rules: Callable[[Fields], dict[str, tuple[bool, str]]] = _no_rules
  sizes: Callable[[Fields], Sizes] = _any_size
  parts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  expanded: Sequence[str] = ()
  drawing: Callable[[Sequence[str], Fields], Drawing] | None = None
