"""Files: photographs are read upright as RGB, masks as 0 and 1; broken files are named."""

import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from medlitenet_jax.data.images import image_files
from medlitenet_jax.data.images.image_files import (
  image_names,
  image_size,
  read_image,
  read_mask,
  write_mask,
)
from medlitenet_jax.data.images.mask_values import UnclearMaskError
from medlitenet_jax.system.errors import InputError

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
  """A picture without symmetry, in colours that JPEG preserves."""
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


def test_palette_becomes_rgb(tmp_path):
  Image.fromarray(quadrants()).quantize(8).save(tmp_path / "palette.png")
  assert close(read_image(tmp_path / "palette.png"), quadrants(), 2)


def on_white(colors, alpha):
  return colors * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)


def half_transparent():
  """Opacity that differs between quadrants and within one."""
  alpha = np.full((48, 64), 255, np.uint8)
  alpha[:24, 32:], alpha[24:, :32], alpha[:6] = 0, 90, 128
  return alpha


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGBA 16 bit png", "RGBA 16 bit tif"])
def test_what_is_transparent_is_white(tmp_path, kind):
  path = tmp_path / f"photo.{'tif' if 'tif' in kind else 'png'}"
  alpha, colors = half_transparent(), quadrants()
  if kind == "LA":
    colors = np.repeat(colors[..., :1], 3, axis=2)
    Image.fromarray(np.dstack([colors[..., 0], alpha]), mode="LA").save(path)
  elif kind == "P":
    alpha = np.where(colors[..., 0] == 200, 0, 255)
    palette = Image.fromarray(colors).quantize(4)
    palette.save(path, transparency=palette.getpixel((0, 0)))
  elif kind == "RGBA":
    Image.fromarray(np.dstack([colors, alpha])).save(path)
  else:
    wide = np.dstack([colors[..., ::-1], alpha]).astype(np.uint16) * 257
    path.write_bytes(cv2.imencode(path.suffix, wide)[1].tobytes())
  difference = np.abs(read_image(path) - on_white(colors, alpha))
  assert difference.max() <= 2
  assert image_size(path) == (48, 64)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix, channels):
  wide = np.random.default_rng(0).integers(0, 65536, (30, 20, channels), np.uint16)
  wide[0, 0], wide[0, 1] = 0, 65535
  path = tmp_path / f"wide.{suffix}"
  path.write_bytes(cv2.imencode(f".{suffix}", wide[..., ::-1])[1].tobytes())
  image = read_image(path)
  expected = np.rint(np.broadcast_to(wide, (30, 20, 3)) / 257)
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_sixteen_bit_images_are_rotated_by_their_exif_orientation(tmp_path, orientation, suffix):
  grey = quadrants()[..., 0].astype(np.uint16) * 257
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  path = tmp_path / f"turned.{suffix}"
  Image.fromarray(grey).save(path, exif=exif)
  image = read_image(path)
  np.testing.assert_array_equal(image[..., 1], UPRIGHT[orientation](quadrants()[..., 0]))
  assert image_size(path) == image.shape[:2]
  mask = UPRIGHT[orientation](quadrants()[..., 0] == 220)
  Image.fromarray((quadrants()[..., 0] == 220).astype(np.uint16)).save(path, exif=exif)
  np.testing.assert_array_equal(read_mask(path), mask)


def with_tag(content: bytes, tag: int, value: int) -> bytes:
  """A little-endian TIFF file with another value of one short number in its directory."""
  at = content.index(struct.pack("<HHI", tag, 3, 1))
  return content[: at + 8] + struct.pack("<HH", value, 0) + content[at + 12 :]


def test_twelve_bits_are_refused(tmp_path):
  path = tmp_path / "twelve.tif"
  Image.fromarray(np.full((8, 8), 2048, np.uint16)).save(path)
  path.write_bytes(with_tag(path.read_bytes(), 258, 12))
  for read in (read_image, read_mask):
    with pytest.raises(InputError, match=r"twelve\.tif: has 12 bits a channel; convert"):
      read(path)


