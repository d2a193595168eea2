"""Reads photographs and masks from files, and writes masks."""

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from medlitenet_jax.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 150_000_000  # of a photograph; a small file can claim to be larger than the memory
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 lie on their side
_WIDE_MODES = ("I;16", "I;16B", "I", "F")
Image.MAX_IMAGE_PIXELS = None  # Pillow only warns at its own limit; `_refuse_huge` holds to ours


def find_images(folder: Path) -> dict[str, Path]:
  """Finds the images of a folder; its own folders are not looked into.

  Args:
    folder: to look in.

  Returns:
    Path of each by name without ending, sorted.

  Raises:
    InputError: if there is none, or two have one name.
  """
  found: dict[str, Path] = {}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() in IMAGE_SUFFIXES:
      if path.stem in found:
        raise InputError(f"{path}: {found[path.stem].name} has the same name; keep one of the two")
      found[path.stem] = path
  if not found:
    raise InputError(
      f"{folder}: no image in it; put files there that end in one of {', '.join(IMAGE_SUFFIXES)}"
    )
  return found


@contextlib.contextmanager
def _refusing(path: Path):
  """Turns what a broken file raises into one line that names it."""
  try:
    yield
  except (OSError, ValueError, SyntaxError) as error:
    reason = str(error).replace(repr(str(path)), "the file")
    raise InputError(f"{path}: not a readable image ({reason}); repair or remove it") from error


def _refuse_huge(path: Path, image: Image.Image) -> None:
  if image.width * image.height > MAX_PIXELS:
    raise InputError(
      f"{path}: {image.width}x{image.height} pixels are more than the {MAX_PIXELS:,} that are "
      "read; make it smaller"
    )


def image_size(path: Path) -> tuple[int, int]:
  """Reads height and width, as a person sees the photograph, from the head of a file.

  Args:
    path: of an image.

  Returns:
    (height, width) in pixels.

  Raises:
    InputError: if the file is missing or is not an image.
  """
  with _refusing(path), Image.open(path) as image:
    _refuse_huge(path, image)
    width, height = image.size
    # Asking a PNG that has none for its EXIF data would decode the whole picture.
    turned = image.format != "PNG" or "exif" in image.info
    turned = turned and image.getexif().get(_ORIENTATION, 1) >= 5
    return (width, height) if turned else (height, width)


def _read(path: Path) -> bytes:
  with _refusing(path):
    return path.read_bytes()


def _decode(data: bytes, path: Path, mode: str) -> np.ndarray:
  with _refusing(path), Image.open(io.BytesIO(data)) as image:
    if image.mode in _WIDE_MODES:
      raise InputError(f"{path}: has more than 8 bits a channel; convert it to 8 bits")
    _refuse_huge(path, image)
    ImageOps.exif_transpose(image, in_place=True)  # copies of a large photograph add up
    # The colours of a palette say nothing in a mask: its indices do.
    as_it_is = image.mode == mode or (mode == "L" and image.mode == "P")
    return np.asarray(image if as_it_is else image.convert(mode))


def read_image(path: Path) -> np.ndarray:
  """Decodes a photograph.

  Args:
    path: of a JPEG, PNG, BMP or TIFF file.

  Returns:
    [H, W, 3] uint8 RGB, turned upright as its EXIF orientation says.

  Raises:
    InputError: if the file is missing, truncated, not an image or of more than 8 bits a channel.
  """
  return decode_image(_read(path), path)


def decode_image(data: bytes, path: Path) -> np.ndarray:
  """Decodes a photograph that was read already, as `read_image` does; `path` is for errors."""
  return _decode(data, path, "RGB")


def read_mask(path: Path) -> np.ndarray:
  """Decodes a mask.

  Args:
    path: of a file with the values 0 and 255, give or take what JPEG does to them, or 0 and 1.

  Returns:
    [H, W] uint8, 0 or 1.

  Raises:
    InputError: if the file is missing, truncated, not an image, or has other values.
  """
  return decode_mask(_read(path), path)


def decode_mask(data: bytes, path: Path) -> np.ndarray:
  """Decodes a mask that was read already, as `read_mask` does; `path` is for errors."""
  grey = _decode(data, path, "L")
  if grey.max() <= 1:
    return grey
  # A few values between are the ringing of JPEG, or a smoothed border; an area of them is a label.
  between = (grey > 32) & (grey < 223)
  if grey.max() < 223 or np.count_nonzero(between) > 0.02 * grey.size:
    label = grey[between][0] if between.any() else grey.max()
    raise InputError(
      f"{path}: a mask has the values 0 and 255, or 0 and 1, but this one has {label}; write "
      "lesion as 255 and the rest as 0"
    )
  return (grey > 128).astype(np.uint8)


def is_upright_jpeg(data: bytes) -> bool:
  """Whether a file is a JPEG of colours that no EXIF orientation turns."""
  with contextlib.suppress(OSError, ValueError, SyntaxError), Image.open(io.BytesIO(data)) as image:
    turned = image.getexif().get(_ORIENTATION, 1) != 1
    return image.format == "JPEG" and image.mode == "RGB" and not turned
  return False


def encode_mask(mask: np.ndarray) -> bytes:
  """Encodes a mask as the ISIC challenge takes it: single-channel PNG, 0 and 255.

  Args:
    mask: [H, W] uint8, 0 or 1.

  Returns:
    Content of a file.
  """
  return cv2.imencode(".png", mask * np.uint8(255))[1].tobytes()


def write_mask(path: Path, mask: np.ndarray) -> None:
  """Writes a mask, [H, W] uint8, 0 or 1, as `encode_mask` does, to a path that ends in .png."""
  path.write_bytes(encode_mask(mask))


def read_grey(path: Path) -> np.ndarray:
  """Reads a map that `write_grey` wrote: [H, W] float32, 0 to 1 in steps of 1/255."""
  return _decode(_read(path), path, "L").astype(np.float32) / 255


def write_grey(path: Path, values: np.ndarray) -> None:
  """Writes a map as a grey picture.

  Args:
    path: ends in .png; its folder exists.
    values: [H, W] float, 0 (black) to 1 (white).
  """
  grey = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
  path.write_bytes(cv2.imencode(".png", grey)[1].tobytes())


def write_color(path: Path, image: np.ndarray) -> None:
  """Writes a picture.

  Args:
    path: ends in .png; its folder exists.
    image: [H, W, 3] uint8 RGB.
  """
  encoded = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
  path.write_bytes(encoded.tobytes())
