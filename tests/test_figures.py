"""Pictures are drawn where they should be and show what they should."""

import cv2
import numpy as np

from configs import quickstart
from medlitenet_jax.config import resolve
from medlitenet_jax.figures import TRUTH_COLOR, draw_curves, draw_grid, outlined
from medlitenet_jax.preview import preview


def disc(side=60, radius=20):
  y, x = np.mgrid[:side, :side] - side / 2
  return (x * x + y * y < radius * radius).astype(np.uint8)


def test_outline_lies_on_the_border_and_leaves_the_rest_alone():
  image, mask = np.full((60, 60, 3), 90, np.uint8), disc()
  drawn = outlined(image, mask, TRUTH_COLOR)
  changed = (drawn != 90).any(-1)
  distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5) + cv2.distanceTransform(
    1 - mask, cv2.DIST_L2, 5
  )
  assert changed.any() and distance[changed].max() <= 3
  assert (drawn[changed].max(0) >= np.array(TRUTH_COLOR) - 60).all()
  assert (image == 90).all()


def test_curves_show_losses_scores_and_changes_of_size(tmp_path):
  rows = [
    {"step": s, "epoch": s / 10, "split": "train", "loss": 1 / s, "dice": 0.5, "image_size": size}
    for s, size in ((1, 64), (2, 64), (3, 96), (4, 96))
  ]
  rows.append({"step": 4, "epoch": 0.4, "split": "val", "dice": 0.8, "iou": 0.7})
  path = draw_curves(rows, tmp_path)
  assert path == tmp_path / "figures" / "curves.png"
  assert cv2.imread(str(path)).std() > 5


def test_curves_of_a_run_without_figures_yet(tmp_path):
  assert draw_curves([], tmp_path).exists()


def test_grid_has_a_row_a_case(tmp_path):
  case = ("case", np.full((60, 60, 3), 90, np.uint8), disc(), disc(radius=15), 0.72)
  heights = []
  for count in (1, 3):
    draw_grid([case] * count, tmp_path / "deep" / "grid.png")
    heights.append(cv2.imread(str(tmp_path / "deep" / "grid.png")).shape[0])
  assert heights[1] > 2.5 * heights[0]


def test_preview_draws_the_sheet(tmp_path, capsys):
  config = quickstart.get_config()
  config.train.image_sizes = (64,)
  config.data.synthetic.image_size = 64
  preview(resolve(config, "cpu"), tmp_path)
  assert str(tmp_path / "augmentations.png") in capsys.readouterr().out
  assert cv2.imread(str(tmp_path / "augmentations.png")).std() > 5