def four_channel_tiff(pixels, extra: int) -> bytes:
  """[H, W, 4] uint16 as a plain TIFF file whose tag ExtraSamples has this value."""
  height, width = pixels.shape[:2]
  entries = [(256, 3, width), (257, 3, height), (259, 3, 1), (262, 3, 2), (273, 4, 8 + 8)]
  entries += [(277, 3, 4), (278, 3, height), (279, 4, pixels.nbytes), (284, 3, 1), (338, 3, extra)]
  directory = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries]
  directory.insert(2, struct.pack("<HHII", 258, 3, 4, 8))  # bits of the channels stand at byte 8
  at = 16 + pixels.nbytes
  head = struct.pack("<2sHI4H", b"II", 42, at, 16, 16, 16, 16)
  end = struct.pack("<H", len(directory)) + b"".join(directory) + bytes(4)
  return head + pixels.astype("<u2").tobytes() + end


def test_a_fourth_channel_is_what_the_file_says(tmp_path):
  colors = quadrants().astype(np.uint16)
  wide = 257 * np.dstack([colors, np.zeros(colors.shape[:2], np.uint16)])
  path = tmp_path / "four.tif"
  for extra, expected in ((0, quadrants()), (2, np.full_like(quadrants(), 255))):
    path.write_bytes(four_channel_tiff(wide, extra))
    np.testing.assert_array_equal(read_image(path), expected)
  path.write_bytes(four_channel_tiff(wide, 1))
  with pytest.raises(InputError, match="multiplied by their opacity"):
    read_image(path)


def test_one_transparent_level_of_sixteen_bits_is_white(tmp_path):
  grey = np.full((8, 8), 20_000, np.uint16)
  grey[:4] = 700
  path = tmp_path / "clear.png"
  Image.fromarray(grey).save(path, transparency=700)
  image = read_image(path)
  assert (image[:4] == 255).all() and (image[4:] == 78).all()


def test_a_wide_mask_with_opacity_has_its_own_values(tmp_path):
  wide = np.dstack([SPOT, SPOT, SPOT, np.full_like(SPOT, 255)]).astype(np.uint16)
  wide[..., 3] *= 257
  path = tmp_path / "mask.png"
  path.write_bytes(cv2.imencode(".png", wide)[1].tobytes())
  np.testing.assert_array_equal(read_mask(path), SPOT)


def test_sixteen_bits_of_all_colours_together_are_eight_a_channel(tmp_path):
  header = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 66)
  info = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 3, 0, 0, 0, 0, 0)
  masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
  path = tmp_path / "rgb565.bmp"
  path.write_bytes(header + info + masks + struct.pack("<16H", *[0xF800] * 16))
  np.testing.assert_array_equal(read_image(path), np.full((4, 4, 3), (255, 0, 0)))


def test_too_little_memory_is_not_called_a_broken_file(tmp_path, monkeypatch):
  path = tmp_path / "a.png"
  Image.fromarray(quadrants()).save(path)

  def none_left(*_, **__):
    raise MemoryError

  monkeypatch.setattr(Image, "open", none_left)
  with pytest.raises(InputError, match=r"a\.png: there is not enough memory to read it"):
    read_image(path)


def test_the_message_for_a_file_that_is_not_an_image_is_repeatable(tmp_path):
  path = tmp_path / "x.jpg"
  path.write_text("this is no photograph")
  with pytest.raises(InputError, match=r"x\.jpg: not in a supported format; repair or remove it$"):
    read_image(path)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "WEBP"])
def test_an_unsupported_format_with_another_suffix_is_not_opened(tmp_path, kind):
  """Pillow would pass PostScript to an interpreter."""
  path = tmp_path / "x.png"
  Image.fromarray(quadrants()).save(path, kind)
  for read in (image_size, read_image, read_mask):
    with pytest.raises(InputError, match=r"x\.png: not in a supported format"):
      read(path)


def test_further_pages_of_a_tiff_are_named_once(tmp_path, caplog):
  path = tmp_path / "series.tif"
  pages = [Image.fromarray(np.full((4, 6, 3), level, np.uint8)) for level in (10, 20, 30)]
  pages[0].save(path, save_all=True, append_images=pages[1:])
  for _ in range(2):
    np.testing.assert_array_equal(read_image(path), pages[0])
  assert caplog.text.count("only its first page is read") == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tiff_that_points_to_no_second_page_is_read(tmp_path, caplog):
  path = tmp_path / "junk.tif"
  Image.fromarray(quadrants()).save(path)
  content = bytearray(path.read_bytes())
  order = "<" if content[:2] == b"II" else ">"
  first = struct.unpack(f"{order}I", content[4:8])[0]
  end = first + 2 + 12 * struct.unpack(f"{order}H", content[first : first + 2])[0]
  assert content[end : end + 4] == bytes(4)
  content[end : end + 4] = struct.pack(f"{order}I", 9)  # into the pixels
  path.write_bytes(content)
  np.testing.assert_array_equal(read_image(path), quadrants())
  assert not caplog.text


