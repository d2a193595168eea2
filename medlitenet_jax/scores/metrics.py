"""Scores of a segmentation: pixel counts per case, and the usual ratios of those counts.

The rules are those of the ISIC challenge. A ratio with a denominator of 0 is 1: Dice and IoU of an
empty prediction of an empty mask, sensitivity without lesion, specificity without skin. The
threshold Jaccard of a case is its IoU, or 0 if that is under 0.65.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

SCORES = ("dice", "iou", "accuracy", "sensitivity", "specificity", "threshold_jaccard")
JACCARD_THRESHOLD = 0.65


class Confusion(NamedTuple):
  """Number of true positive, false positive, false negative and true negative pixels per case."""

  tp: np.ndarray
  fp: np.ndarray
  fn: np.ndarray
  tn: np.ndarray


def confusion_counts(logits, mask, valid, *, threshold: float = 0.5) -> Confusion:
  """Counts the confusion matrix of each case, on the device.

  Sums are float32 whatever the compute dtype: a 256x256 lesion has more pixels than float16 can
  hold, and bfloat16 stops counting at 256. Float32 counts exactly up to 4096x4096.

  Args:
    logits: [B, H, W, 1] scores before the sigmoid, any float dtype.
    mask: [B, H, W, 1] ground truth, any dtype; a pixel above 0.5 is lesion.
    valid: [B], 1 for a real case, 0 for a padding row.
    threshold: probability at or above which a pixel is called lesion, in (0, 1).

  Returns:
    Confusion of [B] float32 arrays, in pixels; all zero where valid is 0.

  Raises:
    AssertionError: if the shapes are not these, when traced.
  """
  chex.assert_shape([logits, mask], (*logits.shape[:3], 1))
  chex.assert_shape(valid, logits.shape[:1])
  # Compared as logits: in half precision probabilities would be rounded.
  found = logits.astype(jnp.float32) >= np.log(threshold / (1 - threshold))
  lesion = mask > 0.5
  valid = valid.astype(jnp.float32)

  def count(pixels):
    return jnp.sum(pixels, axis=(1, 2, 3), dtype=jnp.float32) * valid

  return Confusion(
    count(found & lesion), count(found & ~lesion), count(~found & lesion), count(~found & ~lesion)
  )


def confusion_of_masks(prediction: np.ndarray, truth: np.ndarray) -> Confusion:
  """Counts the confusion matrix of one case from its masks, exactly and at any size.

  Args:
    prediction: [H, W], 0 or 1, any dtype.
    truth: [H, W], 0 or 1, any dtype.

  Returns:
    Confusion of four integers, in pixels.

  Raises:
    AssertionError: if the shapes differ.
  """
  chex.assert_equal_shape([prediction, truth])
  found, lesion = prediction.astype(bool), truth.astype(bool)
  tp = np.count_nonzero(found & lesion)
  fp, fn = np.count_nonzero(found) - tp, np.count_nonzero(lesion) - tp
  return Confusion(*(np.asarray(n) for n in (tp, fp, fn, found.size - tp - fp - fn)))


def scores_from_counts(counts: Confusion) -> dict[str, np.ndarray]:
  """Computes the scores of each case from its counts (eq. 13, eq. 14 and the ISIC challenge's).

  Args:
    counts: arrays or numbers, all of one shape, in pixels.

  Returns:
    {name in `SCORES`: float64 array of that shape, in [0, 1]}.
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
  """Scores of the pooled pixels of all cases, as some papers report them.

  Unlike means over cases, they give large photographs and large lesions more weight.

  Args:
    cases: one mapping per case with the counts of `Confusion`, in pixels.
    prefix: prefix of the names of the counts.

  Returns:
    {name in `SCORES`: number}; the Jaccard threshold applies to the pooled IoU.
  """
  counts = Confusion(
    *(np.asarray(sum(case[prefix + name] for case in cases)) for name in Confusion._fields)
  )
  return {name: float(score) for name, score in scores_from_counts(counts).items()}
