"""Near duplicates are found if flipped, recoloured or shifted; different pictures are not."""

import cv2
import numpy as np
import pytest

from medlitenet_jax.data.images import duplicates
from medlitenet_jax.data.images.duplicates import THUMBNAIL, near_duplicates, thumbnail
from medlitenet_jax.data.synthetic import draw_dermoscopy

DRAWINGS = [draw_dermoscopy(0, index, 256)[0] for index in range(12)]


def recoloured(image):
  levels = 40 + 0.7 * image.astype(float) * (1.0, 0.8, 1.1)
  return np.clip(levels, 0, 255).astype(np.uint8)


def compressed(image):
  return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1)


CHANGES = {
  "none": lambda image: image,
  **{
    f"{turn} quarters{' of the flip' * flip}": lambda image, t=turn, f=flip: np.rot90(
      image[:, ::-1] if f else image, t
    )
    for turn in range(4)
    for flip in range(2)
    if turn or flip
  },
  "colour": recoloured,
  "compression": compressed,
  "size": lambda image: cv2.resize(image, (150, 110), interpolation=cv2.INTER_AREA),
  "crop": lambda image: image[5:246, 3:250],
  "shift, flip and colour": lambda image: recoloured(image[:248, 6:][:, ::-1]),
}


def found(images, threads=2):
  pairs, left_out = near_duplicates([thumbnail(image) for image in images], threads)
  assert not left_out
  return {(pair.first, pair.second): pair for pair in pairs}


@pytest.mark.parametrize("name", CHANGES)
def test_copy_is_found_among_others(name):
  changed = CHANGES[name](DRAWINGS[7])
  pairs = found([*DRAWINGS, np.ascontiguousarray(changed)])
  assert set(pairs) == {(7, 12)}
  pair = pairs[7, 12]
  assert pair.turned == ("quarters" in name or "flip" in name)
  if "quarters" in name or name == "none":
    assert pair.correlation > 0.99  # thumbnails of turned pictures are turned thumbnails


def test_pairs_beyond_the_limit_are_counted_and_the_most_similar_are_compared(monkeypatch):
  blurred = cv2.GaussianBlur(DRAWINGS[3], (0, 0), 3)
  thumbnails = [thumbnail(image) for image in (*DRAWINGS, DRAWINGS[7], blurred)]
  every, left_out = near_duplicates(thumbnails, 1)
  assert {pair[:2] for pair in every} == {(7, 12), (3, 13)} and left_out == 0
  monkeypatch.setattr(duplicates, "MAX_CANDIDATES", 1)
  pairs, left_out = near_duplicates(thumbnails, 1)
  assert [pair[:2] for pair in pairs] == [(7, 12)] and left_out >= 1


def test_other_drawings_are_not_alike():
  others = [draw_dermoscopy(1, index, 96)[0] for index in range(60)]
  assert found([*DRAWINGS, *others]) == {}


def test_smooth_blobs_in_the_same_place_are_not_alike():
  """Their pixels correlate by more than 0.9; only their fine detail differs."""
  y, x = np.mgrid[-1:1:128j, -1:1:128j]
  images = []
  for number in range(20):
    rng = np.random.default_rng(number)
    blob = np.exp(-3 * (x**2 / rng.uniform(0.8, 1.2) + y**2 / rng.uniform(0.8, 1.2)))
    grey = 220 - 120 * blob + rng.normal(0, 6, blob.shape)
    images.append(np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
  flat = [image[..., 0].ravel().astype(float) for image in images]
  assert np.corrcoef(flat).min() > 0.9
  assert found(images) == {}


def test_pictures_without_detail_and_few_pictures():
  even = np.full((40, 50, 3), 90, np.uint8)
  assert found([even, even]) == {} and found([even]) == {} and found([]) == {}


def test_every_pair_of_a_group_is_found_across_blocks(monkeypatch):
  monkeypatch.setattr("medlitenet_jax.data.images.duplicates._BLOCK", 5)
  images = [*DRAWINGS, DRAWINGS[1], DRAWINGS[11], DRAWINGS[1][::-1]]
  pairs = found(images)
  assert set(pairs) == {(1, 12), (11, 13), (1, 14), (12, 14)}
  assert found(images, threads=1) == pairs


def test_thumbnail():
  small = thumbnail(np.full((300, 200, 3), (10, 200, 30), np.uint8))
  assert small.shape == (THUMBNAIL, THUMBNAIL) and small.dtype == np.uint8
  assert abs(int(small[0, 0]) - (0.299 * 10 + 0.587 * 200 + 0.114 * 30)) <= 1
