"""Writes DICOM files as cameras and archives do."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import (
  DermoscopicPhotographyImageStorage,
  ExplicitVRLittleEndian,
  JPEGBaseline8Bit,
  generate_uid,
)


def dicom_file(pixels: np.ndarray, colors: str, *, jpeg: bool = False, **elements) -> bytes:
  """The content of a DICOM file.

  Args:
    pixels: [H, W] or [H, W, 3] uint8 or uint16; of colour, RGB.
    colors: the photometric interpretation that they are written in.
    jpeg: whether they are compressed.
    **elements: further elements, or other values of those that follow from the pixels.
  """
  dataset = Dataset()
  dataset.file_meta = FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
  dataset.SOPClassUID = DermoscopicPhotographyImageStorage
  dataset.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
  dataset.Rows, dataset.Columns = pixels.shape[:2]
  dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
  dataset.PhotometricInterpretation = colors
  if pixels.ndim == 3:
    dataset.PlanarConfiguration = 0
  bits = 8 * pixels.itemsize
  dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
  dataset.PixelRepresentation = 0
  for name, value in elements.items():
    setattr(dataset, name, value)
  if jpeg:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].is_undefined_length = True
  else:
    written = convert_color_space(pixels, "RGB", colors) if colors == "YBR_FULL" else pixels
    dataset.add_new("PixelData", "OB" if bits == 8 else "OW", written.tobytes())
  content = io.BytesIO()
  dataset.save_as(content, enforce_file_format=True)
  return content.getvalue()


def write_dicom(path: Path, pixels: np.ndarray, colors: str, **elements) -> None:
  """Writes `dicom_file`."""
  path.write_bytes(dicom_file(pixels, colors, **elements))
