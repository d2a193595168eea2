"""Draws the strip of results at the head of the README, about ten seconds on a CPU.

    python examples/results_strip.py docs/strip.webp

The photographs are the first of one seed, not chosen by how well they are outlined.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import medlitenet_jax  # noqa: E402
from medlitenet_jax.data.synthetic import draw_dermoscopy  # noqa: E402
from medlitenet_jax.pages.outlines import PREDICTION_COLOR, TRUTH_COLOR, outlined  # noqa: E402

SEED, COUNT, SIZE, SHOWN, GAP, LABEL = 1, 8, 320, 150, 4, 22


def main(path: str) -> None:
  """Outlines the generated photographs with the released base and writes the picture."""
  network = medlitenet_jax.load("base")
  sheet = Image.new(
    "RGB", (COUNT * (SHOWN + GAP) - GAP, 4 * (SHOWN + GAP) - GAP + LABEL), (255, 255, 255)
  )
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
  for column in range(COUNT):
    photograph, truth = draw_dermoscopy(SEED, column, SIZE)
    mask = (network(photograph) >= 0.5).astype(np.uint8)
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    both = outlined(photograph, (truth, TRUTH_COLOR), (mask, PREDICTION_COLOR))
    pictures = (
      photograph,
      *(cv2.cvtColor(m * 255, cv2.COLOR_GRAY2RGB) for m in (truth, mask)),
      both,
    )
    left = column * (SHOWN + GAP)
    for row, picture in enumerate(pictures):
      small = cv2.resize(picture, (SHOWN, SHOWN), interpolation=cv2.INTER_AREA)
      sheet.paste(Image.fromarray(small), (left, row * (SHOWN + GAP)))
    place = (left + SHOWN // 2, 4 * (SHOWN + GAP) + LABEL // 2 - GAP // 2)
    draw.text(place, f"Dice {dice:.3f}", fill=(60, 60, 60), font=font, anchor="mm")
  sheet.save(path, quality=85, method=6)
  print(f"{path}: {Path(path).stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
  main(*sys.argv[1:])
