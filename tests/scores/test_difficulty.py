"""Contrast between lesion and skin, and the split of cases into terciles."""

import cv2
import numpy as np
import pytest

from medlitenet_jax.scores.difficulty import border_contrast, terciles


def disc(size=100, radius=25):
  mask = np.zeros((size, size), np.uint8)
  return cv2.circle(mask, (size // 2, size // 2), radius, 1, -1)


def painted(mask, lesion, skin):
  return np.where(mask[..., None] == 1, lesion, skin).astype(np.uint8)


def test_contrast_is_the_distance_in_cielab():
  assert border_contrast(painted(disc(), (0,) * 3, (255,) * 3), disc()) == pytest.approx(100, 0.01)
  assert border_contrast(painted(disc(), (90, 80, 70), (90, 80, 70)), disc()) < 1e-3
  pale, dark = (painted(disc(), (level,) * 3, (200,) * 3) for level in (180, 60))
  assert 0 < border_contrast(pale, disc()) < border_contrast(dark, disc())


def test_only_the_border_counts():
  """A black corner far from the border and a white centre change nothing."""
  image = painted(disc(), (80, 60, 50), (200, 170, 150))
  plain = border_contrast(image, disc())
  image[:10, :10] = 0
  image[45:55, 45:55] = 255
  assert border_contrast(image, disc()) == plain


@pytest.mark.parametrize("mask", [np.zeros((30, 30), np.uint8), np.ones((30, 30), np.uint8)])
def test_no_border_no_contrast(mask):
  image = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
  assert np.isnan(border_contrast(image, mask))


def test_terciles_split_the_cases_by_rank():
  rng = np.random.default_rng(1)
  rows = [{"size": s} for s in (*rng.permutation(20).astype(float), np.nan)]
  parts = terciles(rows, "size")
  assert [[row["size"] for row in part] for part in parts] == [
    list(range(7)),
    list(range(7, 14)),
    list(range(14, 20)),
  ]


def test_terciles_of_few_cases():
  assert terciles([], "size") == []
  assert terciles([{"size": 1.0}], "size") == [[{"size": 1.0}]]
