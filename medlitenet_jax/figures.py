"""Pictures: training curves, masks beside photographs, sheets of augmentations."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TRUTH_COLOR, PREDICTION_COLOR = (0, 230, 118), (255, 214, 0)  # RGB: told apart by the colour-blind


def save_figure(figure: Figure, path: Path) -> None:
  """Writes a figure as PNG; its folder is made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  FigureCanvasAgg(figure).print_png(str(path))


def outlined(image: np.ndarray, mask: np.ndarray, color: Sequence[int]) -> np.ndarray:
  """Draws the border of a mask on a photograph.

  Args:
    image: [H, W, 3] uint8 RGB.
    mask: [H, W] uint8, 0 or 1.
    color: RGB, 0 to 255.

  Returns:
    A copy of image; the line is a 150th of the longer side wide.
  """
  contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
  width = max(1, round(max(mask.shape) / 150))
  return cv2.drawContours(image.copy(), contours, -1, tuple(color), width, cv2.LINE_AA)


def draw_curves(rows: Sequence[Mapping[str, Any]], workdir: Path) -> Path:
  """Draws a run's loss and scores over epochs, as the paper's Fig. 6.

  Args:
    rows: lines of `metrics.jsonl`.
    workdir: receives `figures/curves.png`.

  Returns:
    Path of the picture.
  """
  train, val = ([row for row in rows if row["split"] == split] for split in ("train", "val"))
  figure = Figure(figsize=(11, 3.4), layout="constrained")
  panels = figure.subplots(1, 3)
  curves = {
    "Loss": [("train", train, "loss")],
    "Dice": [("train, augmented batches", train, "dice"), ("validation, EMA", val, "dice")],
    "IoU": [("validation, EMA", val, "iou")],
  }
  for panel, (title, lines) in zip(panels, curves.items(), strict=True):
    for label, points, name in lines:
      marker = "." if len(points) < 50 else None
      x = [row["epoch"] for row in points]
      y = [np.nan if row[name] is None else row[name] for row in points]
      color = "tab:blue" if label.startswith("train") else "tab:orange"
      panel.plot(x, y, label=label, marker=marker, color=color, linewidth=1.3)
    panel.set(title=title, xlabel="epoch")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
  sizes = [row["image_size"] for row in train]
  for before, after, row in zip(sizes, sizes[1:], train[1:], strict=False):
    if before != after:
      panels[0].axvline(row["epoch"], color="grey", linestyle=":", linewidth=1)
      panels[0].annotate(f"{after:g} px", (row["epoch"], panels[0].get_ylim()[1]), va="top")
  path = workdir / "figures" / "curves.png"
  save_figure(figure, path)
  return path


def draw_grid(
  cases: Iterable[tuple[str, np.ndarray, np.ndarray, np.ndarray, float]], path: Path
) -> None:
  """Draws a row a case: photograph, truth, prediction, both outlines, as the paper's Fig. 5.

  Args:
    cases: (case_id, [H, W, 3] uint8 image, [H, W] truth, [H, W] prediction, Dice) each.
    path: of the PNG.
  """
  cases = list(cases)
  titles = ("Photograph", "Truth", "Prediction", "Truth (green), prediction (yellow)")
  figure = Figure(figsize=(9.6, 2.45 * len(cases)), layout="constrained")
  axes = figure.subplots(len(cases), len(titles), squeeze=False)
  for row, (case_id, image, truth, prediction, dice) in zip(axes, cases, strict=True):
    both = outlined(outlined(image, truth, TRUTH_COLOR), prediction, PREDICTION_COLOR)
    for axis, picture in zip(row, (image, truth, prediction, both), strict=True):
      axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
      axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"{case_id}\nDice {dice:.3f}", fontsize=8)
  for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title, fontsize=9)
  save_figure(figure, path)


def draw_sheet(rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, np.ndarray]]]], path: Path):
  """Draws rows of photographs with the outlines of their masks.

  Args:
    rows: (label, [(image [S, S, 3] uint8, mask [S, S] uint8), ...]) each, all of one length.
    path: of the PNG.
  """
  columns = len(rows[0][1])
  figure = Figure(figsize=(1.5 * columns + 1, 1.5 * len(rows)), layout="constrained")
  axes = figure.subplots(len(rows), columns, squeeze=False)
  for axis_row, (label, pictures) in zip(axes, rows, strict=True):
    for axis, (image, mask) in zip(axis_row, pictures, strict=True):
      axis.imshow(outlined(image, mask, TRUTH_COLOR))
      axis.set(xticks=[], yticks=[])
    axis_row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
  save_figure(figure, path)
