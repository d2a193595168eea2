"""Decodes images of 16 bits per channel with OpenCV; Pillow keeps only 8 bits of their colours."""

from pathlib import Path

import cv2
import numpy as np
from PIL import ImageFile

from medlitenet_jax.system.errors import InputError

_BITS, _PHOTOMETRIC, _PLANES, _EXTRA_SAMPLES = 258, 262, 284, 338  # TIFF tags
_UNSPECIFIED, _PREMULTIPLIED = 0, 1  # values of the extra-samples tag; 2, or no tag: opacity
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
  """Whether channels have 16 bits; `image.mode` does not tell this for a colour PNG."""
  tags = getattr(image, "tag_v2", {})
  if image.format == "BMP":  # its 16 bits are those of all channels together
    return False
  return max(tags.get(_BITS, (8,))) == 16 or any(";16" in str(tile.args) for tile in image.tile)


def refuse_other_depths(path: Path, image: ImageFile.ImageFile) -> None:
  """Raises InputError for channels of 9 to 15 or over 16 bits, which Pillow would clip."""
  if image.mode.startswith(("I", "F")) and not is_wide(image):
    bits = 32 if image.mode in ("I", "F") else max(getattr(image, "tag_v2", {}).get(_BITS, (12,)))
    raise InputError(f"{path}: has {bits} bits a channel; convert it to 8 or 16 bits")


def decode(path: Path, image: ImageFile.ImageFile, content: bytes) -> np.ndarray:
  """Decodes an image with 16 bits per channel.

  Args:
    path: path of the file, for error messages.
    image: the file opened by Pillow, not decoded.
    content: content of the file.

  Returns:
    [H, W] or [H, W, 3 or 4] uint16, RGB or RGBA, rotated upright.

  Raises:
    InputError: if the file's storage layout is not supported.
    OSError: if the file is damaged.
  """
  tags, orientation = getattr(image, "tag_v2", {}), image.getexif().get(_ORIENTATION, 1)
  if tags.get(_PLANES, 1) == 2:
    raise InputError(
      f"{path}: 16-bit channels in separate planes are not supported; save it interleaved"
    )
  extra = tags.get(_EXTRA_SAMPLES, ())
  if _PREMULTIPLIED in extra:
    raise InputError(
      f"{path}: 16-bit colours multiplied by their opacity are not supported; save it without "
      "opacity"
    )
  image.load()  # raises for a truncated file, of which OpenCV would return a part
  pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None or pixels.dtype != np.uint16:
    raise InputError(f"{path}: this kind of 16-bit image is not supported; convert it to 8 bits")
  if pixels.ndim == 3:
    code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    pixels = cv2.cvtColor(pixels, code)
    if _UNSPECIFIED in extra:
      pixels = np.ascontiguousarray(pixels[..., :3])
  elif isinstance(clear := image.info.get("transparency"), int):  # the transparent level of a PNG
    opaque = np.where(pixels == clear, np.uint16(0), np.uint16(65535))
    pixels = cv2.merge([pixels, pixels, pixels, opaque])
  if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
    pixels = 65535 - pixels
  return (
    pixels if tags else _UPRIGHT.get(orientation, _UPRIGHT[1])(pixels)
  )  # OpenCV has already rotated a TIFF


def eight_bits(pixels: np.ndarray) -> np.ndarray:
  """Scales 16 bits to 8: 65535 becomes 255."""
  return cv2.convertScaleAbs(pixels, alpha=1 / 257)
