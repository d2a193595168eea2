"""Reduces the photographs of a data set to a working size, once, on all cores."""

import concurrent.futures
import dataclasses
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from medlitenet_jax.data.images.image_files import (
  decode_image,
  decode_mask,
  encode_mask,
  is_upright_jpeg,
)
from medlitenet_jax.data.images.resize import resize_image, resize_mask
from medlitenet_jax.data.public.archives import Reader
from medlitenet_jax.system.devices import available_cores
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file

JPEG_QUALITY = 95  # without chroma subsampling, because the network depends on the border's colour


@dataclasses.dataclass(frozen=True)
class RawCase:
  """A photograph and its mask as published.

  Attributes:
    case_id: name of the case.
    image: reads the photograph's file.
    mask: reads the mask's file.
  """

  case_id: str
  image: Reader
  mask: Reader


@dataclasses.dataclass(frozen=True)
class ConvertedCase:
  """A case at its working size; each picture is the content of a file.

  Attributes:
    image: JPEG at the working size; the published file if that is not larger.
    mask: PNG at the size of `image`, 0 and 255.
    native_mask: PNG at the photograph's original size, 0 and 255.
  """

  image: bytes
  mask: bytes
  native_mask: bytes


def convert_case(
  case_id: str, image_file: bytes, mask_file: bytes, short_side: int
) -> ConvertedCase:
  """Reduces one case.

  Args:
    case_id: name of the case, for errors.
    image_file: content of the photograph's file.
    mask_file: content of the mask's file.
    short_side: shorter side of the result in pixels; smaller photographs are not enlarged.

  Returns:
    The case at its working size.

  Raises:
    InputError: if a file is not an image, the mask's values are ambiguous, or the sizes differ.
  """
  name = Path(case_id)
  image, native = decode_image(image_file, name), decode_mask(mask_file, name)
  if image.shape[:2] != native.shape:
    raise InputError(
      f"{case_id}: mask is {native.shape[0]}x{native.shape[1]} but the photograph is "
      f"{image.shape[0]}x{image.shape[1]} (height x width); fetch both again"
    )
  scale = short_side / min(native.shape)
  if scale < 1:
    height, width = (max(1, round(side * scale)) for side in native.shape)
    image, mask = resize_image(image, height, width), resize_mask(native, height, width)
  else:
    mask = native
  whole = scale >= 1 and is_upright_jpeg(image_file)
  return ConvertedCase(
    image_file if whole else _encode_jpeg(image), encode_mask(mask), encode_mask(native)
  )


def _encode_jpeg(image: np.ndarray) -> bytes:
  sampling = int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
  options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
  return cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes()


def convert_all(cases: Sequence[RawCase], short_side: int, folder: Path, title: str) -> None:
  """Reduces all cases into a folder; cases that an earlier call finished are skipped.

  Args:
    cases: the cases to reduce.
    short_side: see `convert_case`.
    folder: receives one file per case, which `load_converted` reads.
    title: title of the progress bar.

  Raises:
    InputError: after all other cases are done, if `convert_case` refused some; names the first.
  """
  refused = []
  folder.mkdir(parents=True, exist_ok=True)
  with concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
    futures = [pool.submit(_convert_into, folder, case, short_side) for case in cases]
    try:
      done = concurrent.futures.as_completed(futures)
      for future in tqdm(done, total=len(cases), desc=title, unit="case", dynamic_ncols=True):
        try:
          future.result()
        except InputError as error:
          refused.append(str(error))
          tqdm.write(str(error))
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  if refused:
    raise InputError(
      f"{len(refused)} of {len(cases)} cases cannot be used (listed above); the others are kept in "
      f"{folder} for the next call. First: {min(refused)}"
    )


def _convert_into(folder: Path, case: RawCase, short_side: int) -> None:
  image_file, mask_file = case.image(), case.mask()
  source = [short_side, zlib.crc32(image_file), zlib.crc32(mask_file)]
  path = folder / f"{case.case_id}.npz"
  if _source(path) == source:
    return
  converted = convert_case(case.case_id, image_file, mask_file, short_side)
  buffer = io.BytesIO()
  files = {k: np.frombuffer(v, np.uint8) for k, v in dataclasses.asdict(converted).items()}
  np.savez(buffer, allow_pickle=False, source=np.array(source), **files)
  replace_file(path, buffer.getvalue())  # atomic: a file of this name is complete


def _source(path: Path) -> list[int] | None:
  """The size and checksums that a case was converted from; None if missing or damaged."""
  try:
    with np.load(path, allow_pickle=False) as saved:
      files = [saved[field.name] for field in dataclasses.fields(ConvertedCase)]
      return saved["source"].tolist() if all(len(file) for file in files) else None
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
    return None


def load_converted(folder: Path, case_id: str) -> ConvertedCase:
  """Reads a case that `convert_all` wrote."""
  with np.load(folder / f"{case_id}.npz", allow_pickle=False) as saved:
    names = (field.name for field in dataclasses.fields(ConvertedCase))
    return ConvertedCase(**{name: saved[name].tobytes() for name in names})
