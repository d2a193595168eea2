"""Scores of a segmentation: pixels counted per case, then the field's ratios of those counts.

The rules are the ISIC challenge's: a ratio with nothing in its denominator is 1 (Dice and IoU of an
empty prediction of an empty mask; sensitivity where there is no lesion; specificity where there is
no skin), and the threshold Jaccard of a case is its IoU, or 0 under 0.65.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

SCORES = ("dice", "iou", "accuracy", "sensitivity", "specificity", "threshold_jaccard")
JACCARD_THRESHOLD = 0.65


class Confusion(NamedTuple):
  """Pixels of each case: lesion found, skin called lesion, lesion missed, skin left alone."""

  tp: np.ndarray
  fp: np.ndarray
  fn: np.ndarray
  tn: np.ndarray


def confusion_counts(logits, mask, valid, *, threshold: float = 0.5) -> Confusion:
  """Counts agreeing and disagreeing pixels of each case, on the device.

  Sums are taken in float32 whatever the compute dtype: a 256x256 lesion has more pixels than
  float16 can hold, and bfloat16 stops counting at 256. Float32 counts exactly up to 4096x4096.

  Args:
    logits: [B, H, W, 1] scores before the sigmoid, any float dtype.
    mask: [B, H, W, 1] ground truth; a pixel above 0.5 is lesion.
    valid: [B] 1 for a real case, 0 for a row that only fills the batch.
    threshold: probability at or above which a pixel is called lesion, in (0, 1).

  Returns:
    Confusion of [B] float32 arrays, in pixels; all zero where valid is 0.

  Raises:
    ValueError: if logits and mask differ in shape or are not rank 4.
  """
  if logits.shape != mask.shape or logits.ndim != 4:
    raise ValueError(f"logits {logits.shape} and mask {mask.shape} must be one [B, H, W, 1] shape")
  # Probabilities would round in half precision; the logit of the threshold is the same test.
  found = logits.astype(jnp.float32) >= np.log(threshold / (1 - threshold))
  lesion = mask > 0.5
  valid = valid.astype(jnp.float32)

  def count(pixels):
    return jnp.sum(pixels, axis=(1, 2, 3), dtype=jnp.float32) * valid

  return Confusion(
    count(found & lesion), count(found & ~lesion), count(~found & lesion), count(~found & ~lesion)
  )


def confusion_of_masks(prediction: np.ndarray, truth: np.ndarray) -> Confusion:
  """Counts the pixels of one case from two masks of any size, exactly.

  Args:
    prediction: [H, W], 0 or 1, any dtype.
    truth: [H, W], 0 or 1, any dtype.

  Returns:
    Confusion of four whole numbers, in pixels.

  Raises:
    ValueError: if the shapes differ.
  """
  if prediction.shape != truth.shape:
    raise ValueError(f"prediction is {prediction.shape} but truth is {truth.shape}")
  found, lesion = prediction.astype(bool), truth.astype(bool)
  tp = np.count_nonzero(found & lesion)
  fp, fn = np.count_nonzero(found) - tp, np.count_nonzero(lesion) - tp
  return Confusion(*(np.asarray(n) for n in (tp, fp, fn, found.size - tp - fp - fn)))


def scores_from_counts(counts: Confusion) -> dict[str, np.ndarray]:
  """Turns the counts of each case into its scores (eq. 13 and 14 and the challenge's).

  Args:
    counts: arrays or numbers of one shape, in pixels.

  Returns:
    A float64 array of that shape for each name in `SCORES`, in [0, 1].
  """
  tp, fp, fn, tn = (np.asarray(count, np.float64) for count in counts)

  def ratio(part, whole):
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 1.0)

  iou = ratio(tp, tp + fp + fn)
  return {
    "dice": ratio(2 * tp, 2 * tp + fp + fn),
    "iou": iou,
    "accuracy": ratio(tp + tn, tp + fp + fn + tn),
    "sensitivity": ratio(tp, tp + fn),
    "specificity": ratio(tn, tn + fp),
    "threshold_jaccard": np.where(iou >= JACCARD_THRESHOLD, iou, 0.0),
  }


def pooled_scores(cases: Sequence[Mapping[str, int]], prefix: str = "") -> dict[str, float]:
  """Scores of all pixels of all cases thrown together, as some papers report them.

  Large photographs and large lesions count for more, so these are no means over cases.

  Args:
    cases: one mapping a case with the counts of `Confusion`, in pixels.
    prefix: before the names of the counts.

  Returns:
    A number for each name in `SCORES`; the threshold applies to the pooled IoU.
  """
  counts = Confusion(
    *(np.asarray(sum(case[prefix + name] for case in cases)) for name in Confusion._fields)
  )
  return {name: float(score) for name, score in scores_from_counts(counts).items()}
