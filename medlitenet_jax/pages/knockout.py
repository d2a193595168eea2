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
    single = change["single_module"]
    if change["low"] is not None:
      axis.plot((change["low"], change["high"]), (place, place), color="tab:gray", linewidth=1.5)
    color = "tab:gray" if single else "tab:blue"
    axis.plot(change["dice_change"], place, "o", color=color, markersize=4 if single else 6)
  axis.axvline(0, color="black", linewidth=0.8)
  axis.set_yticks(range(len(parts)), parts)
  for label, change in zip(axis.get_yticklabels(), parts.values(), strict=True):
    if change["single_module"]:  # of the part above
      label.set(color="dimgray", fontsize=8)
  axis.set_ylim(len(parts) - 0.4, -0.6)
  # A part that the network cannot do without would press the others together.
  axis.set_xscale("symlog", linthresh=0.01)
  axis.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
  axis.grid(axis="x", alpha=0.3)
  axis.set_xlabel(
    f"change of Dice when silenced (it is {found['dice']:.4f} on {found['cases']} cases of "
    f"{found['split']})"
  )
  save_figure(figure, path)
