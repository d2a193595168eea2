"""How sure a map of probabilities is: of each pixel, and of the mask made from it."""

import numpy as np


def entropy_bits(probs: np.ndarray) -> np.ndarray:
  """Uncertainty of each pixel: the binary entropy of its probability.

  Args:
    probs: float array of any shape, in [0, 1].

  Returns:
    The same shape, float32: 0 where the network is sure, 1 bit where it says one half.
  """
  p = np.clip(probs.astype(np.float32), 1e-7, 1 - 1e-7)
  return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def expected_dice(probs: np.ndarray, mask: np.ndarray) -> float:
  """Dice that a mask can be expected to reach if the probabilities hold.

  The ratio of the expected numerator to the expected denominator of Dice when each pixel is lesion
  with its probability; it needs no truth, and serves as a case's confidence.

  Args:
    probs: [S, S] in [0, 1].
    mask: [S, S], 0 or 1, the prediction made from them.

  Returns:
    In [0, 1]; 1 where neither mask nor probabilities hold any lesion.
  """
  whole = float(np.sum(mask, dtype=np.float64) + np.sum(probs, dtype=np.float64))
  agreeing = float(np.sum(probs * mask, dtype=np.float64))
  return 2 * agreeing / whole if whole > 0 else 1.0
