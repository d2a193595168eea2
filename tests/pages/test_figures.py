"""Figures are written to the right place and show the right content."""

import cv2
import numpy as np
import pytest
from coloraide import Color
from matplotlib.figure import Figure

from configs import quickstart
from medlitenet_jax.config import resolve
from medlitenet_jax.data.cases import Case
from medlitenet_jax.modes.preview import preview
from medlitenet_jax.pages.evaluation import PageCase
from medlitenet_jax.pages.figures import (
  _farthest_part,
  draw_curves,
  draw_failures,
  draw_grid,
  draw_run_curves,
  draw_side_by_side,
  save_figure,
)
from medlitenet_jax.pages.outlines import DARK, LIGHT, PREDICTION_COLOR, TRUTH_COLOR, outlined


def disc(side=60, radius=20):
  y, x = np.mgrid[:side, :side] - side / 2
  return (x * x + y * y < radius * radius).astype(np.uint8)


@pytest.mark.filterwarnings("error")
def test_a_name_in_letters_that_no_font_has_is_drawn_without_a_warning(tmp_path):
  figure = Figure()
  figure.suptitle("\u5199\u771f")
  save_figure(figure, tmp_path / "a.png")
  assert cv2.imread(str(tmp_path / "a.png")).std() > 0


@pytest.mark.parametrize(("side", "edges", "reach"), [(60, (DARK,), 5), (300, (DARK, LIGHT), 6)])
def test_outline_is_on_the_border_and_changes_nothing_else(side, edges, reach):
  image, mask = np.full((side, side, 3), 90, np.uint8), disc(side, side / 3)
  drawn = outlined(image, (mask, TRUTH_COLOR))
  changed = (drawn != 90).any(-1)
  distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5) + cv2.distanceTransform(
    1 - mask, cv2.DIST_L2, 5
  )
  assert changed.any() and distance[changed].max() <= reach
  for color in (TRUTH_COLOR, *edges):
    assert (np.abs(drawn[changed] - np.array(color, float)).max(-1) < 60).any()
  assert (image == 90).all()


def test_outlines_stay_apart_for_the_colour_blind_and_on_every_skin():
  """CIEDE2000 of at least 20, as seen without the cones for red or for green too."""
  skins = ((241, 214, 200), (200, 150, 120), (160, 105, 75), (110, 70, 50), (70, 45, 35))

  def seen(color, kind):
    shown = Color("srgb", [value / 255 for value in color])
    return shown.filter(kind) if kind else shown

  for kind in (None, "protan", "deutan"):
    truth, found = seen(TRUTH_COLOR, kind), seen(PREDICTION_COLOR, kind)
    assert truth.delta_e(found, method="2000") >= 20
    for skin in skins:
      for line in (truth, found):
        assert line.delta_e(seen(skin, kind), method="2000") >= 20, (kind, skin)


def test_an_outline_that_lies_beside_another_leaves_it_to_be_seen():
  image, mask = np.full((300, 300, 3), 90, np.uint8), disc(300, 100)
  inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=2)
  drawn = outlined(image, (mask, TRUTH_COLOR), (inner, PREDICTION_COLOR))
  for color in (TRUTH_COLOR, PREDICTION_COLOR):
    assert (np.abs(drawn - np.array(color, float)).max(-1) < 40).sum() > 100


def test_curves_show_losses_scores_and_changes_of_size(tmp_path):
  rows = [
    {"step": s, "epoch": s / 10, "split": "train", "loss": 1 / s, "dice": 0.5, "image_size": size}
    for s, size in ((1, 64), (2, 64), (3, 96), (4, 96))
  ]
  rows.append({"step": 4, "epoch": 0.4, "split": "val", "dice": 0.8, "iou": 0.7})
  path = draw_curves(rows, tmp_path)
  assert path == tmp_path / "figures" / "curves.png"
  assert cv2.imread(str(path)).std() > 5


def test_curves_of_a_run_without_metrics_yet(tmp_path):
  assert draw_curves([], tmp_path).exists()


