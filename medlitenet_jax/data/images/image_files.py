"""Reads photographs and masks from files, and writes masks."""

import contextlib
import functools
import io
import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from medlitenet_jax.data.images import mask_values, sixteen_bit
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_bytes, replace_file

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
# Limits on pixels, because a small file can claim a size larger than the memory; decoding within
# them takes under 2 GiB. "Deep" is with a fourth channel or transparency, "wide" is 16 bits per
# channel, which are decoded twice.
MAX_PIXELS, MAX_DEEP_PIXELS, MAX_WIDE_PIXELS = 120_000_000, 90_000_000, 50_000_000
# Pillow supports many more formats, some by calling other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height
_WIDTH, _HEIGHT = 256, 257  # TIFF tags
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns; `_refuse_huge` enforces ours


def image_names(folder: Path) -> dict[str, list[Path]]:
  """Finds the images of a folder, without subfolders and hidden files.

  Args:
    folder: folder to search.

  Returns:
    {name without suffix: paths}, sorted; more than one path if only the suffixes differ. Names are
    normalised to NFC, because some systems write an umlaut as two characters and tables as one.

  Raises:
    InputError: see `refuse_name`.
  """
  found: dict[str, list[Path]] = {}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
      refuse_name(path)
      found.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
  return found


def refuse_name(path: Path) -> None:
  """Raises InputError if a file name is not UTF-8 or has control characters."""
  try:
    path.name.encode()
  except UnicodeEncodeError as error:
    raise InputError(f"{path.parent}: rename {path.name!a}; its name is not UTF-8") from error
  if any(unicodedata.category(letter) == "Cc" for letter in path.name):
    raise InputError(f"{path.parent}: rename {path.name!a}; its name has control characters")


def same_name(first: Path, second: Path) -> str:
  """Error message for two images that differ only in the suffix."""
  return f"{second}: {first.name} has the same name; keep one of the two"


def no_image(folder: Path) -> str:
  """Error message for a folder without images."""
  return f"{folder}: no image in it; put files there that end in one of {', '.join(IMAGE_SUFFIXES)}"


@contextlib.contextmanager
def _refusing(path: Path):
  """Turns the exceptions of a broken file into an InputError that names it."""
  try:
    yield
  except InputError:
    raise
  except MemoryError as error:
    raise InputError(
      f"{path}: there is not enough memory to read it; set fewer config.data.num_threads or "
      "config.data.cache_gib=0"
    ) from error
  except UnidentifiedImageError as error:
    raise InputError(f"{path}: not in a supported format; repair or remove it") from error
  except Exception as error:  # Pillow raises many kinds of exceptions for a broken header
    reason = (str(error) or type(error).__name__).replace(repr(str(path)), "the file")
    raise InputError(f"{path}: not a readable image ({reason}); repair or remove it") from error


def _refuse_huge(path: Path, image: ImageFile.ImageFile) -> None:
  deep = image.has_transparency_data or len(image.getbands()) > 3
  most = MAX_DEEP_PIXELS if deep else MAX_PIXELS
  if sixteen_bit.is_wide(image):
    most = MAX_WIDE_PIXELS
  if image.width * image.height > most:
    raise InputError(
      f"{path}: {image.width}x{image.height} pixels are more than the limit of {most:,}; make it "
      "smaller"
    )


def image_size(path: Path) -> tuple[int, int]:
  """Reads height and width from the header of an image file, after EXIF rotation.

  Args:
    path: path of an image.

  Returns:
    (height, width) in pixels.

  Raises:
    InputError: if the file is missing or is not an image.
  """
  if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
    read_content(path)
  with _refusing(path), Image.open(path, formats=_FORMATS) as image:
    _refuse_huge(path, image)
    tags = getattr(image, "tag_v2", None)  # TIFF: some versions of Pillow have rotated image.size
    width, height = (tags[_WIDTH], tags[_HEIGHT]) if tags else image.size
    # For a PNG without EXIF data, getexif() would decode the whole picture.
    turned = image.format != "PNG" or "exif" in image.info
    turned = turned and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def read_content(path: Path) -> bytes:
  """Reads an image file's bytes; raises InputError if it cannot be read or is too large."""
  with _refusing(path):
    return read_bytes(path)


@contextlib.contextmanager
def _opened(content: bytes, path: Path) -> Iterator[ImageFile.ImageFile]:
  """Opens an image from the content of its file without decoding it; `path` is for errors."""
  with _refusing(path), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
    _refuse_huge(path, image)
    sixteen_bit.refuse_other_depths(path, image)
    if image.format == "TIFF" and _has_further_pages(content):
      _warn_of_further_pages(path)
    yield image


def _has_further_pages(content: bytes) -> bool:
  """Whether a TIFF has a second page that can be opened."""
  with contextlib.suppress(Exception), Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
    image.seek(1)
    return True
  return False


