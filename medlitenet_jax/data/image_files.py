"""Reads photographs and masks from files, and writes masks."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from medlitenet_jax.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 lie on their side


def _open(path: Path) -> Image.Image:
  try:
    return Image.open(io.BytesIO(path.read_bytes()))
  except OSError as error:
    raise InputError(f"{path}: not a readable image ({error}); repair or remove it") from error


def image_size(path: Path) -> tuple[int, int]:
  """Reads height and width, as a person sees the photograph, from the head of a file.

  Args:
    path: of an image.

  Returns:
    (height, width) in pixels.

  Raises:
    InputError: if the file is missing or is not an image.
  """
  try:
    with Image.open(path) as image:
      width, height = image.size
      return (width, height) if image.getexif().get(_ORIENTATION, 1) >= 5 else (height, width)
  except OSError as error:
    raise InputError(f"{path}: not a readable image ({error}); repair or remove it") from error


def _decode(path: Path, mode: str) -> np.ndarray:
  with _open(path) as image:
    try:
      return np.asarray(ImageOps.exif_transpose(image).convert(mode))
    except (OSError, ValueError) as error:
      raise InputError(f"{path}: cannot be decoded ({error}); repair or remove it") from error


def read_image(path: Path) -> np.ndarray:
  """Decodes a photograph.

  Args:
    path: of a JPEG, PNG, BMP or TIFF file.

  Returns:
    [H, W, 3] uint8 RGB, turned upright as its EXIF orientation says.

  Raises:
    InputError: if the file is missing, truncated or not an image.
  """
  return _decode(path, "RGB")


def read_mask(path: Path) -> np.ndarray:
  """Decodes a mask.

  Args:
    path: of a single-channel file with the values 0 and 255, or 0 and 1.

  Returns:
    [H, W] uint8, 0 or 1; grey values above 128 are lesion, as in the ISIC challenge's scorer.

  Raises:
    InputError: if the file is missing, truncated or not an image.
  """
  grey = _decode(path, "L")
  return (grey > (0 if grey.max() == 1 else 128)).astype(np.uint8)


def write_mask(path: Path, mask: np.ndarray) -> None:
  """Writes a mask as the ISIC challenge takes it: single-channel PNG, 0 and 255.

  Args:
    path: ends in .png; its folder exists.
    mask: [H, W] uint8, 0 or 1.
  """
  encoded = cv2.imencode(".png", mask * np.uint8(255))[1]
  path.write_bytes(encoded.tobytes())
