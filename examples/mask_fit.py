"""Measures how well `--mode=check` can tell right masks from wrong ones.

    python examples/mask_fit.py FOLDER

FOLDER holds images/ and masks/. Prints a line for its masks as they are, shuffled among the
photographs, inverted, and mirrored.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medlitenet_jax.data.cases import MASK_SUFFIX
from medlitenet_jax.data.findings import FITS_BETTER_THAN, look_inverted
from medlitenet_jax.data.images import image_files, mask_fit


def main(folder: str) -> None:
  """Reads the pairs of a folder and prints what fraction of each kind of masks looks wrong."""
  images_of, masks_of = (
    {name: paths[0] for name, paths in image_files.image_names(Path(folder, part)).items()}
    for part in ("images", "masks")
  )

  def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    mask = image_files.read_mask(masks_of[name + MASK_SUFFIX])
    return mask_fit.reduced(image_files.read_image(images_of[name]), mask)

  with ThreadPoolExecutor() as pool:
    images, masks = map(np.stack, zip(*pool.map(read, images_of), strict=True))
  shuffled = masks[np.random.default_rng(0).permutation(len(masks))]
  kinds = {
    "right": masks,
    "shuffled": shuffled,
    "inverted": 255 - masks,
    "mirrored": masks[:, :, ::-1],
  }
  for kind, of_kind in kinds.items():
    unfit = mask_fit.better_than_others(images, of_kind) <= FITS_BETTER_THAN
    print(
      f"{kind} ({len(masks)}): do not fit {unfit.mean():.1%}, "
      f"look inverted {look_inverted(of_kind).mean():.2%}, "
      f"fit better turned or scaled {max(mask_fit.fits_better(images, of_kind).values()):.1%}"
    )


if __name__ == "__main__":
  main(sys.argv[1])
