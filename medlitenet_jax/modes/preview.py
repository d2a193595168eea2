"""Sheets of every augmentation and of the preprocessing beside the photographs they change."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax.data.augment.geometry import augment, single_augmentations
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.cases import Case, Source
from medlitenet_jax.data.images.preprocess import Preprocessing, find_hairs, reduced
from medlitenet_jax.data.images.resize import resize_image, resize_mask
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.modes.call import Call, begin, resolve_recipe
from medlitenet_jax.pages.figures import draw_sheet
from medlitenet_jax.system.starts import record_start

CASES = 2
DRAWS = 3  # of each case
LOOKED_AT = 40  # photographs among which the hairiest and the least hairy are shown
CLEANED = 6
HAIR_COLOR = (0, 200, 255)  # RGB: nothing in skin has it


def main(call: Call) -> None:
  """Previews the augmentations of the recipe; see `preview`."""
  begin(call, call.output)
  preview(resolve_recipe(call), call.output)


def preview(config: ConfigDict, output: Path) -> None:
  """Draws what training does to the photographs of the training split.

  Args:
    config: resolved; pictures have the last of `train.image_sizes`.
    output: folder that receives `augmentations.png` and `preprocessing.png`.

  Raises:
    InputError: if the data cannot be used.
  """
  source = create_source(config.data, "train", config.seed)
  record_start(output)
  size = config.train.image_sizes[-1]
  _draw_augmentations(source, size, config, output / "augmentations.png")
  _draw_preprocessing(source, size, output / "preprocessing.png")


def _draw_augmentations(source: Source, size: int, config: ConfigDict, path: Path) -> None:
  """A row an augmentation, and one with all of them as in training, on cleaned photographs."""
  policy, clean = AugmentPolicy(**config.augment), Preprocessing(**config.preprocess)
  cases = []
  for case in (source[i] for i in range(min(CASES, len(source)))):
    image = clean(case.image)
    cases.append((case.index, image, resize_mask(case.mask, *image.shape[:2])))
  rows = []
  for label, one in [*single_augmentations(policy).items(), ("all, as in training", policy)]:
    pictures = []
    for index, image, mask in cases:
      pictures.append((resize_image(image, size, size), resize_mask(mask, size, size)))
      for draw in range(DRAWS):
        rng = np.random.default_rng((config.seed, draw, index))
        pictures.append(augment(rng, image, mask, size, one))
    rows.append((label, pictures))
  draw_sheet(rows, path)
  print(f"Originals stand before their {DRAWS} augmented versions: {path}")


def _draw_preprocessing(source: Source, size: int, path: Path) -> None:
  """A row a photograph, from much hair to none: as it is, its hairs, and each way of cleaning."""
  ways = {
    "hair_removal": Preprocessing(hair_removal=True),
    "shadow_removal": Preprocessing(shadow_removal=True),
    "shades_of_grey": Preprocessing(color_constancy="shades_of_grey"),
    "all": Preprocessing(True, "shades_of_grey", True),
  }
  titles = ("photograph", "taken as hair", *ways)

  def pictures(case: Case):
    mask = resize_mask(case.mask, size, size)
    small = reduced(case.image)
    hairs = np.where(find_hairs(small)[..., None] == 1, np.array(HAIR_COLOR, np.uint8), small)
    changed = (hairs, *(way(case.image) for way in ways.values()))
    shown = [(resize_image(image, size, size), np.zeros_like(mask)) for image in changed]
    return [(resize_image(case.image, size, size), mask), *shown]

  looked_at = range(min(LOOKED_AT, len(source)))
  hairy = {i: find_hairs(reduced(source[i].image)).mean() for i in looked_at}
  ranked = sorted(hairy, key=lambda i: -hairy[i])
  spread = np.linspace(0, len(ranked) - 1, min(CLEANED, len(ranked))).round().astype(int)
  cases = [source[ranked[place]] for place in spread]
  draw_sheet([(case.case_id, pictures(case)) for case in cases], path, titles, side=2.6)
  print(f"Preprocessing, of the first {len(looked_at)} photographs the hairiest on top: {path}")
