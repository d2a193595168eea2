"""Boundary scores of two masks: distances in pixels, and the share of the borders that agrees."""

import chex
import cv2
import numpy as np

SURFACE_SCORES = ("hd95", "assd", "boundary_f")
BOUNDARY_TOLERANCE = 0.0075  # of the photograph's diagonal, as in Csurka et al. 2013


def surface_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  """Compares the borders of two masks of one photograph.

  The border of a mask consists of its pixels that have a background pixel among their four
  neighbours. Everything outside the photograph is background, so a lesion pixel on the frame is
  border (as in medpy, which calls `scipy.ndimage.binary_erosion` without `border_value`).

  Args:
    prediction: [H, W] uint8, 0 or 1.
    truth: [H, W] uint8, 0 or 1.

  Returns:
    {name in `SURFACE_SCORES`: number}. `hd95` and `assd` are the 95th percentile and the mean of
    the Euclidean distances, in pixels, from each border pixel of either mask to the nearest border
    pixel of the other, both directions pooled (Heimann et al. 2009, and medpy from 0.5 on; up to
    0.4 its assd was the mean of the two directions' means). `boundary_f`, in [0, 1], is the
    harmonic mean of two shares: of predicted border pixels within `BOUNDARY_TOLERANCE` of the true
    border, and the reverse (BF score; Csurka et al. 2013, "What is a good evaluation measure for
    semantic segmentation?").
    Two empty masks: 0, 0 and 1. One empty mask: nan, nan (there is no distance) and 0.

  Raises:
    AssertionError: if the masks are not [H, W] uint8 of one shape.
    ValueError: if they have other values than 0 and 1.
  """
  chex.assert_rank([prediction, truth], 2)
  chex.assert_type([prediction, truth], np.uint8)
  chex.assert_equal_shape([prediction, truth])
  for name, mask in (("prediction", prediction), ("truth", truth)):
    if mask.max(initial=0) > 1:
      raise ValueError(f"{name} must be 0 and 1 but has {mask.max()}")
  found, lesion = prediction.any(), truth.any()
  if not (found and lesion):
    distance, agreement = (np.nan, 0.0) if found or lesion else (0.0, 1.0)
    return {"hd95": distance, "assd": distance, "boundary_f": agreement}

  x, y, width, height = cv2.boundingRect(prediction | truth)
  ours, theirs = (_border(mask[y : y + height, x : x + width]) for mask in (prediction, truth))
  there, back = _distances(ours, theirs), _distances(theirs, ours)
  tolerance = BOUNDARY_TOLERANCE * np.hypot(*truth.shape)
  precision, recall = np.mean(there <= tolerance), np.mean(back <= tolerance)
  agreement = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
  distances = np.concatenate([there, back])
  return {
    "hd95": float(np.percentile(distances, 95)),
    "assd": float(distances.mean()),
    "boundary_f": float(agreement),
  }


def _border(mask: np.ndarray) -> np.ndarray:
  """Border pixels of a mask, [H + 2, W + 2] uint8: one pixel of background is added around it."""
  mask = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
  return mask - cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))


def _distances(start: np.ndarray, end: np.ndarray) -> np.ndarray:
  """Distance of each pixel of one border to the nearest pixel of another, float64, in pixels."""
  distances = cv2.distanceTransform(1 - end, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  # Squared distances are integers; rounding removes the transform's varying last bit.
  return np.sqrt(np.rint(np.square(distances[start.astype(bool)], dtype=np.float64)))
