"""Knock-out: what the scores of a trained network lose when one of its parts is silenced."""

import json
import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medlitenet_jax.data.cases import split_hash
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.inference.knockout import WHOLE, Silenced, silence_parts
from medlitenet_jax.inference.trained import Trained
from medlitenet_jax.modes.call import Call, begin
from medlitenet_jax.modes.opening import count_seen, open_single
from medlitenet_jax.pages.knockout import draw_knockout
from medlitenet_jax.scores.statistics import paired_difference
from medlitenet_jax.system import tables
from medlitenet_jax.system.files import replace_file
from medlitenet_jax.system.starts import record_start

logger = logging.getLogger(__name__)

FILE, PICTURE = "knockout.json", "knockout.png"


def main(call: Call) -> None:
  """Silences the parts of the network that the command line names; see `knock_out`."""
  begin(call, call.output, weights=True)
  knock_out(*open_single(call), call.output, call.command)


def knock_out(config: ConfigDict, trained: Trained, output: Path, command: str) -> dict[str, Any]:
  """Scores a network with each of its parts silenced, and prints what that costs.

  Args:
    config: resolved; what it is evaluated with.
    trained: the network.
    output: receives `knockout.json` and `knockout.png`.
    command: the command line, for the protocol.

  Returns:
    What `knockout.json` holds.

  Raises:
    InputError: if the data cannot be used.
  """
  source = create_source(config.data, config.eval.split, config.seed)
  seen = count_seen([trained], source.case_ids, config.eval.split)
  record_start(output)
  silenced = silence_parts(trained, config, source)
  found = {
    **_changes(silenced),
    "diagnostics": silenced.diagnostics,
    "cases": len(source),
    "split": config.eval.split,
    "split_hash": split_hash(source.case_ids),
    "data_source": config.data.source,
    "scored_at": "each photograph's own size, one view, threshold 0.5, no clean-up",
    "interval": "95 % percentile bootstrap of the paired difference over images",
    "precision": config.precision,
    "checkpoint": {**trained.origin, "network_size": config.eval.image_size},
    **seen,
    "command": command,
  }
  replace_file(output / FILE, json.dumps(found, indent=2) + "\n")
  draw_knockout(found, output / PICTURE)
  print(tables.table(*_changes_table(found)))
  if silenced.diagnostics:
    rows = [(name, f"{value:.3f}") for name, value in silenced.diagnostics.items()]
    print("\n" + tables.table(("of the whole network", "mean"), rows))
  logger.info("Dice %.4f on %d cases; picture: %s", found["dice"], len(source), output / PICTURE)
  return found


def _changes(silenced: Silenced) -> dict[str, Any]:
  """Scores of the whole network, and the change by each knock-out."""
  whole = silenced.scores[WHOLE]
  parts: dict[str, dict[str, Any]] = {}
  for name, scores in silenced.scores.items():
    if name != WHOLE:
      dice, iou = (paired_difference(whole[score], scores[score]) for score in ("dice", "iou"))
      low, high = dice["ci95"] or (None, None)
      change = {"dice_change": dice["difference"], "low": low, "high": high}
      iou_low, iou_high = iou["ci95"] or (None, None)
      change |= {"iou_change": iou["difference"], "iou_low": iou_low, "iou_high": iou_high}
      parts[name] = {**change, "single_module": name in silenced.modules}
  return {"dice": float(whole["dice"].mean()), "iou": float(whole["iou"].mean()), "parts": parts}


def _changes_table(found):
  def interval(change, low, high):
    known = change[low] is not None
    return f"{change[low]:+.4f} to {change[high]:+.4f}" if known else "-"

  rows = [
    (
      name,
      f"{change['dice_change']:+.4f}",
      interval(change, "low", "high"),
      f"{change['iou_change']:+.4f}",
      interval(change, "iou_low", "iou_high"),
    )
    for name, change in found["parts"].items()
  ]
  return ("silenced", "Dice", "95 % interval", "IoU", "95 % interval"), rows
