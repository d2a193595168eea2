"""HEIC pictures, which Pillow reads by the optional package pillow-heif."""

from pathlib import Path

from medlitenet_jax.system.errors import InputError

SUFFIXES = (".heic", ".heif")
# Brands at the beginning of a file of still pictures in HEVC.
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx")


def formats(content: bytes, path: Path) -> tuple[str, ...]:
  """What Pillow needs to know to read a HEIC file.

  Args:
    content: of the file, or its beginning.
    path: of the file, for errors.

  Returns:
    The format, which Pillow then knows, if the file is HEIC.

  Raises:
    InputError: if it is HEIC and pillow-heif is missing.
  """
  # AVIF has the brand mif1 too, and Pillow reads it by itself.
  if content[4:8] != b"ftyp" or content[8:12] not in _BRANDS or b"avif" in content[8:64]:
    return ()
  try:
    import pillow_heif
  except ImportError as error:
    raise InputError(
      f'{path}: HEIC needs the package pillow-heif; pip install "medlitenet_jax[heic]", or in a '
      "clone pip install pillow-heif"
    ) from error
  # Without what is not read: the small and further pictures beside the photograph.
  pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
  return ("HEIF",)
