"""From probabilities to a mask: thresholds, and clean-up of the holes and specks they leave."""

import dataclasses
from collections.abc import Callable

import chex
import cv2
import numpy as np

# Of a photograph's area. The smallest lesion in 2294 square crops of ISIC 2018 covers 0.0048.
SPECK_FRACTION = 0.001
PLAIN_THRESHOLD = 0.5


def fill_holes(mask: np.ndarray) -> np.ndarray:
  """Turns skin that the lesion surrounds into lesion.

  Args:
    mask: [H, W] uint8, 0 or 1.

  Returns:
    [H, W] uint8, 0 or 1; every skin region that does not reach the edge of the photograph (four
    neighbours) is lesion.
  """
  _, labels = cv2.connectedComponents(1 - mask, connectivity=4)
  frame = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
  return (mask | ~np.isin(labels, frame)).astype(np.uint8)


def keep_largest(mask: np.ndarray) -> np.ndarray:
  """Keeps the largest of the lesion's regions (eight neighbours), the first found among equals.

  Args:
    mask: [H, W] uint8, 0 or 1.

  Returns:
    [H, W] uint8, 0 or 1, with one region, or none if the mask has none.
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
    [H, W] uint8, 0 or 1, without them.
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
  """Decides which pixels are lesion, by one threshold or by two with hysteresis (Canny 1986).

  Args:
    probs: [H, W] float32.
    threshold: probability at or above which a pixel is lesion.
    low: 0, or a lower threshold: pixels at or above it form regions (eight neighbours), and a
      region that has a pixel at or above `threshold` is lesion as a whole.

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


@dataclasses.dataclass(frozen=True)
class MaskRule:
  """How a mask is made from probabilities.

  Attributes:
    threshold: probability at or above which a pixel is lesion, above 0 and at most 1.
    low: lower threshold of the hysteresis, see `lesion_mask`, under `threshold`; 0 for none.
    steps: clean-up steps, names out of `STEPS`, in the order in which they are applied.
  """

  threshold: float = PLAIN_THRESHOLD
  low: float = 0.0
  steps: tuple[str, ...] = ()

  def __post_init__(self):
    """Refuses settings that describe no mask.

    Raises:
      ValueError: names the setting.
    """
    if not 0 < self.threshold <= 1:
      raise ValueError(f"threshold is {self.threshold!r}; it must lie above 0 and not above 1")
    if not 0 <= self.low < self.threshold:
      raise ValueError(f"low is {self.low!r}; it must be 0 or lie under {self.threshold!r}")
    if unknown := [step for step in self.steps if step not in STEPS]:
      raise ValueError(f"{unknown[0]!r} is not one of the steps {', '.join(STEPS)}")

  def mask(self, probs: np.ndarray, height: int, width: int) -> np.ndarray:
    """Makes the mask of a photograph.

    Args:
      probs: [S, S] float32; the probabilities are resized, not the mask.
      height: of the photograph, in pixels.
      width: of the photograph, in pixels.

    Returns:
      [height, width] uint8, 0 or 1.
    """
    mask = lesion_mask(_resized(probs, height, width), self.threshold, self.low)
    for step in self.steps:
      mask = STEPS[step](mask)
    return mask

  def stages(self, probs: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """Makes the mask of a photograph and keeps the result of every step.

    Args:
      probs: as in `mask`.
      height: as in `mask`.
      width: as in `mask`.

    Returns:
      [height, width] uint8 masks, 0 or 1, by the name of the step that made each from the one
      before. The first is made by `PLAIN_THRESHOLD` alone; the last is the result of `mask`.
    """
    resized = _resized(probs, height, width)
    mask = lesion_mask(resized, PLAIN_THRESHOLD)
    stages = {f"threshold {PLAIN_THRESHOLD:g}": mask}
    if self.threshold != PLAIN_THRESHOLD:
      mask = lesion_mask(resized, self.threshold)
      stages[f"threshold {self.threshold:g}"] = mask
    if self.low:
      mask = lesion_mask(resized, self.threshold, self.low)
      stages[f"hysteresis down to {self.low:g}"] = mask
    for step in self.steps:
      stages[step] = mask = STEPS[step](mask)
    return stages


def _resized(probs: np.ndarray, height: int, width: int) -> np.ndarray:
  chex.assert_rank(probs, 2)
  return cv2.resize(probs, (width, height), interpolation=cv2.INTER_LINEAR)