def test_white_is_zero_in_some_tiff_files(tmp_path):
  grey = np.arange(0, 60000, 500, np.uint16).reshape(10, 12)
  path = tmp_path / "inverted.tif"
  Image.fromarray(grey).save(path, tiffinfo={262: 0})
  np.testing.assert_array_equal(read_image(path)[..., 0], np.rint((65535 - grey) / 257))


def test_cmyk_photograph(tmp_path):
  path = tmp_path / "print.jpg"
  Image.fromarray(quadrants()).convert("CMYK").save(path, quality=95)
  assert close(read_image(path), quadrants(), 12)


def test_more_bits_than_sixteen_are_refused(tmp_path):
  path = tmp_path / "float.tif"
  Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
  for read in (read_image, read_mask):
    with pytest.raises(InputError, match=r"float\.tif: has 32 bits.*convert"):
      read(path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_truncated_sixteen_bits_are_refused(tmp_path, suffix):
  wide = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), np.uint16)
  path = tmp_path / f"cut.{suffix}"
  content = cv2.imencode(f".{suffix}", wide)[1].tobytes()
  for share in (0.3, 0.6, 0.95):
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=path.name):
      read_image(path)


def test_file_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path):
  path = tmp_path / "bomb.png"
  Image.new("1", (20_000, 10_000)).save(path)
  assert path.stat().st_size < 1_000_000
  for read in (image_size, read_image, read_mask):
    with pytest.raises(InputError, match=r"bomb\.png: 20000x10000 pixels"):
      read(path)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("suffix", "tolerance"), [("jpg", 12), ("png", 0), ("tif", 0)])
def test_a_photograph_is_rotated_by_its_exif_orientation(tmp_path, orientation, suffix, tolerance):
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


SPOT = np.zeros((40, 50), np.uint8)
SPOT[10:30, 15:40] = 1


def colored(lesion, skin=(0, 0, 0)):
  """The spot in two colours, of three or four channels."""
  return np.where(SPOT[..., None] == 1, lesion, skin).astype(np.uint8)


def indexed(lesion, skin, colors):
  """The spot as indices of a palette that has these colours, by index."""
  image = Image.fromarray(np.where(SPOT == 1, lesion, skin).astype(np.uint8))
  palette = np.full((256, 3), 77, np.uint8)
  for index, color in colors.items():
    palette[index] = color
  image.putpalette(palette.tobytes())
  return image


BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0)
SPOTS = {
  "16 bit": lambda: Image.fromarray(SPOT.astype(np.uint16) * 65535),
  "16 bit of 1": lambda: Image.fromarray(SPOT.astype(np.uint16)),
  "16 bit of 255": lambda: Image.fromarray(SPOT.astype(np.uint16) * 255),
  "red": lambda: Image.fromarray(colored(RED)),
  "yellow": lambda: Image.fromarray(colored((255, 250, 3))),
  "pink": lambda: Image.fromarray(colored((250, 120, 180))),
  "white with opacity": lambda: Image.fromarray(colored((*WHITE, 255), (0, 0, 0, 255))),
  "red on nothing": lambda: Image.fromarray(colored((*RED, 255), (0, 0, 0, 0))),
  "white, the rest transparent": lambda: Image.fromarray(colored((*WHITE, 255), (*WHITE, 0))),
  "all equally transparent": lambda: Image.fromarray(colored((*RED, 9), (*BLACK, 9))),
  "grey with opacity": lambda: Image.fromarray(colored((255, 255), (0, 255)), mode="LA"),
  "palette, white first": lambda: indexed(1, 0, {0: BLACK, 1: WHITE}),
  "palette, black first": lambda: indexed(0, 1, {0: WHITE, 1: BLACK}),
  "palette of colours": lambda: indexed(1, 0, {0: GREEN, 1: RED}),
  "palette of a far index": lambda: indexed(255, 0, {0: BLACK, 255: RED}),
  "palette of two greys": lambda: indexed(1, 0, {0: (0, 0, 0), 1: (1, 1, 1)}),
  "1 bit": lambda: Image.fromarray(SPOT.astype(bool)),
}