def page_case(radius=15):
  row = {"case_id": "case", "dice": 0.72, "hd95": 5.0, "contrast": 20.0}
  entropy = np.random.default_rng(0).random((32, 32), np.float32)
  image = np.full((60, 60, 3), 90, np.uint8)
  return PageCase(row, image, disc(), disc(radius=radius), entropy)


def height_of(path):
  return cv2.imread(str(path)).shape[0]


@pytest.mark.parametrize("draw", [draw_grid, draw_failures])
def test_one_row_per_case(draw, tmp_path):
  heights = []
  for count in (1, 3):
    draw([page_case()] * count, tmp_path / "deep" / "grid.png")
    heights.append(height_of(tmp_path / "deep" / "grid.png"))
  assert heights[1] > 2.5 * heights[0]


def test_a_picture_is_drawn_without_failures(tmp_path):
  draw_failures([], tmp_path / "failures.png")
  assert height_of(tmp_path / "failures.png") > 50


@pytest.mark.parametrize("corner", [(5, 5), (5, 85), (95, 40)])
def test_the_worst_part_holds_the_largest_error(corner):
  truth, prediction = np.zeros((2, 100, 90), np.uint8)
  truth[30:60, 30:60] = 1
  prediction[30:60, 30:57] = 1  # three columns are missed
  prediction[max(0, corner[0] - 5) : corner[0] + 5, max(0, corner[1] - 5) : corner[1] + 5] = 1
  rows, columns = _farthest_part(truth, prediction)
  assert rows.start <= corner[0] < rows.stop and columns.start <= corner[1] < columns.stop
  assert rows.start >= 0 and rows.stop <= 100 and columns.start >= 0 and columns.stop <= 90


def test_side_by_side_has_one_column_per_network(tmp_path):
  case = Case(0, "case", np.full((60, 60, 3), 90, np.uint8), disc())
  widths = []
  for names in (["a"], ["a", "b", "c"]):
    shown = {"case": case, "predictions": [disc()] * len(names), "dice": [0.5] * len(names)}
    draw_side_by_side([shown] * 2, names, tmp_path / "grid.png")
    widths.append(cv2.imread(str(tmp_path / "grid.png")).shape[1])
  assert widths[1] > 1.5 * widths[0]


def test_curves_of_several_runs(tmp_path):
  rows = [{"step": 1, "epoch": 0.5, "split": "val", "dice": 0.8, "iou": 0.7}]
  rows += [{"step": 2, "epoch": 1, "split": "train", "loss": None, "dice": 0.5}]
  draw_run_curves({"one": rows, "two": rows[:1]}, tmp_path / "curves.png")
  assert cv2.imread(str(tmp_path / "curves.png")).std() > 5


def test_preview_draws_the_sheet(tmp_path, capsys):
  config = quickstart.get_config()
  config.train.image_sizes = (64,)
  config.data.synthetic.image_size = 64
  preview(resolve(config, "cpu"), tmp_path)
  assert str(tmp_path / "augmentations.png") in capsys.readouterr().out
  assert cv2.imread(str(tmp_path / "augmentations.png")).std() > 5


def test_a_name_is_never_parsed_as_a_formula(tmp_path):
  image, mask = np.full((60, 60, 3), 90, np.uint8), disc()
  row = {"case_id": "$x_{$", "dice": 0.5, "hd95": 1.0, "contrast": 1.0}
  draw_grid([PageCase(row, image, mask, mask, None)], tmp_path / "grid.png")
  assert (tmp_path / "grid.png").exists()


def test_curves_of_damaged_lines(tmp_path):
  rows = [{"step": 1, "epoch": 0.5, "split": "train"}, {"step": 2, "epoch": 1.0, "split": "val"}]
  assert draw_curves(rows, tmp_path).exists()
  draw_run_curves({"run": rows}, tmp_path / "runs.png")
  assert (tmp_path / "runs.png").exists()
