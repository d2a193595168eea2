"""DICOM files, read by the optional package pydicom."""

import dataclasses
import functools
import io
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from medlitenet_jax.system.errors import InputError

if TYPE_CHECKING:
  from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
START = 132  # bytes by which a file is recognised
GREY = ("MONOCHROME1", "MONOCHROME2")
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # the last two of JPEG 2000
NOT_SQUARE = 0.01  # by which share the sides of a pixel may differ
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says of its picture.

  Attributes:
    height: in pixels.
    width: in pixels.
    is_wide: whether a channel takes more than 8 bits.
    mm_per_pixel: side of a pixel, or None if it is not stated.
  """

  height: int
  width: int
  is_wide: bool
  mm_per_pixel: float | None


def is_dicom(content: bytes) -> bool:
  """Whether a file, of which at least the first `START` bytes are given, is DICOM."""
  return content[START - 4 : START] == b"DICM"


def read_header(file: BinaryIO, path: Path) -> Header:
  """Reads what a file says of its picture, without decoding it.

  Args:
    file: the file, open at any place.
    path: of the file, for errors.

  Returns:
    The header.

  Raises:
    InputError: if the picture is of a kind that is not read, or pydicom is missing.
    Exception: of many kinds if the file is damaged.
  """
  return _header(_read(file, path, stop_before_pixels=True), path)


def decode(content: bytes, path: Path) -> tuple[np.ndarray, int]:
  """Decodes the picture of a file.

  Args:
    content: of the file.
    path: of the file, for errors.

  Returns:
    pixels: [H, W] or [H, W, 3] uint8 or uint16, grey, or RGB whatever the file has. Windows and
      other tables of grey levels are not applied.
    most: the value of white; 255 for 8 bits.

  Raises:
    InputError: as `read_header`, and if the compression is not read.
    Exception: of many kinds if the file is damaged.
  """
  dataset = _read(io.BytesIO(content), path)
  header = _header(dataset, path)
  if "PixelData" not in dataset:
    raise InputError(f"{path}: has no picture in it; remove it")
  from pydicom.pixels import get_decoder, pixel_array

  syntax = dataset.file_meta.TransferSyntaxUID
  if syntax.is_compressed:
    if not get_decoder(syntax).is_available:
      raise InputError(
        f"{path}: its compression ({syntax.name}) is not read; save it uncompressed or as JPEG"
      )
    _refuse_other_size_within(dataset, header, path)
  pixels = pixel_array(dataset)
  most = 2**dataset.BitsStored - 1
  if dataset.PhotometricInterpretation == "MONOCHROME1":  # 0 is white
    pixels = pixels.dtype.type(most) - pixels
  return pixels, most


def _read(file: BinaryIO, path: Path, **options: Any) -> "Dataset":
  """The elements of a file; with the option stop_before_pixels those before the picture."""
  try:
    import pydicom
    from pydicom.filereader import _read_file_meta_info, read_preamble
  except ImportError as error:
    raise InputError(
      f'{path}: DICOM needs the package pydicom; pip install "medlitenet_jax[dicom]", or in a '
      "clone pip install pydicom"
    ) from error
  _silence()
  file.seek(0)
  read_preamble(file, force=False)
  if _read_file_meta_info(file).get("TransferSyntaxUID") == _DEFLATED:
    # It would be inflated to whatever size, to read anything of it.
    raise InputError(f"{path}: is deflated as a whole, which is not read; save it as JPEG")
  file.seek(0)
  return pydicom.dcmread(file, **options)


@functools.cache  # once
def _silence() -> None:
  """Keeps pydicom from logging the traceback of what it raises, and small faults of headers."""
  logging.getLogger("pydicom").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", module="pydicom")


def _header(dataset: "Dataset", path: Path) -> Header:
  if "Rows" not in dataset or "Columns" not in dataset:
    raise InputError(f"{path}: has no picture in it; remove it")
  if int(dataset.get("NumberOfFrames") or 1) > 1:
    raise InputError(
      f"{path}: has {dataset.NumberOfFrames} frames; save the one that is meant as a file by itself"
    )
  colors = dataset.PhotometricInterpretation
  channels = 1 if colors in GREY else 3 if colors in COLORS else 0
  if not channels or dataset.SamplesPerPixel != channels:
    kind = f"{dataset.SamplesPerPixel} channels of {colors}"
    raise InputError(f"{path}: has {kind}, which is not read; save it as RGB")
  if dataset.get("PixelRepresentation"):
    raise InputError(f"{path}: has values below 0, so it is no photograph; leave it out")
  if not 1 <= dataset.BitsStored <= 16:
    raise InputError(f"{path}: has {dataset.BitsStored} bits a channel; convert it to 8 or 16 bits")
  return Header(
    height=int(dataset.Rows),
    width=int(dataset.Columns),
    is_wide=dataset.BitsAllocated > 8,
    mm_per_pixel=_mm_per_pixel(dataset, path),
  )


def _mm_per_pixel(dataset: "Dataset", path: Path) -> float | None:
  """Of the two sides that PixelSpacing has, [mm down, mm across]; other elements do not count.

  ImagerPixelSpacing and NominalScannedPixelSpacing are lengths on the detector or the film.
  """
  stated = dataset.get("PixelSpacing")
  spacing = [float(side) for side in stated] if isinstance(stated, Sequence) else []
  if len(spacing) != 2 or not all(0 < side < math.inf for side in spacing):
    return None
  down, across = spacing
  if abs(down - across) > NOT_SQUARE * max(spacing):
    raise InputError(
      f"{path}: its pixels are {down:g} x {across:g} mm; resample it so that they are square"
    )
  return math.sqrt(down * across)


def _refuse_other_size_within(dataset: "Dataset", header: Header, path: Path) -> None:
  """Refuses a compressed picture of another size than the header says, before it is decoded."""
  from pydicom.encaps import get_frame

  frame = io.BytesIO(get_frame(dataset.PixelData, 0, number_of_frames=1))
  try:
    with Image.open(frame, formats=("JPEG", "JPEG2000")) as image:
      size = image.height, image.width
  except OSError:  # of a compression that pydicom decodes by the header, or not at all
    return
  if size != (header.height, header.width):
    raise InputError(
      f"{path}: holds a picture of {size[0]}x{size[1]} but says {header.height}x{header.width} "
      "(height x width); repair or remove it"
    )
