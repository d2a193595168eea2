"""How well masks fit their photographs, judged by colour: a mask of another photograph does not.

A mask that fits separates the colours of its photograph: lesion inside, skin outside. How well it
does so is measured as the fraction of the colours' variance that lies between inside and outside,
which is the same for a mask and its inverse.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

SIZE = 32  # side in pixels to which photographs and masks are reduced
OTHERS = 64  # masks of other photographs that a mask is compared with
_BLOCK = 512  # photographs at a time: their colours as float32 take 6 MB
_EQUAL = 1e-4  # relative difference below which two fractions are the same

# What may have been done to masks alone, by what undoes it.
REPAIRS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
  "mirrored left to right": lambda masks: masks[:, :, ::-1],
  "mirrored top to bottom": lambda masks: masks[:, ::-1],
  "turned by half": lambda masks: masks[:, ::-1, ::-1],
  "with rows and columns exchanged": lambda masks: masks.swapaxes(1, 2),
  "twice as large": lambda masks: masks[:, : SIZE // 2, : SIZE // 2].repeat(2, 1).repeat(2, 2),
  "half as large": lambda masks: np.pad(
    masks[:, ::2, ::2], ((0, 0), (0, SIZE // 2), (0, SIZE // 2))
  ),
}


def reduced(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Shrinks a photograph and its mask; the aspect ratio is not kept.

  Args:
    image: [H, W, 3] uint8 RGB.
    mask: [h, w] uint8, 0 or 1.

  Returns:
    ([SIZE, SIZE, 3] uint8, [SIZE, SIZE] uint8 with the fraction of lesion as 0 to 255).
  """
  to, how = (SIZE, SIZE), cv2.INTER_AREA
  return (
    cv2.resize(image, to, interpolation=how),
    cv2.resize(mask * np.uint8(255), to, interpolation=how),
  )


def border_and_middle(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Fractions of lesion along the border of the frame and in its middle.

  Args:
    masks: [N, SIZE, SIZE] uint8, see `reduced`.

  Returns:
    Two arrays [N] of 0 to 1: the outer sixteenth on every side, and the inner three eighths.
  """
  width, inner = SIZE // 16, slice(SIZE * 5 // 16, SIZE * 11 // 16)
  frame = np.ones((SIZE, SIZE), bool)
  frame[width:-width, width:-width] = False
  return masks[:, frame].mean(1) / 255, masks[:, inner, inner].mean((1, 2)) / 255


def better_than_others(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
  """Compares each mask with masks of other photographs on its own photograph.

  Args:
    images: [N, SIZE, SIZE, 3] uint8, see `reduced`.
    masks: [N, SIZE, SIZE] uint8; N is at least 2.

  Returns:
    [N]: fraction of up to `OTHERS` other masks that separate the colours of the photograph worse
    than its own; equal ones count half. About 0.5 on average if masks and photographs were paired
    at random.
  """
  own = _explained(images, masks)
  chosen = np.random.default_rng(0).permutation(len(masks))[:OTHERS]
  theirs = _explained(images, masks[chosen], crossed=True)
  worse = _compare(own[:, None], theirs)
  is_other = chosen != np.arange(len(masks))[:, None]
  return (worse * is_other).sum(1) / is_other.sum(1)


def fits_better(images: np.ndarray, masks: np.ndarray) -> dict[str, float]:
  """Finds out whether masks would fit if they were turned or had another scale.

  Args:
    images: [N, SIZE, SIZE, 3] uint8, see `reduced`.
    masks: [N, SIZE, SIZE] uint8.

  Returns:
    For each of `REPAIRS` the fraction of the photographs whose colours the mask separates better
    after it.
  """
  own = _explained(images, masks)
  return {
    name: float((_compare(_explained(images, repair(masks)), own) == 1).mean())
    for name, repair in REPAIRS.items()
  }


def _compare(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """1 where `one` is larger, 0 where `other` is, 0.5 where they are about equal."""
  tolerance = _EQUAL * np.maximum(one, other)
  return 0.5 + 0.5 * (np.sign(one - other) * (np.abs(one - other) > tolerance))


def _explained(images: np.ndarray, masks: np.ndarray, *, crossed: bool = False) -> np.ndarray:
  """Fraction of the colour variance between inside and outside; 0 where either is even.

  [N] for the mask of each photograph or, crossed, [N, K] for each of K masks on each photograph.
  """
  lesions = masks.reshape(-1, SIZE * SIZE).astype(np.float32)
  lesions -= lesions.mean(1, keepdims=True)
  parts = []
  for start in range(0, len(images), _BLOCK):
    colours = images[start : start + _BLOCK].reshape(-1, SIZE * SIZE, 3).astype(np.float32)
    colours -= colours.mean(1, keepdims=True)
    total = (colours**2).sum((1, 2))
    if crossed:
      shared = np.tensordot(colours, lesions, (1, 1))  # [N, 3, K]
      most = total[:, None] * (lesions**2).sum(1)
    else:
      own = lesions[start : start + _BLOCK]
      shared = np.einsum("np,npc->nc", own, colours)
      most = total * (own**2).sum(1)
    parts.append((shared**2).sum(1) / np.maximum(most, 1.0))
  return np.concatenate(parts)
