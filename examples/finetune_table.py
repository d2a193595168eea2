"""Measures what it is worth to go on from released weights with photographs of one's own.

    python examples/finetune_table.py HAM10000 runs/finetune_table

HAM10000 is a folder with images/, masks/ and a splits.csv that has a column `lesion`. One
photograph of each lesion is used. 500 are kept aside and score everything. Folders of 20, 100 and
500 others are drawn three times each, without a splits.csv, as a user has them. Each recipe of
`RECIPES` goes on in each folder from the released `paper_literal`, which has seen no photograph of
HAM10000. What is finished is not done again.

Prints a Markdown table. The interval of a difference is over the photographs, each with its mean
over the three draws; the last column has the draws one by one.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medlitenet_jax.data.cases import MASK_SUFFIX
from medlitenet_jax.scores.statistics import paired_difference

ROOT = Path(__file__).resolve().parents[1]
START = "paper_literal"
NETWORK = (f"--config.model.variant={START}", f"--config.train.start_from={START}")
RECIPES: dict[str, Sequence[str]] = {
  "released.py": ("--config=configs/released.py", *NETWORK, "--config.train.epochs=10"),
  "finetune.py": ("--config=configs/finetune.py", *NETWORK),
}
SIZES, DRAWS, OTHERS = (20, 100, 500), 3, 500


def main() -> None:
  """Draws the folders, trains, scores, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("data", type=Path, help="HAM10000")
  parser.add_argument("output", type=Path, help="receives folders, runs and scores")
  flags = parser.parse_args()
  others, *_ = draw_folders(flags.data.resolve(), flags.output)
  start = score(flags.output / "start", others, f"--weights={START}")
  print("| photographs | recipe | Dice before | Dice after | difference | by draw |")
  print("| ---: | --- | ---: | ---: | ---: | --- |")
  for size in SIZES:
    for recipe, arguments in RECIPES.items():
      after = []
      for draw in range(DRAWS):
        name = f"{size}_{draw}"
        workdir = flags.output / recipe.removesuffix(".py") / name
        if not (workdir / "eval").exists():
          launch(*arguments, *data_flags(flags.output / name), f"--workdir={workdir}")
        after.append(score(workdir, others))
      mean = np.mean(after, axis=0)
      change = paired_difference(start, mean)
      low, high = change["ci95"]
      draws = ", ".join(f"{np.mean(each - start):+.4f}" for each in after)
      row = (size, recipe, f"{start.mean():.4f}", f"{mean.mean():.4f}")
      difference = f"{change['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
      print("|", " | ".join(map(str, (*row, difference, draws))), "|", flush=True)


def draw_folders(data: Path, output: Path) -> Iterator[Path]:
  """Makes the folders: that of the photographs kept aside, then those to learn from.

  Args:
    data: HAM10000.
    output: receives them; those that exist stay.

  Yields:
    Each folder.
  """
  with (data / "splits.csv").open(newline="") as file:
    of_lesion = {row["lesion"]: row["id"] for row in csv.DictReader(file)}
  lesions = np.random.default_rng(0).permutation(sorted(of_lesion))
  aside, rest = lesions[:OTHERS], lesions[OTHERS:]
  yield _link(data, output / "others", [of_lesion[lesion] for lesion in aside])
  for size in SIZES:
    for draw in range(DRAWS):
      drawn = np.random.default_rng((size, draw)).permutation(rest)[:size]
      yield _link(data, output / f"{size}_{draw}", [of_lesion[lesion] for lesion in drawn])


def _link(data: Path, folder: Path, names: Sequence[str]) -> Path:
  for part, ending in (("images", ".jpg"), ("masks", f"{MASK_SUFFIX}.png")):
    (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names:
      link = folder / part / (name + ending)
      if not link.is_symlink():
        link.symlink_to(data / part / link.name)
  return folder


def data_flags(folder: Path) -> tuple[str, ...]:
  """Options that name a folder of pairs as the data set."""
  return ("--config.data.source=folder", f"--config.data.root={folder.resolve()}")


def score(workdir: Path, others: Path, *weights: str) -> np.ndarray:
  """Dice of each photograph kept aside, by name, of a run's network or of other weights."""
  cases = workdir / "eval" / "all" / "cases.csv"
  if not cases.is_file():
    launch(
      "--mode=evaluate",
      *weights,
      *data_flags(others),
      "--config.eval.split=all",
      f"--workdir={workdir}",
    )
  with cases.open(newline="") as file:
    return np.array([float(row["dice"]) for row in csv.DictReader(file)])


def launch(*arguments: str) -> None:
  """Runs the project's command."""
  command = [sys.executable, str(ROOT / "launch.py"), *arguments]
  print(*command[1:], file=sys.stderr, flush=True)
  subprocess.run(command, check=True, stdout=sys.stderr)  # the table alone goes to stdout


if __name__ == "__main__":
  main()
