"""Evaluation: the averaged network's masks at the photograph's own size, scored case by case."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax import metrics, report
from medlitenet_jax.checkpoint import Checkpoints
from medlitenet_jax.data.image_files import read_mask, write_mask
from medlitenet_jax.data.pipeline import eval_batches
from medlitenet_jax.data.sources import MASK_SUFFIX, Source, create_source, split_hash
from medlitenet_jax.errors import InputError
from medlitenet_jax.figures import draw_grid
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.postprocess import postprocess
from medlitenet_jax.preprocess import normalize
from medlitenet_jax.state import DTYPES
from medlitenet_jax.tta import six_fold

logger = logging.getLogger(__name__)

GRID_ROWS = 8


def create_predict(model: nn.Module, tta: str = "none") -> Callable[[Any, Any], jax.Array]:
  """Compiles the network for evaluation.

  Args:
    model: maps normalised images to logits.
    tta: test-time augmentation, "none" or "six".

  Returns:
    (variables, [B, S, S, 3] uint8 image) to [B, S, S] float32 probabilities.
  """

  @jax.jit
  def predict(variables, image):
    def probs(image):
      logits: Any = model.apply(variables, normalize(image))
      return nn.sigmoid(logits[..., 0])

    return six_fold(probs, image) if tta == "six" else probs(image)

  return predict


def threshold_at_size(probs: np.ndarray, height: int, width: int, threshold: float) -> np.ndarray:
  """Makes a mask of a photograph's own size from the network's probabilities.

  Args:
    probs: [S, S] float32.
    height: of the photograph, in pixels.
    width: of the photograph, in pixels.
    threshold: probability at or above which a pixel is lesion.

  Returns:
    [height, width] uint8, 0 or 1; the probabilities are resized, not the mask.
  """
  resized = cv2.resize(probs, (width, height), interpolation=cv2.INTER_LINEAR)
  return (resized >= threshold).astype(np.uint8)


def predict_cases(
  predict: Callable, variables, source: Source, config: ConfigDict
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Runs the network over a source, one batch ahead of what is given out.

  Args:
    predict: of `create_predict`.
    variables: of the network.
    source: the cases.
    config: resolved; `eval` and `data` are used.

  Yields:
    (case_id, [S, S] float32 probabilities, [H, W] uint8 truth), each case once, in order.
  """
  batches = eval_batches(
    source,
    batch_size=config.eval.batch_size,
    image_size=config.eval.image_size,
    num_threads=config.data.num_threads,
    prefetch_batches=config.data.prefetch_batches,
  )
  running = None
  for batch in batches:
    previous, running = running, (predict(variables, batch.image), batch)
    if previous is not None:
      yield from _cases_of(*previous)
  if running is not None:
    yield from _cases_of(*running)


def _cases_of(probs, batch):
  # Rows that only fill the batch have no case, so zip leaves them out.
  return zip(batch.case_ids, np.asarray(probs), batch.masks, strict=False)


def score_cases(
  predict: Callable, variables, source: Source, config: ConfigDict, masks: Path | None = None
) -> Iterator[dict[str, Any]]:
  """Scores a network on a source, per case, at each photograph's own size.

  Args:
    predict: of `create_predict`.
    variables: of the network.
    source: the cases.
    config: resolved; `eval` and `data` are used.
    masks: folder that receives the predicted masks, or None.

  Yields:
    A row a case: its id, its scores, its counts and its size in pixels.
  """
  for case_id, probs, truth in predict_cases(predict, variables, source, config):
    height, width = truth.shape
    prediction = threshold_at_size(probs, height, width, config.eval.threshold)
    prediction = postprocess(prediction, config.eval.postprocess)
    if masks is not None:
      write_mask(masks / f"{case_id}{MASK_SUFFIX}.png", prediction)
    counts = metrics.confusion_of_masks(prediction, truth)
    scores = {name: float(score) for name, score in metrics.scores_from_counts(counts).items()}
    pixels = {name: int(count) for name, count in counts._asdict().items()}
    yield {"case_id": case_id, **scores, **pixels, "height": height, "width": width}


