"""Resizes photographs and masks, in the same way for training and evaluation."""

import cv2
import numpy as np


def _resize(array: np.ndarray, height: int, width: int) -> np.ndarray:
  # OpenCV averages areas only if neither side grows, so sides are shrunk first, in a separate step.
  least = (min(height, array.shape[0]), min(width, array.shape[1]))
  if least != array.shape[:2]:
    array = cv2.resize(array, least[::-1], interpolation=cv2.INTER_AREA)
  if least != (height, width):
    array = cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR)
  return array


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes a photograph without keeping its proportions.

  A side that shrinks is averaged over areas, so that hairs and pores do not alias; a side that
  grows is interpolated linearly.

  Args:
    image: [H, W, 3] uint8.
    height: pixels of the result, at least 1.
    width: pixels of the result, at least 1.

  Returns:
    [height, width, 3] uint8; `image` itself if it already has this size.

  Raises:
    ValueError: if image is not [H, W, 3] uint8.
  """
  if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
    raise ValueError(f"image must be [H, W, 3] uint8, got {image.dtype} {list(image.shape)}")
  return _resize(image, height, width)


def mask_coverage(mask: np.ndarray, height: int, width: int) -> np.ndarray:
  """Measures how much of each pixel of a resized mask the lesion covers.

  Args:
    mask: [H, W] uint8; above 0 is lesion.
    height: pixels of the result, at least 1.
    width: pixels of the result, at least 1.

  Returns:
    [height, width] uint8 from 0, no lesion, to 255, all lesion; `binarise` turns it into a mask.

  Raises:
    ValueError: if mask is not [H, W] uint8.
  """
  if mask.ndim != 2 or mask.dtype != np.uint8:
    raise ValueError(f"mask must be [H, W] uint8, got {mask.dtype} {list(mask.shape)}")
  return _resize(cv2.threshold(mask, 0, 255, cv2.THRESH_BINARY)[1], height, width)


def binarise(coverage: np.ndarray) -> np.ndarray:
  """Marks a pixel as lesion if the lesion covers at least half of it.

  Args:
    coverage: uint8 of any shape, 0 to 255.

  Returns:
    0 or 1, uint8, shaped as `coverage`.
  """
  return (coverage >= 128).astype(np.uint8)


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes a mask like its photograph and keeps it binary.

  The lesion's share of each pixel is thresholded at one half. Nearest-neighbour sampling would move
  the border by up to half a pixel of the result relative to the photograph.

  Args:
    mask: [H, W] uint8; above 0 is lesion.
    height: pixels of the result, at least 1.
    width: pixels of the result, at least 1.

  Returns:
    [height, width] uint8, 0 or 1.

  Raises:
    ValueError: if mask is not [H, W] uint8.
  """
  return binarise(mask_coverage(mask, height, width))