@functools.cache  # once per file
def _warn_of_further_pages(path: Path) -> None:
  logger.warning("%s: only its first page is read", path)


def _over(image: Image.Image, color: str) -> Image.Image:
  """Puts an image with transparency on a background of one colour."""
  background = Image.new("RGB", image.size, color)
  background.paste(image, mask=image.getchannel("A"))
  return background


def read_image(path: Path) -> np.ndarray:
  """Decodes a photograph.

  Args:
    path: path of a JPEG, PNG, BMP or TIFF file: grey, RGB, CMYK or with a palette, 8 or 16 bits per
      channel.

  Returns:
    [H, W, 3] uint8 RGB, rotated upright by its EXIF orientation; transparent areas are white.

  Raises:
    InputError: if the file is missing, truncated, not an image or has 32 bits per channel.
  """
  return decode_image(read_content(path), path)


def decode_image(content: bytes, path: Path) -> np.ndarray:
  """Like `read_image`, from the content of the file; `path` is for errors."""
  with _opened(content, path) as image:
    if sixteen_bit.is_wide(image):
      pixels = sixteen_bit.eight_bits(sixteen_bit.decode(path, image, content))
      if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
      return pixels if pixels.shape[2] == 3 else np.asarray(_over(Image.fromarray(pixels), "white"))
    ImageOps.exif_transpose(image, in_place=True)  # saves a copy of a large photograph
    if image.has_transparency_data:
      rgba = image if image.mode == "RGBA" else image.convert("RGBA")
      return np.asarray(_over(rgba, "white"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
  """Decodes a mask.

  Args:
    path: path of a file with the values 0 and 255 (JPEG noise allowed), or 0 and 1, or 0 and 65535
      in 16 bits, or black for skin and one strong colour for lesion. If a palette has other colours
      than black and white, its indices are the values. Transparent pixels are skin.

  Returns:
    [H, W] uint8, 0 or 1.

  Raises:
    UnclearMaskError: if the mask has other values.
    InputError: if the file is missing, truncated or not an image.
  """
  return decode_mask(read_content(path), path)


def decode_mask(content: bytes, path: Path) -> np.ndarray:
  """Like `read_mask`, from the content of the file; `path` is for errors."""
  with _opened(content, path) as image:
    if sixteen_bit.is_wide(image):
      wide, palette = sixteen_bit.decode(path, image, content), None
      pixels = mask_values.eight_bit_values(path, wide)
    else:
      ImageOps.exif_transpose(image, in_place=True)
      pixels, palette = _mask_pixels(image)
  return mask_values.binary_mask(path, pixels, palette)


def _mask_pixels(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
  """Grey, RGB or RGBA values of a mask and None, or its indices and palette, [N, 3] uint8."""
  if image.has_transparency_data:
    return np.asarray(image if image.mode == "RGBA" else image.convert("RGBA")), None
  if image.mode == "P":
    return np.asarray(image), np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
  if image.mode in ("L", "1"):
    return np.asarray(image if image.mode == "L" else image.convert("L")), None
  return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), None


def is_upright_jpeg(data: bytes) -> bool:
  """Whether a file is an RGB JPEG that its EXIF orientation does not rotate."""
  with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
    turned = image.getexif().get(_ORIENTATION, 1) != 1
    return image.format == "JPEG" and image.mode == "RGB" and not turned
  return False


def encode_mask(mask: np.ndarray) -> bytes:
  """Encodes a mask in the ISIC challenge's format: single-channel PNG, 0 and 255.

  Args:
    mask: [H, W] uint8, 0 or 1.

  Returns:
    Content of the file.
  """
  return cv2.imencode(".png", mask * np.uint8(255))[1].tobytes()


def write_mask(path: Path, mask: np.ndarray) -> None:
  """Writes a mask, [H, W] uint8, 0 or 1, as `encode_mask` does, to a path that ends in .png."""
  replace_file(path, encode_mask(mask))


def read_grey(path: Path) -> np.ndarray:
  """Reads a map that `write_grey` wrote: [H, W] float32, 0 to 1 in steps of 1/255."""
  with _opened(read_content(path), path) as image:
    return np.asarray(image.convert("L"), np.float32) / 255


def write_grey(path: Path, values: np.ndarray) -> None:
  """Writes a map as a grey PNG.

  Args:
    path: must end in .png; its folder must exist.
    values: [H, W] float, 0 (black) to 1 (white).
  """
  grey = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
  replace_file(path, cv2.imencode(".png", grey)[1].tobytes())


def write_color(path: Path, image: np.ndarray) -> None:
  """Writes a colour PNG.

  Args:
    path: must end in .png; its folder must exist.
    image: [H, W, 3] uint8 RGB.
  """
  encoded = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
  replace_file(path, encoded.tobytes())