def restore_average(
  config: ConfigDict, model: nn.Module, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the averaged network of the checkpoint that `config.eval.checkpoint` names.

  Args:
    config: of the run, as its workdir has it.
    model: that it describes.
    workdir: folder of the run.

  Returns:
    variables: of the network.
    origin: the checkpoint's step, how it was selected and its validation scores.

  Raises:
    InputError: if there is no checkpoint or it is of another network.
  """
  which = config.eval.checkpoint
  with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
    step = checkpoints.best_step if which == "best" else checkpoints.latest_step
    if step is None:
      raise InputError(f"{workdir}: no checkpoint in it yet; train first")
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    origin = {
      "step": step,
      "selected_by": "highest validation Dice" if which == "best" else "newest",
      "validation": checkpoints.metrics(step),
    }
    return checkpoints.restore_ema(step, shapes), origin


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Scores a run's checkpoint on a split and writes masks, tables and pictures.

  Args:
    config: of the run, as its workdir has it, with the evaluation's own fields as wanted.
    workdir: folder of the run; `eval/SPLIT/` in it is replaced once everything is written.

  Returns:
    The summary, as `summary.json` holds it.

  Raises:
    InputError: if the checkpoint or the data cannot be used.
  """
  split = config.eval.split
  source = create_source(config.data, split, config.seed)
  model = create_model(config.model.to_dict(), DTYPES[config.precision])
  variables, origin = restore_average(config, model, workdir)
  predict = create_predict(model, config.eval.tta)

  final, folder = workdir / "eval" / split, workdir / "eval" / f"{split}.partial"
  shutil.rmtree(folder, ignore_errors=True)
  (folder / "masks").mkdir(parents=True)
  scored = score_cases(predict, variables, source, config, folder / "masks")
  rows = list(tqdm(scored, total=len(source), unit="case", dynamic_ncols=True))
  summary = {
    **metrics.summarise(rows),
    "cases": len(rows),
    "protocol": _protocol(config, source, origin),
  }
  report.write_csv(folder / "cases.csv", rows)
  draw_grid(_grid_cases(rows, source, folder / "masks"), folder / "figures" / "grid.png")
  (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
  shutil.rmtree(final, ignore_errors=True)
  folder.rename(final)

  print(report.table(*_summary_table(summary)))
  logger.info("Scored %d cases of %s; masks, table and pictures: %s", len(rows), split, final)
  return summary


def _protocol(config: ConfigDict, source: Source, origin: dict[str, Any]) -> dict[str, Any]:
  """How the scores came about: what two numbers must share to be compared."""
  return {
    "split": config.eval.split,
    "split_hash": split_hash(source.case_ids),
    "data_source": config.data.source,
    "scored_at": "each photograph's own size",
    "aggregation": "per image, then mean and standard deviation over images",
    "network_size": config.eval.image_size,
    "threshold": config.eval.threshold,
    "empty_masks": "a ratio with nothing in its denominator is 1",
    "threshold_jaccard": f"IoU, or 0 under {metrics.JACCARD_THRESHOLD}",
    "test_time_augmentation": config.eval.tta,
    "postprocessing": list(config.eval.postprocess),
    "model": config.model.name,
    "variant": config.model.variant,
    "precision": config.precision,
    "weights": "exponential moving average",
    "checkpoint": origin,
  }


def _summary_table(summary):
  rows = [
    (name, f"{summary[name]['mean']:.4f}", f"{summary[name]['std']:.4f}") for name in metrics.SCORES
  ]
  return ("score", "mean", "std"), rows


def _grid_cases(rows, source: Source, masks: Path):
  """Cases from the best to the worst Dice in equal steps, with photograph, truth and prediction."""
  order = sorted(range(len(rows)), key=lambda i: -rows[i]["dice"])
  chosen = np.unique(np.linspace(0, len(order) - 1, min(GRID_ROWS, len(order))).round().astype(int))
  for place in chosen:
    case = source[order[place]]
    prediction = read_mask(masks / f"{case.case_id}{MASK_SUFFIX}.png")
    yield case.case_id, case.image, case.mask, prediction, rows[order[place]]["dice"]
