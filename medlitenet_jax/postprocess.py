"""Cleans up a predicted mask: blurred borders leave holes, islands and specks (paper III-A)."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

# Of the photograph. The smallest lesion in 2294 square crops of ISIC 2018 covers 0.0048 of its own.
SPECK_FRACTION = 0.001


def fill_holes(mask: np.ndarray) -> np.ndarray:
  """Turns skin that the lesion surrounds into lesion.

  Args:
    mask: [H, W] uint8, 0 or 1.

  Returns:
    The same with every skin region lesion that does not reach the frame (four neighbours).
  """
  _, labels = cv2.connectedComponents(1 - mask, connectivity=4)
  frame = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
  return (mask | ~np.isin(labels, frame)).astype(np.uint8)


def keep_largest(mask: np.ndarray) -> np.ndarray:
  """Keeps the largest of the lesion's regions (eight neighbours), the first found among equals.

  Args:
    mask: [H, W] uint8, 0 or 1.

  Returns:
    The same with one region, or none if it had none.
  """
  count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
  if count <= 2:
    return mask
  return (labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])).astype(np.uint8)


def drop_specks(mask: np.ndarray) -> np.ndarray:
  """Removes regions of the lesion (eight neighbours) under `SPECK_FRACTION` of the photograph.

  Args:
    mask: [H, W] uint8, 0 or 1.

  Returns:
    The same without them.
  """
  _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
  large = stats[:, cv2.CC_STAT_AREA] >= SPECK_FRACTION * mask.size
  large[0] = False  # the skin
  return large[labels].astype(np.uint8)


STEPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "fill_holes": fill_holes,
  "keep_largest": keep_largest,
  "drop_specks": drop_specks,
}


def postprocess(mask: np.ndarray, steps: Sequence[str]) -> np.ndarray:
  """Applies steps one after another.

  Args:
    mask: [H, W] uint8, 0 or 1.
    steps: names out of `STEPS`, in the order wanted; none leaves the mask as it is.

  Returns:
    [H, W] uint8, 0 or 1.
  """
  for step in steps:
    mask = STEPS[step](mask)
  return mask
