"""Trains every network under one recipe on one folder, and sets their scores side by side.

    python examples/table1.py FOLDER runs/table1

FOLDER has images/, masks/ and a splits.csv. Each network is timed, trained from random weights on
the same number of photographs, and scored on `test`; one that trains slower than five photographs
a second learns for `--hours` instead. What is finished is not done again, and an interrupted
training goes on. Several calls with other `--networks` or `--seeds` may fill one output folder;
each writes the table of all that is finished there.

Writes table1.md, table1.html and table1.json. Time the networks on a machine that does nothing
else: the budget of the slow ones follows from it, and is kept.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs import base
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.modes.compare import read_evaluations
from medlitenet_jax.pages.charts import labelled_points
from medlitenet_jax.pages.comparison import Evaluation
from medlitenet_jax.pages.html import EMPTY, Html, html_table, join, page, svg, tag
from medlitenet_jax.scores.statistics import paired_difference, summarise
from medlitenet_jax.system import tables
from medlitenet_jax.system.files import replace_file

ROOT = Path(__file__).resolve().parents[1]
FIRST = "medlitenet"  # the others are compared with it
NETWORKS = (FIRST, *sorted(p.stem for p in (ROOT / "configs" / "table1").glob("[a-z]*.py")))
# The paper's recipe with an update after every eight photographs, since there are few of them.
RECIPE = {"train.batch_size": 8, "optim.accumulation": 1, "train.validate_every_epochs": 2}
SLOW = 5  # photographs a second, under which the budget is one of time
SCORES = ("dice", "iou", "threshold_jaccard")
# Dice and IoU in the paper's Table I, in percent. See docs/paper.md for what some of them are.
PAPER = {
  "medlitenet": "90.5 / 83.0",
  "transunet": "88.5 / 83.7",
  "fat_net": "89.0 / 80.2",
  "bacanet": "92.1 / 85.4",
}
_IMAGENET = "its authors start from weights learned on ImageNet, and from random ones it is weaker"
NOTES = {
  "medlitenet": "the paper's figures are of three networks together",
  "bacanet": "a reconstruction after its abstract; the paper's figures are of liver ultrasound",
  "fat_net": f"{_IMAGENET}; the paper's 80.2 is perhaps 82.0 with two digits exchanged",
  "segformer": _IMAGENET,
  "swin_unet": _IMAGENET,
  "unet_plus_plus": "with BatchNorm; as its authors have it, it learns too slowly for this budget",
  "transunet": f"{_IMAGENET}; no source was found for the paper's figures",
}
COSTS = ("GFLOP", "latency, ms", "images/s", "training images/s", "training memory, MiB")


class Row(NamedTuple):
  """A network with what was measured of it.

  Attributes:
    name: of its recipe.
    speed: `benchmark.json`.
    epochs: that it learned for, of the folder's `train`.
    scores: by name, [seeds, cases].
    hours_dice: mean Dice after equal hours; None if it was not trained so.
  """

  name: str
  speed: dict[str, Any]
  epochs: float
  scores: dict[str, np.ndarray]
  hours_dice: float | None


def main() -> None:
  """Times, trains, scores, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("data", type=Path, help="folder of photographs and masks")
  parser.add_argument("output", type=Path, help="receives runs and tables")
  parser.add_argument("--networks", default=",".join(NETWORKS), help="names, with commas")
  parser.add_argument("--size", type=int, default=128, help="pixels a side")
  parser.add_argument("--epochs", type=float, default=20, help="of train")
  parser.add_argument("--hours", type=float, default=1.5, help="of training, for slow networks")
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--equal-hours", action="store_true", help="also train each for --hours")
  flags = parser.parse_args()
  names = flags.networks.split(",")
  if unknown := [name for name in names if name not in NETWORKS]:
    parser.error(f"--networks: {unknown[0]!r} is not one of {', '.join(NETWORKS)}")
  data = base.get_config().data.to_dict() | {"source": "folder", "root": str(flags.data)}
  budget = {"size": flags.size, "epochs": flags.epochs, "hours": flags.hours}
  keep_budget(flags.output, budget | {"train": len(create_source(data, "train", 0))})
  for name in names:
    measure_speed(name, flags)
  for seed in range(flags.seeds):
    for name in names:
      train(name, flags, seed)
  for name in names if flags.equal_hours else ():
    train(name, flags, 0, by_hours=True)
  write(flags.output)


def keep_budget(output: Path, budget: dict[str, Any]) -> None:
  """Notes what all runs of the folder have in common; refuses another budget."""
  path = output / "budget.json"
  if path.exists() and (kept := json.loads(path.read_text())) != budget:
    sys.exit(f"{output}: was begun with {kept}, not {budget}; choose another folder")
  output.mkdir(parents=True, exist_ok=True)
  replace_file(path, json.dumps(budget) + "\n")