@pytest.mark.parametrize("name", SPOTS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_ways_to_write_a_mask(tmp_path, name, suffix):
  path = tmp_path / f"mask.{suffix}"
  SPOTS[name]().save(path)
  mask = read_mask(path)
  assert mask.dtype == np.uint8
  np.testing.assert_array_equal(mask, SPOT)


@pytest.mark.parametrize("color", [WHITE, RED, (0, 0, 255), (255, 255, 0)])
def test_coloured_mask_in_jpeg(tmp_path, color):
  big = cv2.resize(SPOT, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
  path = tmp_path / "mask.jpg"
  Image.fromarray(np.where(big[..., None] == 1, color, BLACK).astype(np.uint8)).save(path)
  assert np.mean(read_mask(path) != big) < 0.01


def three_labels():
  colors = colored(RED)
  colors[15:25, 20:30] = GREEN
  return Image.fromarray(colors)


def small_labels(first, second):
  """Two spots of about one hundredth of the frame."""
  grey = np.zeros_like(SPOT)
  grey[5:9, 5:10] = first
  grey[25:31, 25:31] = second
  return grey


UNCLEAR = {
  "two colours": (three_labels, "more than one colour"),
  "white beside red": (lambda: Image.fromarray(colored(RED, WHITE)), "more than one colour"),
  "dark red": (lambda: Image.fromarray(colored((128, 0, 0))), "128"),
  "16 bit labels": (lambda: Image.fromarray(SPOT.astype(np.uint16) * 20_000), "20000"),
  "16 bit labels, some small": (
    lambda: Image.fromarray((SPOT.cumsum(1) * SPOT * 20).astype(np.uint16)),
    "goes up to 500",
  ),
  "a small second label": (lambda: Image.fromarray(small_labels(255, 128)), "128"),
  "a small second colour": (
    lambda: Image.fromarray(np.dstack([small_labels(255, 0), small_labels(0, 255), 0 * SPOT])),
    "more than one colour",
  ),
  "black on nothing": (
    lambda: Image.fromarray(colored((0, 0, 0, 255), (0, 0, 0, 0))),
    "only black on a transparent background",
  ),
  "palette of a third index": (lambda: indexed(2, 0, {0: BLACK, 2: RED}), "index 2"),
  "palette against its colours": (lambda: indexed(0, 1, {0: RED, 1: BLACK}), "index 0"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_an_ambiguous_mask_is_refused(tmp_path, name):
  draw, reason = UNCLEAR[name]
  path = tmp_path / "mask.png"
  draw().save(path)
  with pytest.raises(UnclearMaskError) as error:
    read_mask(path)
  line = str(error.value)
  assert str(path) in line and reason in line and len(line.splitlines()) == 1


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
  """Files that are not what their suffixes say, by what is wrong with them."""
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


def test_the_size_of_a_file_that_is_not_an_image_is_refused(tmp_path):
  for path in list(broken_files(tmp_path))[-4:]:
    with pytest.raises(InputError, match=path.name):
      image_size(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_size_is_read_from_the_header_only(tmp_path, suffix):
  noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
  path = tmp_path / f"cut.{suffix}"
  Image.fromarray(noise).save(path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  assert image_size(path) == (48, 64)
  with pytest.raises(InputError, match=path.name):
    read_image(path)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_invalid_orientation_is_ignored(tmp_path, orientation):
  path, exif = tmp_path / "x.jpg", Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, exif=exif)
  assert image_size(path) == read_image(path).shape[:2] == (20, 30)


@pytest.mark.parametrize("name", ["a\x1b[2J.png", "a\nb.png", "a\tb.png"])
def test_names_with_control_characters_are_refused(tmp_path, name):
  (tmp_path / name).touch()
  with pytest.raises(InputError, match="control characters") as error:
    image_names(tmp_path)
  assert str(error.value).isprintable()


def test_sixteen_bits_have_a_limit_of_their_own(tmp_path, monkeypatch):
  monkeypatch.setattr(image_files, "MAX_WIDE_PIXELS", 100)
  cv2.imwrite(str(tmp_path / "x.png"), np.zeros((11, 10), np.uint16))
  cv2.imwrite(str(tmp_path / "y.png"), np.zeros((11, 10), np.uint8))
  assert image_size(tmp_path / "y.png") == (11, 10)
  for read in (image_size, read_image, read_mask):
    with pytest.raises(InputError, match="more than the limit of 100"):
      read(tmp_path / "x.png")


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "x.png")
  for read in (image_size, read_image, read_mask):
    with pytest.raises(InputError, match=r"x\.png.*pipe"):
      read(tmp_path / "x.png")
