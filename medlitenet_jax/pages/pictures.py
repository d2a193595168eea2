"""Pictures in pages: their size and their bytes. They need no Matplotlib."""

import cv2
import numpy as np


def shrink_to(height: int, width: int, longest: int) -> tuple[int, int]:
  """(height, width) in pixels of a picture whose longer side is reduced to at most `longest`."""
  scale = min(1.0, longest / max(height, width))
  return max(1, round(height * scale)), max(1, round(width * scale))


def encode_jpeg(image: np.ndarray) -> bytes:
  """Encodes a picture as JPEG that keeps thin coloured lines sharp.

  Args:
    image: [H, W, 3] uint8 RGB.

  Returns:
    Content of the file; without chroma subsampling, which would blur the lines.
  """
  options = [cv2.IMWRITE_JPEG_QUALITY, 88]
  options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
  return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
