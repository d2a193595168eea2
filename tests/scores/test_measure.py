"""Measurements against closed forms, brute force and invariance to rotation."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from medlitenet_jax.scores.measure import FOLDED_SIZE, measure_lesion

NAMES = (
  "area_px",
  "perimeter_px",
  "largest_diameter_px",
  "smallest_diameter_px",
  "asymmetry",
  "border_irregularity",
  "area_fraction",
  "regions",
  "region_diameters_px",
  "touches_frame",
  "frame_share",
)
NAMES_MM = ("area_mm2", "perimeter_mm", "largest_diameter_mm", "smallest_diameter_mm")


def drawn(inside, reach, degrees=0.0, offset=(0.0, 0.0)):
  """Draws a shape: all pixels whose centres are inside it.

  Args:
    inside: maps (x, y), in pixels from the shape's centre, to whether the point is inside.
    reach: largest distance of a point of the shape from its centre, in pixels.
    degrees: angle by which the shape is rotated.
    offset: offset of the shape's centre from the photograph's, in pixels.
  """
  half = int(reach) + 4
  y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
  x, y = x - offset[0], y - offset[1]
  cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  return np.asarray(inside(cos * x + sin * y, cos * y - sin * x)).astype(np.uint8)


def ring(outer, inner, offset=(0.0, 0.0)):
  return drawn(lambda x, y: (np.hypot(x, y) <= outer) & (np.hypot(x, y) > inner), outer, 0, offset)


def disc(radius, offset=(0.0, 0.0)):
  return ring(radius, -1, offset)


def ellipse(a, b, degrees=0.0, offset=(0.0, 0.0)):
  return drawn(lambda x, y: (x / a) ** 2 + (y / b) ** 2 <= 1, a, degrees, offset)


def rectangle(width, height, degrees=0.0, offset=(0.0, 0.0)):
  def inside(x, y):
    return (np.abs(x) <= width / 2) & (np.abs(y) <= height / 2)

  return drawn(inside, np.hypot(width, height) / 2, degrees, offset)


def triangle(base, height, degrees=0.0, offset=(0.0, 0.0)):
  """An isosceles triangle with its centroid in the middle."""

  def inside(x, y):
    up = y + height / 3
    return (up >= 0) & (2 * np.abs(x) <= base * (1 - up / height))

  return drawn(inside, max(base, height), degrees, offset)


def circumference(a, b):
  """Circumference of an ellipse by numerical integration."""
  angle = (np.arange(4000) + 0.5) * 2 * np.pi / 4000
  return np.hypot(a * np.sin(angle), b * np.cos(angle)).mean() * 2 * np.pi


def turns(count):
  """Random angles in degrees and offsets of a shape's centre, not aligned with the grid."""
  rng = np.random.default_rng(0)
  return [(rng.uniform(0, 180), tuple(rng.uniform(-0.5, 0.5, 2))) for _ in range(count)]


def blobs(count=30, shape=(70, 90)):
  """Random lesions away from the frame, with several regions, bays and holes."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    field = gaussian_filter(rng.normal(size=shape), rng.uniform(1, 9))
    mask = field > np.quantile(field, rng.uniform(0.5, 0.95))
    yield np.pad(mask.astype(np.uint8), 5)


def noise(count=60):
  """Small masks of random pixels, also on the frame; none is empty."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    mask = rng.random(rng.integers(1, 9, 2)) < rng.uniform(0.05, 0.9)
    mask[tuple(rng.integers(0, mask.shape))] = True
    yield mask.astype(np.uint8)


def folded(mask):
  """Asymmetry by its definition: 25 points per pixel are mirrored one by one."""
  pixels = np.argwhere(mask)
  centre = pixels.mean(axis=0)
  axes = np.linalg.eigh(np.cov((pixels - centre).T))[1].T
  places = (np.arange(5) - 2) / 5
  inner = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
  points = (pixels[:, None] + inner).reshape(-1, 2) - centre
  lost = []
  for axis in axes:
    mirrored = 2 * (points @ axis)[:, None] * axis - points + centre
    y, x = np.floor(mirrored + 0.5).astype(int).T
    on = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    lost.append(1 - mask[y[on], x[on]].sum() / len(points))
  return np.mean(lost)


