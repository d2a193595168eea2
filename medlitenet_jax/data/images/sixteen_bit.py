"""Images of 16 bits a channel; Pillow keeps only the upper 8 of colours, so OpenCV decodes them."""

from pathlib import Path

import cv2
import numpy as np
from PIL import ImageFile

from medlitenet_jax.system.errors import InputError

_BITS, _PHOTOMETRIC, _PLANES, _EXTRA_SAMPLES = 258, 262, 284, 338  # TIFF tags
_ANYTHING, _PREMULTIPLIED = 0, 1  # values of the last; 2, or none, is opacity
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: np.rot90(a, 1),
}


def is_wide(image: ImageFile.ImageFile) -> bool:
  """Whether channels have 16 bits; a PNG of colours has the mode of one of 8 bits."""
  tags = getattr(image, "tag_v2", {})
  if image.format == "BMP":  # whose 16 bits are those of all channels together
    return False
  return max(tags.get(_BITS, (8,))) == 16 or any(";16" in str(tile.args) for tile in image.tile)


def refuse_other_depths(path: Path, image: ImageFile.ImageFile) -> None:
  """Raises InputError if channels have neither up to 8 bits nor 16; Pillow would clip them."""
  if image.mode.startswith(("I", "F")) and not is_wide(image):
    bits = 32 if image.mode in ("I", "F") else max(getattr(image, "tag_v2", {}).get(_BITS, (12,)))
    raise InputError(f"{path}: has {bits} bits a channel; convert it to 8 or 16 bits")


def decode(path: Path, image: ImageFile.ImageFile, content: bytes) -> np.ndarray:
  """Decodes an image of 16 bits a channel.

  Args:
    path: of the file, for the refusal.
    image: opened by Pillow, not decoded.
    content: of the file.

  Returns:
    [H, W] or [H, W, 3 or 4] uint16, RGB or RGBA, turned upright.

  Raises:
    InputError: if the file is stored in a way that is not read.
    OSError: if it is damaged.
  """
  tags, orientation = getattr(image, "tag_v2", {}), image.getexif().get(_ORIENTATION, 1)
  if tags.get(_PLANES, 1) == 2:
    raise InputError(
      f"{path}: stores 16-bit channels apart, which is not read; save it interleaved"
    )
  extra = tags.get(_EXTRA_SAMPLES, ())
  if _PREMULTIPLIED in extra:
    raise InputError(
      f"{path}: 16-bit colours multiplied by their opacity are not read; save it without opacity"
    )
  image.load()  # first, for OpenCV hands out what it has of a file that is cut off
  pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None or pixels.dtype != np.uint16:
    raise InputError(f"{path}: 16 bits a channel in a form that is not read; convert it to 8 bits")
  if pixels.ndim == 3:
    code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    pixels = cv2.cvtColor(pixels, code)
    if _ANYTHING in extra:
      pixels = np.ascontiguousarray(pixels[..., :3])
  elif isinstance(clear := image.info.get("transparency"), int):  # one grey level, in a PNG
    opaque = np.where(pixels == clear, np.uint16(0), np.uint16(65535))
    pixels = cv2.merge([pixels, pixels, pixels, opaque])
  if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
    pixels = 65535 - pixels
  return (
    pixels if tags else _UPRIGHT.get(orientation, _UPRIGHT[1])(pixels)
  )  # OpenCV turns a TIFF itself


def eight_bits(pixels: np.ndarray) -> np.ndarray:
  """Scales 16 bits to 8: 65535 becomes 255."""
  return cv2.convertScaleAbs(pixels, alpha=1 / 257)
