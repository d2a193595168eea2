"""Makes a mask of probabilities and cleans it up: blurred borders leave holes and specks."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

# Of the photograph. The smallest lesion in 2294 square crops of ISIC 2018 covers 0.0048 of its own.
SPECK_FRACTION = 0.001
PLAIN_THRESHOLD = 0.5


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


def lesion_mask(probs: np.ndarray, threshold: float, low: float = 0.0) -> np.ndarray:
  """Calls pixels lesion by one threshold, or by two with hysteresis.

  Args:
    probs: [H, W] float32.
    threshold: probability at or above which a pixel is lesion.
    low: 0, or a lower threshold: pixels at or above it are lesion too where their region of such
      pixels (eight neighbours) reaches `threshold` (Canny 1986).

  Returns:
    [H, W] uint8, 0 or 1.
  """
  sure = probs >= threshold
  if not 0 < low < threshold:
    return sure.astype(np.uint8)
  _, labels = cv2.connectedComponents((probs >= low).astype(np.uint8), connectivity=8)
  reached = np.zeros(int(labels.max()) + 1, bool)
  reached[labels[sure]] = True
  return reached[labels].astype(np.uint8)


def mask_stages(
  probs: np.ndarray,
  height: int,
  width: int,
  *,
  threshold: float,
  low: float = 0.0,
  steps: Sequence[str] = (),
) -> dict[str, np.ndarray]:
  """Makes the mask of a photograph, keeping what each step of its making gave.

  Args:
    probs: [S, S] float32; they are resized, not the mask.
    height: of the photograph, in pixels.
    width: of the photograph, in pixels.
    threshold: probability at or above which a pixel is lesion.
    low: of `lesion_mask`.
    steps: names out of `STEPS`, in the order wanted.

  Returns:
    [height, width] uint8 masks, 0 or 1, by the step that made each of the one before; the first is
    that of the plain `PLAIN_THRESHOLD`, the last the result.
  """
  resized = cv2.resize(probs, (width, height), interpolation=cv2.INTER_LINEAR)
  mask = lesion_mask(resized, PLAIN_THRESHOLD)
  stages = {f"threshold {PLAIN_THRESHOLD:g}": mask}
  if threshold != PLAIN_THRESHOLD:
    stages[f"threshold {threshold:g}"] = mask = lesion_mask(resized, threshold)
  if low:
    stages[f"hysteresis down to {low:g}"] = mask = lesion_mask(resized, threshold, low)
  for step in steps:
    stages[step] = mask = STEPS[step](mask)
  return stages
