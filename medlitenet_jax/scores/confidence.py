"""Confidence of a probability map: per pixel, and for the mask made from it."""

import chex
import numpy as np


def entropy_bits(probs: np.ndarray) -> np.ndarray:
  """Uncertainty of each pixel: the binary entropy of its probability.

  Args:
    probs: float array of any shape, in [0, 1].

  Returns:
    The same shape, float32, in bits: 0 for a probability of 0 or 1, 1 for one half.
  """
  p = np.clip(probs.astype(np.float32), 1e-7, 1 - 1e-7)
  return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def expected_dice(probs: np.ndarray, mask: np.ndarray) -> float:
  """Dice to expect of a mask, if the probabilities are right; used as a case's confidence.

  It is the expected numerator of Dice over its expected denominator, where each pixel is lesion
  with its probability. No ground truth is needed.

  Args:
    probs: [S, S] in [0, 1].
    mask: [S, S], 0 or 1, the prediction made from `probs`.

  Returns:
    In [0, 1]; 1 if the mask and the probabilities are all 0.
  """
  chex.assert_equal_shape([probs, mask])
  total = float(np.sum(mask, dtype=np.float64) + np.sum(probs, dtype=np.float64))
  overlap = float(np.sum(probs * mask, dtype=np.float64))
  return 2 * overlap / total if total > 0 else 1.0