def recipe(name: str, flags: argparse.Namespace) -> list[str]:
  """Options of a network's recipe on the folder."""
  fields: dict[str, Any] = {
    **RECIPE,
    **network_fields(name, flags.size),
    "data.source": "folder",
    "data.root": flags.data.resolve(),
  }
  options = [f"--config.{field}={value}" for field, value in fields.items()]
  return [f"--config={ROOT}/configs/{recipe_file(name)}.py", *options]


def recipe_file(name: str) -> str:
  """Recipe of a network, in configs/."""
  return "base" if name == FIRST else f"table1/{name}"


def network_fields(name: str, size: int) -> dict[str, Any]:
  """Fields of a network that is trained at a size of its input, in pixels a side."""
  fields: dict[str, Any] = {"train.image_sizes": (size,), "eval.image_size": size}
  if name == "unet_plus_plus":
    fields["model.variant"] = "batch_norm"
  if name == "swin_unet":  # windows of 7 need multiples of 224
    fields["model.swin_unet.window"] = next(w for w in range(8, 0, -1) if size % (32 * w) == 0)
  if name == "transunet":
    fields["model.transunet.image_size"] = size
  return fields


def measure_speed(name: str, flags: argparse.Namespace) -> None:
  """Times a network, unless that was done before."""
  folder = flags.output / name / "speed"
  if not (folder / "benchmark.json").exists():
    options = ("--config.benchmark.compare_plain=False", f"--output={folder}")
    sizes = f"--config.benchmark.image_sizes=({flags.size},)"
    launch("--mode=benchmark", *recipe(name, flags), sizes, *options)


def read_speed(output: Path, name: str) -> dict[str, Any]:
  """What `measure_speed` wrote."""
  return json.loads((output / name / "speed" / "benchmark.json").read_text())


def task(speed: dict[str, Any], name: str, batch: int) -> dict[str, Any]:
  """A row of a benchmark, such as ("forward", 1)."""
  rows = [row for group in speed["groups"] for row in group["rows"]]
  return next(row for row in rows if (row["task"], row["batch"]) == (name, batch))


def batches(output: Path, name: str, by_hours: bool) -> int:
  """Length of a training: of the epochs, or of the hours for a slow network and on request."""
  budget, count = json.loads((output / "budget.json").read_text()), RECIPE["train.batch_size"]
  rate = task(read_speed(output, name), "training step", count)["images_per_second"]
  if by_hours or rate < SLOW:
    return max(1, round(3600 * budget["hours"] * rate / count))
  return round(budget["epochs"] * budget["train"] / count)


def train(name: str, flags: argparse.Namespace, seed: int, by_hours: bool = False) -> None:
  """Trains and scores a network, or goes on where that was interrupted."""
  length = batches(flags.output, name, by_hours)
  if by_hours and length == batches(flags.output, name, False):
    return  # the run is there already
  workdir = flags.output / name / (f"hours-seed{seed}" if by_hours else f"seed{seed}")
  if (workdir / "eval" / "test" / "summary.json").exists():
    return
  options = (f"--config.train.max_steps={length}", f"--config.seed={seed}")
  launch(*recipe(name, flags), *options, f"--workdir={workdir}")
  launch("--mode=evaluate", f"--workdir={workdir}", "--config.eval.split=test")


def launch(*arguments: str) -> None:
  """Runs the project's command."""
  command = [sys.executable, str(ROOT / "launch.py"), *arguments]
  print(*command[1:], file=sys.stderr, flush=True)
  done = subprocess.run(command, stdout=sys.stderr)  # the table alone goes to stdout
  if done.returncode:
    sys.exit(done.returncode)


def read_rows(output: Path) -> list[Row]:
  """What is finished in a folder, MedLiteNet first."""
  budget = json.loads((output / "budget.json").read_text())
  runs = {name: sorted((output / name).glob("*seed*/eval/test/summary.json")) for name in NETWORKS}
  folders = [path.parent for paths in runs.values() for path in paths]
  read = dict(zip(folders, read_evaluations(folders), strict=True))  # all of the same cases
  rows: list[Row] = []
  for name, paths in runs.items():
    kinds: dict[bool, list[Evaluation]] = {True: [], False: []}
    for path in paths:
      kinds[path.parents[2].name.startswith("hours")].append(read[path.parent])
    found, hours = kinds[False], kinds[True]
    if not found:
      print(f"{name}: not finished, so it is not in the table", file=sys.stderr)
      continue
    length = batches(output, name, by_hours=False)
    if length == batches(output, name, by_hours=True):
      hours = found[:1]
    rows.append(
      Row(
        name,
        read_speed(output, name),
        length * RECIPE["train.batch_size"] / budget["train"],
        {score: np.stack([each.column(score) for each in found]) for score in SCORES},
        float(hours[0].column("dice").mean()) if hours else None,
      )
    )
  return rows


