"""The network part by part: parameters, XLA's own count of operations, and a picture of both."""

import itertools
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from ml_collections import ConfigDict

from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.modes.call import Call, begin, resolve_recipe
from medlitenet_jax.pages.figures import save_figure
from medlitenet_jax.speed.parts import Part, count_forward, count_parts
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError


def main(call: Call) -> None:
  """Describes the network of the recipe; see `describe`."""
  begin(call, call.output)
  describe(resolve_recipe(call), call.output)


def describe(config: ConfigDict, output: Path) -> None:
  """Prints the table of parts at the evaluation size and draws the architecture from it.

  Args:
    config: resolved.
    output: folder that receives `architecture.png`.

  Raises:
    InputError: if the configuration is of an ensemble.
  """
  if config.ensemble.members:
    raise InputError("config.ensemble.members: members are described one by one")
  size = config.eval.image_size
  parts = count_parts(config.model.to_dict(), size)
  total = Part("total", (size, size, 1), sum(p.params for p in parts), sum(p.flops for p in parts))
  rows = [
    ("x".join(map(str, p.shape)), f"{p.params:,}", f"{p.flops / 1e6:,.1f}") for p in [*parts, total]
  ]
  names = [p.name for p in [*parts, total]]
  columns = ("part", "output", "parameters", f"MFLOP at {size}x{size}")
  print(tables.table(columns, [(name, *row) for name, row in zip(names, rows, strict=True)]))
  cost = count_forward(config.model.to_dict(), DTYPES[config.precision], 1, size)
  print(
    f"Least work of a folded forward pass, {config.precision}: {cost.flops / 1e9:.2f} GFLOP, "
    f"{cost.bytes / 1e6:.1f} MB moved"
  )
  path = output / "architecture.png"
  title = f"{config.model.name} {config.model.variant}"
  draw_architecture(parts, title, path, config.model.boundary_bias_stage)
  print(f"Picture: {path}")


# Where the bottleneck's parts stand, and what feeds them besides the part before.
_PLACES = {
  "bias_boundary": (1.5, 2.5),
  "mixer": (1.5, 1.5),
  "fine_return": (3.0, 1.5),
  "fusion": (1.5, 0.3),
  "aspp": (3.0, 0.3),
  "aspp_norm": (3.0, -0.6),
  "encoder_gate": (4.5, 0.3),
}
_PATH = ("encoder/stage4", "mixer", "fusion", "aspp", "encoder_gate", "decoder1")
_BRANCHES = (
  ("bias_boundary", "mixer"),
  ("encoder/stage3", "mixer"),
  ("encoder/stage4", "fusion"),
  ("mixer", "fine_return"),
  ("fine_return", "decoder1"),
)


def draw_architecture(parts: list[Part], title: str, path: Path, boundary_stage: int = 1) -> None:
  """Draws the parts as a U: encoder down the left, bottleneck along the foot, decoder up the right.

  Args:
    parts: of `count_parts`.
    title: of the picture.
    path: of the PNG.
    boundary_stage: encoder stage that the attention's boundary map is taken from.
  """
  encoder = [p.name for p in parts if p.name.startswith("encoder/")]
  decoder = [p.name for p in parts if p.name.startswith("decoder") or p.name == "head"]
  right, floors = 6.0, len(encoder)
  places = {name: (0.0, float(floors - i)) for i, name in enumerate(encoder)}
  places |= {name: (right, float(i + 2)) for i, name in enumerate(decoder)}
  places |= {p.name: _PLACES[p.name] for p in parts if p.name in _PLACES}

  figure = Figure(figsize=(11.5, 7.8), layout="constrained")
  axis = figure.subplots()
  axis.set(
    xlim=(-0.75, right + 0.75), ylim=(min(y for _, y in places.values()) - 0.5, floors + 1.5)
  )
  axis.set_title(f"{title}: {sum(p.params for p in parts) / 1e6:.2f} M parameters")
  axis.axis("off")
  for skip, stage in zip(reversed(encoder[:-1]), decoder, strict=False):
    _arrow(axis, places[skip], places[stage], style="--")
  main = [name for name in _PATH if name in places]
  source = (f"encoder/stage{boundary_stage}", "bias_boundary")
  wires = (*map(itertools.pairwise, (encoder, decoder, main)), [source], _BRANCHES)
  for start, stop in itertools.chain(*wires):
    if start in places and stop in places:
      _arrow(axis, places[start], places[stop])
  for part in parts:
    x, y = places[part.name]
    color = "#cfe3f5" if x == 0 else "#d9efd3" if x == right else "#fbe3c8"
    style = "round,pad=0.02,rounding_size=0.06"
    axis.add_patch(FancyBboxPatch((x - 0.6, y - 0.34), 1.2, 0.68, boxstyle=style, fc=color))
    shape = "x".join(map(str, part.shape))
    label = f"{part.params:,} params, {part.flops / 1e6:,.1f} MFLOP"
    axis.text(x, y + 0.15, part.name, ha="center", va="center", fontsize=9, weight="bold")
    axis.text(x, y - 0.13, f"{shape}\n{label}", ha="center", va="center", fontsize=7)
  save_figure(figure, path)


def _arrow(axis, start, stop, style: str = "-") -> None:
  """Joins two boxes, from side to side where they stand apart, else from edge to edge."""
  (x0, y0), (x1, y1) = start, stop
  if x0 == x1:
    y0, y1 = (y0 - 0.36, y1 + 0.36) if y1 < y0 else (y0 + 0.36, y1 - 0.36)
  else:
    x0, x1 = x0 + 0.62, x1 - 0.62
  axis.add_patch(
    FancyArrowPatch((x0, y0), (x1, y1), arrowstyle="-|>", mutation_scale=9, linestyle=style, lw=0.9)
  )
