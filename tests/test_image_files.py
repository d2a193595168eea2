"""Files: photographs come out upright and RGB, masks 0 or 1, and broken files are named."""

import cv2
import numpy as np
import pytest
from PIL import Image

from medlitenet_jax.data.image_files import image_size, read_image, read_mask, write_mask
from medlitenet_jax.errors import InputError

ORIENTATION = 0x0112
# What a viewer does with a photograph of each EXIF orientation.
UPRIGHT = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: np.rot90(a, 1),
}


def quadrants(height=48, width=64):
  """A picture that no turn or flip maps onto itself, in colours that JPEG keeps."""
  image = np.zeros((height, width, 3), np.uint8)
  top, left = height // 2, width // 2
  image[:top, :left], image[:top, left:] = (200, 40, 40), (40, 200, 40)
  image[top:, :left], image[top:, left:] = (40, 40, 200), (220, 220, 220)
  return image


def close(actual, expected, tolerance):
  """Whether pictures agree away from edges, where JPEG rings."""
  assert actual.shape == expected.shape and actual.dtype == np.uint8
  differences = np.abs(actual.astype(int) - expected.astype(int)).max(axis=-1)
  return np.mean(differences <= tolerance) > 0.9


@pytest.mark.parametrize(
  ("suffix", "tolerance"), [("jpg", 12), ("png", 0), ("bmp", 0), ("tif", 0), ("tiff", 0)]
)
def test_formats(tmp_path, suffix, tolerance):
  path = tmp_path / f"photo.{suffix}"
  Image.fromarray(quadrants()).save(path)
  assert close(read_image(path), quadrants(), tolerance)
  assert image_size(path) == (48, 64)


def test_grey_photograph_becomes_rgb(tmp_path):
  grey = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) % 256
  Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "grey.png")
  np.testing.assert_array_equal(
    read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2)
  )


def test_transparency_and_palette_are_dropped(tmp_path):
  rgba = np.concatenate([quadrants(), np.full((48, 64, 1), 90, np.uint8)], axis=2)
  Image.fromarray(rgba).save(tmp_path / "rgba.png")
  np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), quadrants())
  Image.fromarray(quadrants()).quantize(8).save(tmp_path / "palette.png")
  assert close(read_image(tmp_path / "palette.png"), quadrants(), 2)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("suffix", "tolerance"), [("jpg", 12), ("png", 0)])
def test_photograph_stands_as_its_exif_says(tmp_path, orientation, suffix, tolerance):
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  path = tmp_path / f"turned.{suffix}"
  Image.fromarray(quadrants()).save(path, exif=exif)
  expected = UPRIGHT[orientation](quadrants())
  image = read_image(path)
  assert close(image, expected, tolerance)
  assert image_size(path) == image.shape[:2]


@pytest.mark.parametrize("lesion", [1, 255])
def test_masks_of_either_convention(tmp_path, lesion):
  expected = np.zeros((20, 30), np.uint8)
  expected[4:9, 5:17] = 1
  Image.fromarray(expected * np.uint8(lesion)).save(tmp_path / "mask.png")
  mask = read_mask(tmp_path / "mask.png")
  assert mask.dtype == np.uint8
  np.testing.assert_array_equal(mask, expected)


def test_few_values_between_are_lesion_above_128(tmp_path):
  grey = np.zeros((40, 50), np.uint8)
  grey[20:] = 255
  grey[19, :7] = (1, 64, 127, 128, 129, 200, 254)
  Image.fromarray(grey).save(tmp_path / "grey.png")
  mask = read_mask(tmp_path / "grey.png")
  np.testing.assert_array_equal(mask[19, :7], [0, 0, 0, 0, 1, 1, 1])
  assert mask[20:].all() and not mask[:19].any()


@pytest.mark.parametrize("label", [2, 7, 100, 128, 180])
def test_mask_of_other_labels_is_refused(tmp_path, label):
  grey = np.zeros((40, 50), np.uint8)
  grey[10:30, 10:30] = label
  path = tmp_path / "labels.png"
  Image.fromarray(grey).save(path)
  with pytest.raises(InputError) as error:
    read_mask(path)
  assert str(path) in str(error.value) and str(label) in str(error.value)


@pytest.mark.parametrize("value", [0, 255])
def test_empty_and_full_masks(tmp_path, value):
  Image.fromarray(np.full((8, 9), value, np.uint8)).save(tmp_path / "mask.png")
  np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), np.full((8, 9), value // 255))


def test_mask_in_colour_and_in_one_bit(tmp_path):
  expected = np.eye(16, dtype=np.uint8)
  Image.fromarray(np.repeat(expected[..., None] * np.uint8(255), 3, axis=2)).save(
    tmp_path / "colour.png"
  )
  Image.fromarray(expected.astype(bool)).save(tmp_path / "bit.png")
  np.testing.assert_array_equal(read_mask(tmp_path / "colour.png"), expected)
  np.testing.assert_array_equal(read_mask(tmp_path / "bit.png"), expected)


def test_mask_round_trip(tmp_path):
  mask = (np.random.default_rng(0).random((37, 53)) < 0.4).astype(np.uint8)
  path = tmp_path / "mask.png"
  write_mask(path, mask)
  np.testing.assert_array_equal(read_mask(path), mask)
  np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), mask * 255)
  with Image.open(path) as image:
    assert image.format == "PNG" and image.mode == "L"


def broken_files(folder):
  """Files that are not what their names say, by what is wrong with them."""
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
  for suffix in ("jpg", "png", "bmp", "tif"):
    path = folder / f"whole.{suffix}"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.95):
      cut = folder / f"cut_{share}.{suffix}"
      cut.write_bytes(content[: int(len(content) * share)])
      yield cut
  png = bytearray((folder / "whole.png").read_bytes())
  for place in (len(png) // 2, 45):
    damaged = folder / f"damaged_{place}.png"
    damaged.write_bytes(png[:place] + bytes(40) + png[place + 40 :])
    yield damaged
  text, empty, named_folder = (folder / f"{name}.jpg" for name in ("text", "empty", "folder"))
  text.write_text("not a photograph\n" * 50)
  empty.touch()
  named_folder.mkdir()
  yield from (text, empty, named_folder, folder / "missing.jpg")


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_broken_files_are_named(tmp_path, read):
  for path in broken_files(tmp_path):
    with pytest.raises(InputError) as error:
      read(path)
    assert str(path) in str(error.value), path
    assert len(str(error.value).splitlines()) == 1


def test_size_of_what_is_no_image_is_refused(tmp_path):
  for path in list(broken_files(tmp_path))[-4:]:
    with pytest.raises(InputError, match=path.name):
      image_size(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_size_is_read_from_the_head_alone(tmp_path, suffix):
  noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
  path = tmp_path / f"cut.{suffix}"
  Image.fromarray(noise).save(path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  assert image_size(path) == (48, 64)
  with pytest.raises(InputError, match=path.name):
    read_image(path)
