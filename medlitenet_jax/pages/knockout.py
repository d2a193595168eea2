"""Picture of what each part of a network is worth to its scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from medlitenet_jax.pages.figures import save_figure


def draw_knockout(found: Mapping[str, Any], path: Path) -> None:
  """Draws the change of the mean Dice by each knock-out, with its interval.

  Args:
    found: what `knockout.json` holds.
    path: of the PNG.
  """
  parts = found["parts"]
  figure = Figure(figsize=(7.5, 1.2 + 0.24 * len(parts)), layout="constrained")
  axis = figure.subplots()
  for place, change in enumerate(parts.values()):
    if change["low"] is not None:
      axis.plot((change["low"], change["high"]), (place, place), color="tab:gray", linewidth=1.5)
    axis.plot(change["dice_change"], place, "o", color="tab:blue", markersize=5)
  axis.axvline(0, color="black", linewidth=0.8)
  axis.set_yticks(range(len(parts)), parts)
  # A part that the network cannot do without would press the others together.
  axis.set_xscale("symlog", linthresh=0.01)
  axis.invert_yaxis()
  axis.grid(axis="x", alpha=0.3)
  axis.set_xlabel(
    f"change of Dice when silenced (it is {found['dice']:.4f} on {found['cases']} cases of "
    f"{found['split']})"
  )
  save_figure(figure, path)
