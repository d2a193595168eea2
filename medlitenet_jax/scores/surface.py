"""How far the borders of two masks lie apart, in pixels, and how much of them agrees."""

import cv2
import numpy as np

SURFACE_SCORES = ("hd95", "assd", "boundary_f")
BOUNDARY_TOLERANCE = 0.0075  # of the photograph's diagonal, as Csurka et al. 2013 have it


def surface_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  """Compares the borders of two masks of one photograph.

  The border of a mask is its pixels with a background pixel among their four neighbours. What lies
  outside the photograph is background: a lesion pixel on the frame is border. (So it is where
  `scipy.ndimage.binary_erosion` is called without `border_value`, as medpy does.)

  Args:
    prediction: [H, W] uint8, 0 or 1.
    truth: [H, W] uint8, 0 or 1.

  Returns:
    A number for each name in `SURFACE_SCORES`. From each border pixel of either mask to the nearest
    of the other's, Euclidean, in pixels: `hd95` is the 95th percentile and `assd` the mean of all
    these distances together (Heimann et al. 2009, and medpy from 0.5 on; up to 0.4 its assd was the
    mean of the two directions' means). `boundary_f`, in [0, 1], is the harmonic mean of the share
    of predicted border pixels at most `BOUNDARY_TOLERANCE` from the true border and of the share
    the other way round (BF score; Csurka et al. 2013, "What is a good evaluation measure for
    semantic segmentation?").
    Two empty masks: 0, 0 and 1. One empty mask: nan, nan (there is no distance) and 0.

  Raises:
    ValueError: if the masks are not [H, W] uint8 of 0 and 1 or differ in shape.
  """
  for name, mask in (("prediction", prediction), ("truth", truth)):
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max(initial=0) > 1:
      raise ValueError(f"{name} {mask.shape} {mask.dtype} must be [H, W] uint8 of 0 and 1")
  if prediction.shape != truth.shape:
    raise ValueError(f"prediction is {prediction.shape} but truth is {truth.shape}")
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
  """Border pixels of a mask, [H + 2, W + 2] uint8: a margin of background lies around it."""
  mask = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
  return mask - cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))


def _distances(start: np.ndarray, end: np.ndarray) -> np.ndarray:
  """Distance of each pixel of one border from the nearest of another, float64, in pixels."""
  distances = cv2.distanceTransform(1 - end, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  # Squares of distances are whole numbers, and the transform's last bit is not always the same.
  return np.sqrt(np.rint(np.square(distances[start.astype(bool)], dtype=np.float64)))