def assert_same(row, expected, rel=1e-9, asymmetry=1e-3):
  assert list(row) == list(expected)
  for name, value in expected.items():
    if value is None or isinstance(value, str):
      assert row[name] == value, name
    elif name == "asymmetry":
      assert row[name] == pytest.approx(value, abs=asymmetry)
    else:
      assert row[name] == pytest.approx(value, rel=rel), name


@pytest.mark.parametrize("radius", [10, 11.3, 15, 20, 33.7, 50, 100, 200])
def test_a_disc(radius):
  for _, offset in turns(6):
    row = measure_lesion(disc(radius, offset))
    assert row["area_px"] == pytest.approx(np.pi * radius**2, rel=0.02)
    assert row["perimeter_px"] == pytest.approx(2 * np.pi * radius, rel=0.015)
    assert row["largest_diameter_px"] == pytest.approx(2 * radius, abs=1.5)
    assert row["smallest_diameter_px"] == pytest.approx(2 * radius, abs=1.5)
    assert row["asymmetry"] <= 0.5 / radius
    assert row["border_irregularity"] == pytest.approx(1, abs=0.03)
    assert (row["regions"], row["touches_frame"]) == (1, 0)


@pytest.mark.parametrize(("a", "b"), [(15, 10), (40, 20), (60, 45), (150, 50), (200, 190)])
def test_a_turned_ellipse(a, b):
  for degrees, offset in turns(12):
    row = measure_lesion(ellipse(a, b, degrees, offset))
    assert row["area_px"] == pytest.approx(np.pi * a * b, rel=0.02)
    assert row["perimeter_px"] == pytest.approx(circumference(a, b), rel=0.02)
    assert row["largest_diameter_px"] == pytest.approx(2 * a, abs=1.5)
    assert row["smallest_diameter_px"] == pytest.approx(2 * b, abs=1.5)
    assert row["asymmetry"] <= 0.5 / b
    compactness = circumference(a, b) ** 2 / (4 * np.pi**2 * a * b)
    assert row["border_irregularity"] == pytest.approx(compactness, rel=0.04)


@pytest.mark.parametrize(("width", "height"), [(50, 40), (60, 60), (100, 40), (300, 200)])
def test_a_turned_rectangle(width, height):
  for degrees, offset in [*turns(12), (0, (0.1, 0.2)), (45, (0.1, 0.2)), (90, (0.1, 0.2))]:
    row = measure_lesion(rectangle(width, height, degrees, offset))
    assert row["area_px"] == pytest.approx(width * height, rel=0.04)
    assert row["perimeter_px"] == pytest.approx(2 * (width + height), rel=0.03)
    assert row["largest_diameter_px"] == pytest.approx(np.hypot(width, height), abs=2)
    assert row["smallest_diameter_px"] == pytest.approx(min(width, height), abs=1.5)
    if width != height:  # a square has no longer axis to fold over
      assert row["asymmetry"] <= 1 / height


@pytest.mark.parametrize("radius", [10, 15, 30, 100])
def test_the_perimeter_of_discs_is_unbiased(radius):
  ratios = [
    measure_lesion(disc(radius, offset))["perimeter_px"] / (2 * np.pi * radius)
    for _, offset in turns(60)
  ]
  assert np.mean(ratios) == pytest.approx(1, abs=0.003)


def test_the_perimeter_is_unbiased_over_directions():
  ratios = [
    measure_lesion(rectangle(200, 120, degrees, offset))["perimeter_px"] / 640
    for degrees, offset in turns(100)
  ]
  assert np.mean(ratios) == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize(("outer", "inner"), [(15, 7), (20, 10), (60, 40), (150, 145)])
