"""The picture of a network: its parts as boxes, joined by arrows."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from medlitenet_jax.models.entry import Drawing
from medlitenet_jax.pages.figures import save_figure
from medlitenet_jax.speed.parts import Part

_PARTS_PER_COLUMN = 12  # in the picture of a network without a drawing of its own


def columns(names: Sequence[str]) -> Drawing:
  """Default drawing: the parts in the order in which they run, from top to bottom in columns."""
  rows = _PARTS_PER_COLUMN
  places = {name: (2.0 * (i // rows), -float(i % rows)) for i, name in enumerate(names)}
  return Drawing(places, list(itertools.pairwise(names)))


def draw_architecture(
  parts: Sequence[Part], title: str, path: Path, drawing: Drawing | None = None
) -> None:
  """Draws the parts of a network.

  Args:
    parts: result of `count_parts`.
    title: title of the picture.
    path: path of the PNG.
    drawing: layout of the parts; None: `columns`.
  """
  places, wires, skips = drawing or columns([part.name for part in parts])
  (left, right), (low, high) = (
    (min(axis), max(axis)) for axis in zip(*places.values(), strict=True)
  )
  figure = Figure(figsize=(2 + 1.6 * (right - left), 2 + 0.75 * (high - low)), layout="constrained")
  axis = figure.subplots()
  axis.set(xlim=(left - 0.75, right + 0.75), ylim=(low - 0.5, high + 0.5))
  axis.set_title(f"{title}: {sum(p.params for p in parts) / 1e6:.2f} M parameters")
  axis.axis("off")
  for start, stop in skips:
    _arrow(axis, places[start], places[stop], style="--")
  for start, stop in wires:
    _arrow(axis, places[start], places[stop])
  for part in parts:
    x, y = places[part.name]
    color = "#cfe3f5" if x == left else "#d9efd3" if x == right else "#fbe3c8"
    style = "round,pad=0.02,rounding_size=0.06"
    axis.add_patch(FancyBboxPatch((x - 0.6, y - 0.34), 1.2, 0.68, boxstyle=style, fc=color))
    shape = "x".join(map(str, part.shape))
    label = f"{part.params:,} params, {part.flops / 1e6:,.1f} MFLOP"
    axis.text(x, y + 0.15, part.name, ha="center", va="center", fontsize=9, weight="bold")
    axis.text(x, y - 0.13, f"{shape}\n{label}", ha="center", va="center", fontsize=7)
  save_figure(figure, path)


def _arrow(axis, start, stop, style: str = "-") -> None:
  """Joins two boxes: between their sides, or vertically if they are in one column."""
  (x0, y0), (x1, y1) = start, stop
  if x0 == x1:
    y0, y1 = (y0 - 0.36, y1 + 0.36) if y1 < y0 else (y0 + 0.36, y1 - 0.36)
  else:
    x0, x1 = x0 + 0.62, x1 - 0.62
  axis.add_patch(
    FancyArrowPatch((x0, y0), (x1, y1), arrowstyle="-|>", mutation_scale=9, linestyle=style, lw=0.9)
  )
