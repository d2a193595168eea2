"""Measures what each preprocessing does to a network that was trained without it.

    python examples/preprocessing_worth.py FOLDER --split=val

FOLDER holds images/, masks/ and splits.csv, as for `--config.data.root`. The released `base`
outlines each photograph, reduced to 512x512 pixels, as it is and with hairs, a shadow or uneven
light drawn into it; each of them also after each preprocessing. Prints the mean Dice, and the
paired difference to no preprocessing.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import medlitenet_jax
from configs import base
from medlitenet_jax.data.augment.geometry import augment
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.images.resize import resize_mask
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.scores.case_scores import plain_scores
from medlitenet_jax.scores.statistics import paired_difference
from medlitenet_jax.system.tables import table

SIDE = 512  # of the photographs
DRAWN = ("hairs", "shadow", "uneven_light")
WAYS = {
  "none": Preprocessing(),
  "hair_removal": Preprocessing(hair_removal=True),
  "shadow_removal": Preprocessing(shadow_removal=True),
  "shades_of_grey": Preprocessing(color_constancy="shades_of_grey"),
}


def main() -> None:
  """Outlines every photograph in every way, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("data", type=Path, help="FOLDER")
  parser.add_argument("--split", default="val")
  flags = parser.parse_args()
  config = base.get_config()
  config.data.source, config.data.root = "folder", str(flags.data.resolve())
  source = create_source(config.data, flags.split, config.seed)
  network = medlitenet_jax.load("base")
  policies = {"as they are": policy(config), **{name: policy(config, name) for name in DRAWN}}
  dice: dict[tuple[str, str], list[float]] = {(a, b): [] for a in policies for b in WAYS}
  for index in tqdm(range(len(source)), unit="case"):
    case = source[index]
    for name, drawn in policies.items():
      rng = np.random.default_rng((config.seed, index))
      image, mask = augment(rng, case.image, case.mask, SIDE, drawn)
      for way, clean in WAYS.items():
        seen = clean(image)
        truth = resize_mask(mask, *seen.shape[:2])
        dice[name, way].append(plain_scores(network(seen), truth)["dice"])
  rows = []
  for name in policies:
    plain = np.array(dice[name, "none"])
    cells = [name, f"{plain.mean():.4f}"]
    for way in list(WAYS)[1:]:
      change = paired_difference(plain, np.array(dice[name, way]))
      interval = " ({:+.4f} to {:+.4f})".format(*change["ci95"]) if change["ci95"] else ""
      cells.append(f"{change['difference']:+.4f}{interval}")
    rows.append(cells)
  print(table(("photographs", *WAYS), rows))


def policy(config, name: str = "") -> AugmentPolicy:
  """Draws nothing but this into every photograph."""
  fields = config.augment.to_dict()
  off = {field: 0.0 for field in fields if field.endswith("_probability")}
  return AugmentPolicy(**{**fields, **off, **({f"{name}_probability": 1.0} if name else {})})


if __name__ == "__main__":
  main()