def test_a_hole_has_an_outline_too(outer, inner):
  for _, offset in turns(5):
    row = measure_lesion(ring(outer, inner, offset))
    assert row["perimeter_px"] == pytest.approx(2 * np.pi * (outer + inner), rel=0.015)
    assert row["largest_diameter_px"] == pytest.approx(2 * outer, abs=1.5)
    assert row["regions"] == 1


@pytest.mark.parametrize(
  ("rows", "even", "odd", "corners", "contours"),
  [
    ("....", 0, 0, 0, 0),
    (".#..", 0, 0, 0, 1),
    (".###", 4, 0, 2, 1),
    ("### ###", 6, 0, 4, 1),
    (".#. ### .#.", 0, 4, 4, 1),
    ("#.. .#. ..#", 0, 4, 2, 1),
    ("##.# ##.#", 4 + 2, 0, 4 + 2, 2),
    ("### #.# ###", 8, 4, 4 + 4, 0),  # the outline's gain and the hole's loss cancel
  ],
)
def test_steps_and_corners_of_small_outlines(rows, even, odd, corners, contours):
  mask = np.array([[int(c == "#") for c in row] for row in rows.split()], np.uint8)
  expected = 0.980 * even + 1.406 * odd - 0.091 * corners + 8**0.5 * contours
  assert measure_lesion(mask)["perimeter_px"] == pytest.approx(expected, abs=1e-9)


def test_diameters_by_brute_force():
  """Distances of all pairs of pixel corners, and the widths across their directions."""
  for mask in noise():
    y, x = np.nonzero(mask)
    corners = np.unique([(x + i, y + j) for i in (0, 1) for j in (0, 1)], axis=0)
    points = np.unique(corners.transpose(0, 2, 1).reshape(-1, 2), axis=0)
    apart = (points[:, None] - points).reshape(-1, 2)
    lengths = np.hypot(*apart.T)
    across = np.stack([-apart[:, 1], apart[:, 0]], axis=1)[lengths > 0]
    heights = across @ points.T / lengths[lengths > 0, None]
    row = measure_lesion(mask)
    assert row["largest_diameter_px"] == pytest.approx(lengths.max(), rel=1e-12)
    assert row["smallest_diameter_px"] == pytest.approx(np.ptp(heights, axis=1).min(), rel=1e-12)


def test_regions_touch_across_corners():
  for mask in (*noise(), *blobs()):
    assert measure_lesion(mask)["regions"] == label(mask, np.ones((3, 3)))[1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 7), (7, 2), (2, 700)])
def test_narrow_lesions_are_symmetrical(shape):
  assert measure_lesion(np.ones(shape, np.uint8))["asymmetry"] == pytest.approx(0, abs=1e-6)


def test_asymmetry_by_its_definition():
  found = []
  for mask in blobs():
    found.append(measure_lesion(mask)["asymmetry"])
    assert found[-1] == pytest.approx(folded(mask), abs=0.02)
  assert np.ptp(found) > 0.3


@pytest.mark.parametrize(("base", "height"), [(100, 160), (90, 60), (450, 750)])
def test_asymmetry_of_a_triangle(base, height):
  """0 about its axis of symmetry, 1/3 about the other line through its centroid: 1/6 on average.

  With width b (1 - y / h) and centroid h / 3 the overlap is twice the area between h / 3 and
  2 h / 3, which is b h / 3 of b h / 2.
  """
  for degrees, offset in turns(3):
    asymmetry = measure_lesion(triangle(base, height, degrees, offset))["asymmetry"]
    assert asymmetry == pytest.approx(1 / 6, abs=0.02 if height < FOLDED_SIZE else 0.004)