def cells(row: Row, first: Row) -> tuple[str, ...]:
  """The row of the table."""
  count = RECIPE["train.batch_size"]
  one, many, step = (
    task(row.speed, *key) for key in (("forward", 1), ("forward", count), ("training step", count))
  )
  seeds = row.scores["dice"].mean(1)
  spread = f", ± {seeds.std(ddof=1):.4f} over {len(seeds)} seeds" if len(seeds) > 1 else ""

  def interval(score: str) -> str:
    found = summarise([{score: value} for value in row.scores[score].mean(0)], [score])[score]
    return "{:.4f} ({:.4f} to {:.4f})".format(found["mean"], *found["ci95"])

  difference = EMPTY
  if row is not first:
    pair = (each.scores["dice"].mean(0) for each in (first, row))
    change = paired_difference(*pair)
    difference = "{:+.4f} ({:+.4f} to {:+.4f})".format(change["difference"], *change["ci95"])
  return (
    row.name,
    f"{parameters(row) / 1e6:.2f}",
    f"{one['gflop']:.2f}",
    f"{one['ms']:.1f}",
    f"{many['images_per_second']:.1f}",
    f"{step['images_per_second']:.1f}",
    f"{step['memory_bytes'] / 2**20:.0f}",
    f"{row.epochs:.1f}",
    interval("dice") + spread,
    interval("iou"),
    interval("threshold_jaccard"),
    difference,
    EMPTY if row.hours_dice is None else f"{row.hours_dice:.4f}",
    PAPER.get(row.name, EMPTY),
  )


def parameters(row: Row) -> int:
  """Number of parameters of a network."""
  return sum(part["params"] for part in row.speed["parts"])


def write(output: Path) -> None:
  """Writes and prints the table of all that is finished, and the page."""
  rows = read_rows(output)
  if [row.name for row in rows[:1]] != [FIRST]:
    sys.exit(f"{output}: {FIRST}, with which the others are compared, is not finished")
  budget = json.loads((output / "budget.json").read_text())
  columns = (
    *("network", "parameters, M", *COSTS, "epochs", "Dice", "IoU", "threshold Jaccard"),
    *(f"Dice minus {FIRST}", f"Dice after {budget['hours']:g} h", "paper: Dice / IoU, %"),
  )
  lines = [cells(row, rows[0]) for row in rows]
  notes = [f"- {row.name}: {NOTES[row.name]}." for row in rows if row.name in NOTES]
  text = "\n".join((tables.table(columns, lines), "", *notes))
  replace_file(output / "table1.md", text + "\n")
  kept = [
    {**dict(zip(columns, line, strict=True)), "seeds": row.scores["dice"].mean(1).tolist()}
    for row, line in zip(rows, lines, strict=True)
  ]
  result = {"budget": budget, "device": rows[0].speed["device"], "rows": kept}
  replace_file(output / "table1.json", json.dumps(result, indent=2) + "\n")
  replace_file(output / "table1.html", page("Networks under one recipe", body(rows, result)))
  print(text)


def body(rows: Sequence[Row], result: dict[str, Any]) -> Html:
  """The body of the page."""
  budget, speed = result["budget"], rows[0].speed
  about = (
    f"Every network starts from random weights and learns from {budget['train']} photographs at "
    f"{budget['size']}x{budget['size']} for {budget['epochs']:g} epochs or, where it trains slower "
    f"than {SLOW} photographs a second, for {budget['hours']:g} hours. Scores are per image at the "
    f"photograph's own size, on {rows[0].scores['dice'].shape[1]} photographs of test, with 95 % "
    f"bootstrap intervals; differences are paired. Speed: {result['device']}, {speed['cores']} "
    f"cores, {speed['precision']}; latency is that of one photograph."
  )
  dice = [row.scores["dice"].mean() for row in rows]
  names = [row.name for row in rows]
  charts = [
    svg(labelled_points(x, dice, names, label, "Dice"), f"Dice over {label}")
    for x, label in (
      ([parameters(row) / 1e6 for row in rows], "parameters, millions"),
      ([task(row.speed, "forward", 1)["ms"] for row in rows], "latency, ms"),
    )
  ]
  shown = [{k: v for k, v in row.items() if k != "seeds"} for row in result["rows"]]
  costs, scores = (
    html_table(columns, [[row[column] for column in columns] for row in shown])
    for columns in (
      ("network", "parameters, M", *COSTS),
      ("network", *(column for column in shown[0] if column not in ("network", *COSTS))),
    )
  )
  notes = [tag("li", f"{row.name}: {NOTES[row.name]}.") for row in rows if row.name in NOTES]
  return join(
    tag("header", tag("h1", "Networks under one recipe")),
    tag("section", tag("p", about), scores, tag("ul", *notes)),
    tag("section", tag("h2", "What they cost"), costs, tag("div", *charts, class_="charts")),
  )


if __name__ == "__main__":
  main()
