"""Pictures: training curves, masks beside photographs, sheets of augmentations."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medlitenet_jax.pages.outlines import (
  PREDICTION_COLOR,
  PREDICTION_NAME,
  TRUTH_COLOR,
  TRUTH_NAME,
  outlined,
)
from medlitenet_jax.system.files import named_errors

matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a case is not a formula


def save_figure(figure: Figure, path: Path) -> None:
  """Writes a figure as PNG and creates its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with named_errors(path), warnings.catch_warnings():
    # Names of cases may have letters that the fonts lack; those are drawn as boxes.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    FigureCanvasAgg(figure).print_png(str(path))


def draw_curves(rows: Sequence[Mapping[str, Any]], workdir: Path) -> Path:
  """Draws a run's loss and scores over epochs, like the paper's Fig. 6.

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
      y = [np.nan if row.get(name) is None else row[name] for row in points]
      color = "tab:blue" if label.startswith("train") else "tab:orange"
      panel.plot(x, y, label=label, marker=marker, color=color, linewidth=1.3)
    panel.set(title=title, xlabel="epoch")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
  sizes = [row.get("image_size") for row in train]
  for before, after, row in zip(sizes, sizes[1:], train[1:], strict=False):
    if before != after and after is not None:
      panels[0].axvline(row["epoch"], color="grey", linestyle=":", linewidth=1)
      panels[0].annotate(f"{after:g} px", (row["epoch"], panels[0].get_ylim()[1]), va="top")
  path = workdir / "figures" / "curves.png"
  save_figure(figure, path)
  return path


def draw_grid(cases: Sequence[Any], path: Path) -> None:
  """Draws one row per case: photograph, truth, prediction, both outlines (paper's Fig. 5).

  Args:
    cases: each with `row` (case_id and dice), `image` [H, W, 3] uint8, `truth` and `prediction`
      [H, W] uint8, 0 or 1.
    path: of the PNG.
  """
  titles = (
    "Photograph",
    "Truth",
    "Prediction",
    f"Truth ({TRUTH_NAME}), prediction ({PREDICTION_NAME})",
  )
  figure = Figure(figsize=(9.6, 2.45 * len(cases)), layout="constrained")
  axes = figure.subplots(len(cases), len(titles), squeeze=False)
  for row, case in zip(axes, cases, strict=True):
    pictures = (case.image, case.truth, case.prediction, _both_outlines(case))
    for axis, picture in zip(row, pictures, strict=True):
      axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
      axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"{case.row['case_id']}\nDice {case.row['dice']:.3f}", fontsize=8)
  for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title, fontsize=9)
  save_figure(figure, path)


def _both_outlines(case) -> np.ndarray:
  truth, prediction = (case.truth, TRUTH_COLOR), (case.prediction, PREDICTION_COLOR)
  return outlined(case.image, truth, prediction)


def draw_failures(cases: Sequence[Any], path: Path) -> None:
  """Draws where borders were missed most, like the paper's Fig. 7.

  One row per case: the photograph with both outlines; a square around the place where they are
  farthest apart, without and with them; and the network's uncertainty there.

  Args:
    cases: see `draw_grid`, plus `uncertainty` [S, S] float32, bits; `row` has hd95 and contrast.
    path: path of the PNG.
  """
  titles = (
    f"Truth ({TRUTH_NAME}), prediction ({PREDICTION_NAME})",
    "Worst part",
    "With outlines",
    "Uncertainty",
  )
  figure = Figure(figsize=(9.6, 2.45 * max(1, len(cases))), layout="constrained")
  axes = figure.subplots(max(1, len(cases)), len(titles), squeeze=False)
  for row, case in zip(axes, cases, strict=False):
    both = _both_outlines(case)
    part = _farthest_part(case.truth, case.prediction)
    size = (case.image.shape[1], case.image.shape[0])
    entropy = cv2.resize(case.uncertainty, size, interpolation=cv2.INTER_LINEAR)
    boxed = both.copy()
    corners = (part[1].start, part[0].start), (part[1].stop - 1, part[0].stop - 1)
    cv2.rectangle(boxed, *corners, (255, 255, 255), max(1, round(max(size) / 200)))
    for axis, picture in zip(row[:3], (boxed, case.image[part], both[part]), strict=True):
      axis.imshow(picture)
    row[3].imshow(entropy[part], cmap="magma", vmin=0, vmax=1)
    for axis in row:
      axis.set(xticks=[], yticks=[])
    figures = f"HD95 {case.row['hd95']:.0f} px, contrast {case.row['contrast']:.0f}"
    row[0].set_ylabel(f"{case.row['case_id']}\n{figures}", fontsize=8)
  for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title, fontsize=9)
  if not cases:
    axes[0][0].set_xlabel("no case has both borders")
  save_figure(figure, path)


def draw_side_by_side(cases: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
  """Draws one row per case: photograph, truth and each network's prediction (paper's Fig. 5).

  Args:
    cases: each with "case" (case_id, image [H, W, 3] uint8, mask [H, W]), and "predictions" and
      "dice", a mask and a number for each network.
    names: names of the networks.
    path: path of the PNG.
  """
  titles = ("Photograph", "Truth", *names)
  figure = Figure(figsize=(2.4 * len(titles), 2.5 * len(cases)), layout="constrained")
  axes = figure.subplots(len(cases), len(titles), squeeze=False)
  for row, shown in zip(axes, cases, strict=True):
    case = shown["case"]
    for axis, picture in zip(row, (case.image, case.mask, *shown["predictions"]), strict=True):
      axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
      axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(case.case_id, fontsize=8)
    for axis, dice in zip(row[2:], shown["dice"], strict=True):
      axis.set_xlabel(f"Dice {dice:.3f}", fontsize=8)
  for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title, fontsize=9)
  save_figure(figure, path)


def draw_run_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
  """Draws the training loss and the validation scores of several runs over epochs.

  Args:
    runs: {name of the run: lines of its `metrics.jsonl`}.
    path: path of the PNG.
  """
  figure = Figure(figsize=(11, 3.4), layout="constrained")
  panels = figure.subplots(1, 3)
  curves = (
    ("Loss, train", "train", "loss"),
    ("Dice, validation", "val", "dice"),
    ("IoU, validation", "val", "iou"),
  )
  for panel, (title, split, name) in zip(panels, curves, strict=True):
    for run, rows in runs.items():
      points = [row for row in rows if row["split"] == split and row.get(name) is not None]
      panel.plot([r["epoch"] for r in points], [r[name] for r in points], label=run, linewidth=1.3)
    panel.set(title=title, xlabel="epoch")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=8)
  save_figure(figure, path)


def _farthest_part(truth: np.ndarray, prediction: np.ndarray) -> tuple[slice, slice]:
  """The square around the differing pixel that is farthest from any pixel where masks agree."""
  differing = (truth != prediction).astype(np.uint8)
  depth = cv2.distanceTransform(differing, cv2.DIST_L2, cv2.DIST_MASK_5)
  y, x = np.unravel_index(np.argmax(depth), depth.shape)
  side = max(16, min(truth.shape) // 3)

  def window(center: int, length: int) -> slice:
    start = int(np.clip(center - side // 2, 0, max(0, length - side)))
    return slice(start, min(length, start + side))

  return window(int(y), truth.shape[0]), window(int(x), truth.shape[1])


def draw_sheet(
  rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, np.ndarray]]]],
  path: Path,
  titles: Sequence[str] = (),
  side: float = 1.5,
) -> None:
  """Draws rows of photographs with the outlines of their masks.

  Args:
    rows: each (label, [(image [S, S, 3] uint8, mask [S, S] uint8), ...]), all of the same length.
    path: path of the PNG.
    titles: titles of the columns, or none.
    side: side of a picture, in hundreds of pixels.
  """
  columns = len(rows[0][1])
  figure = Figure(figsize=(side * columns + 1, side * len(rows)), layout="constrained")
  axes = figure.subplots(len(rows), columns, squeeze=False)
  for axis_row, (label, pictures) in zip(axes, rows, strict=True):
    for axis, (image, mask) in zip(axis_row, pictures, strict=True):
      axis.imshow(outlined(image, (mask, TRUTH_COLOR)))
      axis.set(xticks=[], yticks=[])
    axis_row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
  for axis, title in zip(axes[0], titles, strict=False):
    axis.set_title(title, fontsize=9)
  save_figure(figure, path)


def draw_cases(
  groups: Sequence[tuple[str, Sequence[tuple[str, np.ndarray, np.ndarray]]]], path: Path
) -> None:
  """Draws groups of photographs of any size with the outlines of their masks.

  Args:
    groups: (title, [(label, image [H, W, 3] uint8, mask [H, W] uint8), ...]), none empty.
    path: of the PNG.
  """
  columns = min(12, max(len(cases) for _, cases in groups))
  rows = [-(-len(cases) // columns) for _, cases in groups]
  figure = Figure(
    figsize=(1.5 * columns, 1.9 * sum(rows) + 0.4 * len(groups)), layout="constrained"
  )
  parts = figure.subfigures(len(groups), 1, height_ratios=rows, squeeze=False).ravel()
  for part, (title, cases), height in zip(parts, groups, rows, strict=True):
    part.suptitle(title, fontsize=10)
    axes = part.subplots(height, columns, squeeze=False).ravel()
    for axis in axes:
      axis.axis("off")
    for axis, (label, image, mask) in zip(axes, cases, strict=False):
      axis.imshow(outlined(image, (mask, TRUTH_COLOR)))
      axis.set_title(label, fontsize=6)
  save_figure(figure, path)