def test_reduction_hardly_changes_the_asymmetry():
  for mask in blobs(8):
    large = np.kron(mask, np.ones((23, 23), np.uint8))  # 4 pixels to the square of averaging
    assert max(large.shape) > 3 * FOLDED_SIZE
    assert measure_lesion(large)["asymmetry"] == pytest.approx(folded(mask), abs=0.02)


def test_a_thin_lesion_longer_than_the_reduced_size():
  """Averaged squares with one lesion pixel of 9 still count."""
  line = np.eye(1501, dtype=np.uint8)
  row = measure_lesion(line)
  assert row["asymmetry"] == pytest.approx(0, abs=0.01)
  assert row["smallest_diameter_px"] == pytest.approx(2**0.5)
  corners = np.zeros((1501, 1501), np.uint8)
  corners[0, 0] = corners[-1, -1] = corners[0, -1] = 1
  assert 0 < measure_lesion(corners)["asymmetry"] <= 1


def test_less_regular_shapes_score_higher():
  half = drawn(lambda x, y: (np.hypot(x, y) <= 50) & (y > 0), 50)
  bent = drawn(lambda x, y: (abs(x) <= 40) & (abs(y) <= 40) & ((x < -15) | (y > 15)), 60)
  star = drawn(lambda x, y: np.hypot(x, y) <= 50 + 15 * np.cos(5 * np.arctan2(y, x)), 65)
  round_one, straight = measure_lesion(disc(50)), measure_lesion(rectangle(80, 50))
  assert measure_lesion(half)["asymmetry"] > round_one["asymmetry"] + 0.05
  assert measure_lesion(bent)["asymmetry"] > straight["asymmetry"] + 0.05
  assert measure_lesion(star)["border_irregularity"] > round_one["border_irregularity"] + 0.3
  assert straight["border_irregularity"] > round_one["border_irregularity"] + 0.2


def test_the_place_of_a_lesion_does_not_matter():
  for mask in blobs(10):
    large = np.pad(mask, 20)
    assert_same(measure_lesion(np.roll(large, (-13, 20), (0, 1))), measure_lesion(large))


def test_turning_the_photograph_changes_nothing():
  for mask in (*blobs(15), *noise(30), np.kron(next(blobs(1)), np.ones((13, 13), np.uint8))):
    row = measure_lesion(mask)
    for turned in (np.rot90(mask), np.rot90(mask, 2), np.fliplr(mask), np.flipud(mask), mask.T):
      assert_same(measure_lesion(turned), row, asymmetry=0.01)


def test_millimetres_are_pixels_times_their_side():
  mask = ellipse(40, 20, 30)
  row, measured = measure_lesion(mask), measure_lesion(mask, mm_per_pixel=0.05)
  assert tuple(row) == NAMES and tuple(measured) == NAMES + NAMES_MM
  assert {name: measured[name] for name in NAMES} == row
  assert measured["area_mm2"] == pytest.approx(row["area_px"] / 400)
  for name in ("perimeter", "largest_diameter", "smallest_diameter"):
    assert measured[f"{name}_mm"] == pytest.approx(row[f"{name}_px"] / 20)


def test_every_value_is_a_python_number_or_text():
  for mask in (ellipse(40, 20, 30), np.zeros((9, 9), np.uint8)):
    for name, value in measure_lesion(mask, 1.0).items():
      whole = name in ("area_px", "regions", "touches_frame")
      text = name == "region_diameters_px"
      kinds = (int,) if whole else (str,) if text else (float, type(None))
      assert type(value) in kinds, name


def test_no_lesion():
  row = measure_lesion(np.zeros((30, 40), np.uint8), 0.1)
  assert tuple(row) == NAMES + NAMES_MM
  assert row.pop("asymmetry") is None and row.pop("border_irregularity") is None
  assert row.pop("region_diameters_px") == ""
  assert set(row.values()) == {0}


