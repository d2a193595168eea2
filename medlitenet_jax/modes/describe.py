"""The network part by part: parameters, operations, and a picture of both."""

from pathlib import Path

from ml_collections import ConfigDict

from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import NETWORKS
from medlitenet_jax.modes.call import Call, begin, resolve_recipe
from medlitenet_jax.pages.architecture import draw_architecture
from medlitenet_jax.speed.parts import Part, count_forward, count_parts
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.starts import record_start


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
  record_start(output)
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
  drawing = NETWORKS[config.model.name].drawing
  names = [part.name for part in parts]
  draw_architecture(
    parts, title, path, drawing and drawing(names, config.model[config.model.name].to_dict())
  )
  print(f"Picture: {path}")
