"""The network part by part: parameters, XLA's own count of operations, and a picture of both."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from ml_collections import ConfigDict

from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.forward import normalize
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.pages.figures import save_figure
from medlitenet_jax.speed.cost import Cost, count_cost
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.state import DTYPES


@dataclasses.dataclass
class Part:
  """One part of a network.

  Attributes:
    name: a submodule's, or "encoder/" and a stage.
    shape: of its output for one image, without the batch.
    params: number of parameters.
    flops: floating-point operations of a forward pass of one image, a multiply-add being two.
  """

  name: str
  shape: tuple[int, ...] = ()
  params: int = 0
  flops: float = 0.0


def count_parts(fields: dict[str, Any], image_size: int) -> list[Part]:
  """Counts a network's parts in the order in which they run.

  Operations are those of the plain convolutions, whatever form the configuration runs: the sum
  that a layer stands for, not the way it is computed.

  Args:
    fields: `config.model` as a mapping.
    image_size: pixels a side of the input.

  Returns:
    One `Part` a submodule, the encoder's by stage; upsampling between parts is in none of them.
  """
  model = create_model({**fields, "form": "library"}, jnp.float32)
  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  calls: list[tuple[tuple[str, ...], nn.Module, Any, Any, Any]] = []

  def note(next_call, args, kwargs, context):
    output = next_call(*args, **kwargs)
    path = context.module.path
    if context.method_name == "__call__" and len(path) == (2 if path[:1] == ("encoder",) else 1):
      shapes = jax.tree.map(_shape_of, (args, jax.tree.leaves(output)[0]))
      calls.append((path, context.module.clone(parent=None), *shapes, kwargs))
    return output

  with nn.intercept_methods(note):
    jax.eval_shape(model.apply, variables, image)

  parts: dict[str, Part] = {}
  for path, module, args, output, kwargs in calls:
    part = parts.setdefault(_part_name(path), Part(_part_name(path)))
    own = _subtree(variables, path)
    apply = functools.partial(module.apply, **kwargs)
    cost = jax.jit(apply).lower(own, *args).cost_analysis() or {}
    part.shape = output.shape[1:]
    part.params += sum(leaf.size for leaf in jax.tree.leaves(own.get("params", {})))
    part.flops += cost.get("flops", 0.0)
  return list(parts.values())


def count_forward(fields: dict[str, Any], dtype: Any, batch: int, image_size: int) -> Cost:
  """Counts the least work of a forward pass, norms folded, in plain convolutions.

  Args:
    fields: `config.model` as a mapping.
    dtype: compute dtype.
    batch: photographs.
    image_size: pixels a side of each.

  Returns:
    Cost from photographs of 8 bits to logits.
  """
  model = create_model({**fields, "form": "library"}, dtype)
  image = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8)
  blank = jax.ShapeDtypeStruct(image.shape, jnp.float32)
  variables = jax.eval_shape(
    lambda image: fold_batch_norm(model.init(jax.random.key(0), image)), blank
  )
  return count_cost(lambda own, image: model.apply(own, normalize(image)), variables, image)


def _part_name(path: tuple[str, ...]) -> str:
  return f"{path[0]}/{path[1].split('_')[0]}" if path[0] == "encoder" else path[0]


def _shape_of(leaf):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _subtree(variables, path):
  found = {}
  for collection, tree in variables.items():
    for name in path:
      tree = tree.get(name, {})
    if tree:
      found[collection] = tree
  return found


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