def test_one_pixel():
  mask = np.zeros((30, 40), np.uint8)
  mask[4, 7] = 1
  expected = {
    "area_px": 1,
    "perimeter_px": 8**0.5,
    "largest_diameter_px": 2**0.5,
    "smallest_diameter_px": 1,
    "asymmetry": 0,
    "border_irregularity": 2 / np.pi,
    "area_fraction": 1 / 1200,
    "regions": 1,
    "region_diameters_px": "1.4",
    "touches_frame": 0,
    "frame_share": 0,
  }
  assert_same(measure_lesion(mask), expected, asymmetry=0)


def test_a_full_frame():
  row = measure_lesion(np.ones((300, 400), np.uint8))
  assert row["perimeter_px"] == pytest.approx(1400, rel=0.03)
  assert row["largest_diameter_px"] == 500 and row["smallest_diameter_px"] == 300
  assert row["asymmetry"] == 0 and row["area_fraction"] == 1
  assert row["regions"] == row["touches_frame"] == row["frame_share"] == 1


def test_a_line():
  mask = np.zeros((30, 40), np.uint8)
  mask[4, 7:31] = 1
  row = measure_lesion(mask)
  assert row["area_px"] == 24 and row["smallest_diameter_px"] == 1 and row["asymmetry"] == 0
  assert row["largest_diameter_px"] == pytest.approx((24**2 + 1) ** 0.5)
  assert row["perimeter_px"] == pytest.approx(50, rel=0.05)


def test_each_region_has_a_diameter_of_its_own():
  mask = np.hstack([np.pad(disc(20), 30), np.pad(disc(45), 5)])
  mask[10, 10] = 1
  row = measure_lesion(mask)
  apart = [float(diameter) for diameter in row["region_diameters_px"].split()]
  assert apart == pytest.approx([90, 40, 1.4], abs=1.6) and row["regions"] == 3
  assert row["largest_diameter_px"] > 100


def test_the_share_of_the_outline_on_the_frame():
  half = disc(40)[:, disc(40).shape[1] // 2 :]
  assert measure_lesion(half)["frame_share"] == pytest.approx(80 / (80 + 40 * np.pi), rel=0.03)
  assert measure_lesion(np.pad(half, 1))["frame_share"] == 0


def test_two_regions_are_one_lesion():
  one = np.pad(disc(20), 30)
  both = np.hstack([one, one])
  alone, row = measure_lesion(one), measure_lesion(both)
  assert row["regions"] == 2 and row["area_px"] == 2 * alone["area_px"]
  assert row["perimeter_px"] == pytest.approx(2 * alone["perimeter_px"])
  assert row["largest_diameter_px"] == pytest.approx(one.shape[1] + 40, abs=1.5)
  assert row["smallest_diameter_px"] == pytest.approx(40, abs=1.5)
  assert row["asymmetry"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
  ("place", "touches"),
  [((0, 5), 1), ((9, 5), 1), ((4, 0), 1), ((4, 19), 1), ((1, 1), 0), ((8, 18), 0)],
)
def test_a_lesion_on_the_frame_is_flagged(place, touches):
  mask = np.zeros((10, 20), np.uint8)
  mask[place] = 1
  assert measure_lesion(mask)["touches_frame"] == touches


def test_the_mask_is_not_modified():
  for mask in blobs(3):
    before = mask.copy()
    measure_lesion(mask)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize(
  "mask",
  [
    np.ones((4, 4), bool),
    np.ones((4, 4), np.float32),
    np.full((4, 4), 255, np.uint8),
    np.ones((4, 4, 1), np.uint8),
  ],
  ids=lambda mask: f"{mask.dtype}-{mask.shape}-{mask.max()}",
)
def test_other_masks_are_refused(mask):
  with pytest.raises(ValueError, match="must be"):
    measure_lesion(mask)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_an_invalid_scale_is_refused(scale):
  with pytest.raises(ValueError, match="mm_per_pixel"):
    measure_lesion(np.ones((4, 4), np.uint8), scale)
