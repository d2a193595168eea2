"""What the project needs to know about a network besides its module."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from medlitenet_jax.models.knockout import Knockout

Fields = Mapping[str, Any]


class Sizes(NamedTuple):
  """The input sizes that a network accepts, as side lengths in pixels.

  Attributes:
    multiple: every side must be a multiple of this.
    smallest: the smallest side.
    only: the accepted sides of a network whose parameters depend on the input size; empty: every
      multiple from `smallest` up.
  """

  multiple: int = 32
  smallest: int = 64
  only: tuple[int, ...] = ()

  def check(self, *sides: int) -> None:
    """Raises an error for sides that the network does not accept.

    Args:
      *sides: in pixels.

    Raises:
      ValueError: if a side is not accepted; the message says which sides are.
    """
    for side in sides:
      if self.only and side not in self.only:
        takes = f"only sides of {' or '.join(map(str, self.only))} pixels"
      elif not isinstance(side, int) or side < self.smallest or side % self.multiple:
        takes = f"sides that are multiples of {self.multiple} from {self.smallest} up"
      else:
        continue
      raise ValueError(f"the network takes {takes}, not {side!r}")

  def take(self, side: int) -> bool:
    """Whether the network accepts a side, in pixels."""
    try:
      self.check(side)
    except ValueError:
      return False
    return True


class Drawing(NamedTuple):
  """Layout of the picture of a network.

  Attributes:
    places: (x, y) of the centre of each part's box by the part's name; boxes are 1 apart.
    wires: (from, to) parts joined by an arrow.
    skips: (from, to) parts joined by a dashed arrow.
  """

  places: dict[str, tuple[float, float]]
  wires: Sequence[tuple[str, str]]
  skips: Sequence[tuple[str, str]] = ()


def _no_rules(fields: Fields) -> dict[str, tuple[bool, str]]:
  del fields
  return {}


def _no_weights(fields: Fields) -> dict[str, float]:
  del fields
  return {}


def _any_size(fields: Fields) -> Sizes:
  del fields
  return Sizes()


@dataclasses.dataclass(frozen=True)
class Entry:
  """A network in the registry.

  Attributes:
    module: Linen module, called as `module(image, train=...)` with normalised [B, H, W, 3]
      photographs. It returns a dict with "mask", the [B, H, W, 1] float32 logits, and whatever else
      the loss terms need. In inference it may return "features" [B, D] float32 too, as
      `layers.summarised` makes them, from which the likeness of a photograph is scored. Its
      attributes are the fields of `config.model.NAME`, plus `dtype` and any of `SHARED_FIELDS`.
    variants: field values by variant. A field that neither the configuration nor the variant sets
      keeps the module's default.
    rules: maps the resolved fields to {field: (is its value valid, which values are)}.
    sizes: maps the resolved fields to the input sizes that the network accepts.
    loss_weights: maps the resolved fields to {term of the loss: weight} for outputs besides the
      mask. Recipes that leave the weight of a term None take it from here, or 0.
    parts: {part of the network: names of its submodules}, for tables of time; the first part that
      matches is used. Empty: every submodule is a part.
    expanded: submodules that the table of parts shows one level deeper. Their own submodules are
      grouped by the name up to the first "_".
    knockouts: what `--mode=knockout` silences in a trained network, by name; empty: each of
      `parts`.
    drawing: maps the names of the parts and the resolved fields to the layout of the picture;
      None: one part above the other.
  """

  module: type[nn.Module]
  variants: Mapping[str, Fields] = dataclasses.field(default_factory=lambda: {"base": {}})
  rules: Callable[[Fields], dict[str, tuple[bool, str]]] = _no_rules
  sizes: Callable[[Fields], Sizes] = _any_size
  loss_weights: Callable[[Fields], Mapping[str, float]] = _no_weights
  parts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  expanded: Sequence[str] = ()
  knockouts: Mapping[str, Knockout] = dataclasses.field(default_factory=dict)
  drawing: Callable[[Sequence[str], Fields], Drawing] | None = None
