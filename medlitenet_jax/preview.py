"""A sheet of every augmentation beside the photographs it was applied to."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax.data.augment import AugmentPolicy, augment, single_augmentations
from medlitenet_jax.data.resize import resize_image, resize_mask
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.figures import draw_sheet

CASES = 2
DRAWS = 3  # of each case


def preview(config: ConfigDict, output: Path) -> None:
  """Draws the sheet: a row an augmentation, and one with all of them as in training.

  Args:
    config: resolved; the training cases are used, at the last of `train.image_sizes`.
    output: folder that receives `augmentations.png`.

  Raises:
    InputError: if the data cannot be used.
  """
  source = create_source(config.data, "train", config.seed)
  cases = [source[i] for i in range(min(CASES, len(source)))]
  size = config.train.image_sizes[-1]
  policy = AugmentPolicy(**config.augment)
  rows = []
  for label, one in [*single_augmentations(policy).items(), ("all, as in training", policy)]:
    pictures = []
    for case in cases:
      pictures.append((resize_image(case.image, size, size), resize_mask(case.mask, size, size)))
      for draw in range(DRAWS):
        rng = np.random.default_rng((config.seed, draw, case.index))
        pictures.append(augment(rng, case.image, case.mask, size, one))
    rows.append((label, pictures))
  path = output / "augmentations.png"
  draw_sheet(rows, path)
  print(f"Originals stand before their {DRAWS} augmented versions: {path}")
