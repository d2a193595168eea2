"""Interprets the values of a mask as skin or lesion, or raises an error if they are ambiguous."""

from pathlib import Path

import cv2
import numpy as np

from medlitenet_jax.system.errors import InputError

SKIN_UP_TO, LESION_FROM = 32, 223  # of 255; JPEG changes pure values by up to about this much
# Values between the two come from JPEG ringing or a smoothed border. If more than this fraction of
# the mask has them, they are a label.
MAX_BETWEEN = 0.02
# They are a label too if most of them have one value and it covers more than these fractions of the
# frame and of the lesion. Ringing has many values, and a smoothed border of one value reaches these
# fractions only in frames under 100 pixels.
LABEL_OF_FRAME, LABEL_OF_LESION = 0.005, 0.25
COLOR_SPREAD = 64  # levels by which a lesion's pixels may differ from its colour, blurred by JPEG


class UnclearMaskError(InputError):
  """A mask whose values are ambiguous."""


def binary_mask(path: Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> np.ndarray:
  """Converts the values of a mask to 0 (skin) and 1 (lesion).

  Args:
    path: path of the mask, for error messages.
    pixels: [H, W] or [H, W, 3 or 4] uint8, grey, RGB or RGBA; indices where there is a palette.
    palette: [N, 3] uint8 colours of the indices, or None.

  Returns:
    [H, W] uint8, 0 or 1.

  Raises:
    UnclearMaskError: if a value is ambiguous; the message says which.
  """
  if palette is not None:
    return _from_palette(path, pixels, palette)
  if pixels.ndim == 2:
    return _from_grey(path, pixels)
  if pixels.shape[2] == 4:
    pixels = _from_transparency(path, pixels)
  return _from_colors(path, pixels)


def _refuse(path: Path, found: str) -> UnclearMaskError:
  return UnclearMaskError(
    f"{path}: a mask has the values 0 and 255, or 0 and 1, but this one has {found}; write lesion "
    "as 255 and the rest as 0"
  )


def eight_bit_values(path: Path, pixels: np.ndarray) -> np.ndarray:
  """Converts a 16-bit mask to 8 bits: 65535 becomes 255; 0 and 1, or 0 and 255, stay.

  Args:
    path: path of the mask, for error messages.
    pixels: [H, W] or [H, W, 3 or 4] uint16, grey, RGB or RGBA.

  Returns:
    uint8 of the same shape.

  Raises:
    UnclearMaskError: if it has other values; dividing would turn small labels into skin.
  """
  colors = pixels if pixels.ndim == 2 else pixels[..., :3]
  most = int(colors.max())
  if 255 < most < 257 * LESION_FROM:
    raise UnclearMaskError(
      f"{path}: a mask of 16 bits has the values 0 and 65535, 0 and 255, or 0 and 1, but this one "
      f"goes up to {most}; write lesion as 65535 and the rest as 0"
    )
  narrow = cv2.convertScaleAbs(pixels, alpha=1 / 257)
  if most <= 255:
    if pixels.ndim == 2:
      return pixels.astype(np.uint8)
    narrow[..., :3] = colors
  return narrow


def _from_grey(path: Path, grey: np.ndarray, kind: str = "") -> np.ndarray:
  if grey.max() <= 1:
    return grey
  counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
  between = counts[SKIN_UP_TO + 1 : LESION_FROM]
  if not counts[LESION_FROM:].any():
    raise _refuse(path, f"{kind}{grey.max()}")
  lesion = float(counts[LESION_FROM:].sum())
  if between.sum() > MAX_BETWEEN * grey.size or _is_label(between, lesion, grey.size):
    raise _refuse(path, f"{kind}{SKIN_UP_TO + 1 + between.argmax()}")
  return (grey > 128).astype(np.uint8)


def _is_label(counts: np.ndarray, lesion: float, size: int) -> bool:
  """Whether one of these values is so frequent that it must be a label of its own."""
  most = counts.max()
  return bool(
    most > counts.sum() / 2 and most > LABEL_OF_FRAME * size and most > LABEL_OF_LESION * lesion
  )


def _from_palette(path: Path, indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """Black is skin and white lesion; other colours only distinguish labels, so the indices count."""
  used = np.flatnonzero(cv2.calcHist([indices], [0], None, [256], [0, 256]))
  colors = [tuple(map(int, palette[i])) if i < len(palette) else None for i in used]
  if set(colors) <= {(0, 0, 0), (255, 255, 255)}:
    lesion = np.zeros(256, np.uint8)
    lesion[used] = [color == (255, 255, 255) for color in colors]
    return cv2.LUT(indices, lesion)
  if used[0] == 0 and colors[0] != (0, 0, 0) and (0, 0, 0) in colors:
    raise _refuse(path, f"a palette whose index 0 is {colors[0]} and another is black")
  return _from_grey(path, indices, "index ")


def _from_transparency(path: Path, pixels: np.ndarray) -> np.ndarray:
  """Puts the mask on a black background; a constant transparency is ignored."""
  alpha, colors = pixels[..., 3], cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
  if alpha.min() == alpha.max():
    return colors
  for channel in range(3):
    laid = cv2.multiply(cv2.extractChannel(colors, channel), alpha, scale=1 / 255)
    cv2.insertChannel(laid, colors, channel)
  if colors.max() <= SKIN_UP_TO:
    raise _refuse(path, "only black on a transparent background")
  return colors


def _from_colors(path: Path, pixels: np.ndarray) -> np.ndarray:
  """Black is skin and any one strong colour is lesion."""
  strongest = cv2.max(cv2.max(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
  mask = _from_grey(path, strongest)
  if not mask.any():
    return mask
  for channel in range(3):
    counts = cv2.calcHist([pixels], [channel], mask, [256], [0, 256]).ravel()
    typical = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    off = counts.copy()
    off[max(0, typical - COLOR_SPREAD) : typical + COLOR_SPREAD + 1] = 0
    if off.sum() > MAX_BETWEEN * mask.size or _is_label(off, float(counts.sum()), mask.size):
      raise _refuse(
        path,
        f"more than one colour for lesion, {typical} and {off.argmax()} in "
        f"{('red', 'green', 'blue')[channel]}",
      )
  return mask
