"""Augmentation: photograph and mask stay aligned, and each change does what its name says."""

import concurrent.futures
import dataclasses

import cv2
import numpy as np
import pytest

from configs.base import get_config
from medlitenet_jax.data.augment.geometry import augment, single_augmentations
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.images.resize import mask_coverage, resize_image, resize_mask
from medlitenet_jax.system.errors import InputError

SIZE = 96
GEOMETRIC = ("crop", "flip_horizontal", "flip_vertical", "rotate", "scale", "translate", "elastic")
PHOTOMETRIC = ("brightness_contrast", "gamma", "clahe", "noise", "blur")
NAMES = GEOMETRIC + PHOTOMETRIC
# Off in the recipe; tests/test_photometric.py looks at each.
HARD = ("hairs", "ruler", "shadow", "uneven_light", "skin_tone", "faint_border")
SOURCES = ((150, 200), (512, 512), (700, 1100), (60, 80))  # the last is smaller than SIZE
IDENTITY = {
  "crop_scale": (1.0, 1.0),
  "crop_ratio": (1.0, 1.0),
  "rotate_degrees": (0.0, 0.0),
  "scale_range": (1.0, 1.0),
  "translate_range": (0.0, 0.0),
  "elastic_amplitude": (0.0, 0.0),
  "brightness_range": (0.0, 0.0),
  "contrast_range": (1.0, 1.0),
  "gamma_range": (1.0, 1.0),
  "noise_std": (0.0, 0.0),
  "blur_sigma": (0.0, 0.0),
}
POLICY = AugmentPolicy(**get_config().augment)


def only(names, **fields):
  """The recipe's policy with just these augmentations, always on."""
  probabilities = {f"{name}_probability": float(name in names) for name in NAMES}
  return dataclasses.replace(POLICY, **probabilities, **fields)


def lesion(height, width):
  """An asymmetric blob near the centre, and a picture in which only the blob is bright."""
  corners = np.array([[0.3, 0.35], [0.55, 0.25], [0.75, 0.5], [0.6, 0.8], [0.45, 0.6], [0.28, 0.7]])
  points = np.rint(corners * [width, height]).astype(np.int32)
  mask = cv2.fillPoly(np.zeros((height, width), np.uint8), [points], 1)
  return np.repeat(mask[:, :, None] * np.uint8(200) + np.uint8(20), 3, axis=2), mask


def texture(size=SIZE, seed=0):
  """Smooth random colours, with a mask of their brighter parts."""
  noise = np.random.default_rng(seed).random((size, size, 3))
  noise = cv2.GaussianBlur(noise, (0, 0), 3)
  image = np.uint8(np.clip(128 + (noise - 0.5) * 900, 0, 255))
  return image, (image[..., 0] > 128).astype(np.uint8)


def ramps(size=256):
  """Red increases to the right, green downwards, so a pixel's colour gives its origin."""
  steps = np.arange(size, dtype=np.uint8)
  image = np.zeros((size, size, 3), np.uint8)
  image[..., 0], image[..., 1] = steps[None, :], steps[:, None]
  return image, np.zeros((size, size), np.uint8)


def run(policy, image, mask, seed=0, size=SIZE):
  return augment(np.random.default_rng(seed), image, mask, size, policy)


def iou(a, b):
  return np.sum(a & b) / np.sum(a | b)


def assert_aligned(image, mask, least_iou=0.97):
  """Checks that the bright part of the picture is the mask, within a pixel of the border."""
  grey = image[..., 1].astype(float)
  middle = (np.median(grey[mask == 1]) + np.median(grey[mask == 0])) / 2
  seen = (grey >= middle).astype(np.uint8)
  square = np.ones((3, 3), np.uint8)
  away = cv2.dilate(mask, square) == cv2.erode(mask, square)
  assert iou(seen, mask) > least_iou
  assert not np.any((seen != mask) & away)


def test_policy_has_the_fields_of_the_recipe():
  assert {field.name for field in dataclasses.fields(AugmentPolicy)} == set(get_config().augment)
  assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(AugmentPolicy))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", [*GEOMETRIC, "all"])
def test_geometric_ones_keep_the_mask_on_the_lesion(name, source):
  policy = only(GEOMETRIC if name == "all" else (name,))
  pair, differ = lesion(*source), []
  for seed in range(4):
    image, mask = run(policy, *pair, seed)
    assert_aligned(image, mask)
    differ.append(np.mean((image[..., 1] >= 120) != mask))
  # Both are sampled alike: but for the rounding of a level they agree at the border too.
  assert np.mean(differ) < 1e-3


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometric_ones_leave_the_mask_alone(name, source):
  pair = lesion(*source)
  for seed in range(3):
    image, mask = run(only((name,)), *pair, seed)
    np.testing.assert_array_equal(mask, resize_mask(pair[1], SIZE, SIZE))
    assert_aligned(image, mask, 0.95)


def test_everything_at_once_stays_aligned():
  pair = lesion(300, 400)
  for seed in range(10):
    assert_aligned(*run(only(NAMES), *pair, seed), 0.93)
    assert_aligned(*run(POLICY, *pair, seed), 0.93)


@pytest.mark.parametrize("size", (SIZE, 128))
@pytest.mark.parametrize(("name", "axis"), [("flip_horizontal", 1), ("flip_vertical", 0)])
def test_flip_is_exact(name, axis, size):
  pair = texture(200)
  image, mask = run(only((name,)), *pair, size=size)
  np.testing.assert_array_equal(image, np.flip(resize_image(pair[0], size, size), axis))
  np.testing.assert_array_equal(mask, np.flip(resize_mask(pair[1], size, size), axis))


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (-90.0, 3), (180.0, 2)])
def test_rotation_by_quarter_turns(degrees, turns):
  image, mask = texture(150)
  turned, turned_mask = run(only(("rotate",), rotate_degrees=(degrees, degrees)), image, mask)
  expected = np.rot90(resize_image(image, SIZE, SIZE), turns).astype(int)
  assert np.abs(turned - expected).max() <= 1
  assert np.mean(turned_mask != np.rot90(resize_mask(mask, SIZE, SIZE), turns)) < 1e-3


@pytest.mark.parametrize(
  ("angle", "names"), [(37.0, ("rotate",)), (90.0, ("rotate",)), (37.0, ("crop", "rotate"))]
)
def test_rotation_does_not_shear_what_is_not_square(angle, names):
  """A disc stays the same ellipse in the squashed view, whichever way it is turned."""
  mask = cv2.circle(np.zeros((240, 420), np.uint8), (210, 120), 26, 1, -1)
  image = np.repeat(mask[..., None] * np.uint8(200), 3, axis=2)
  policy = {"crop_scale": (0.9, 0.9), "crop_ratio": (1.15, 1.15)}
  still, turned = (
    run(only(names, rotate_degrees=(a, a), **policy), image, mask)[1] for a in (0.0, angle)
  )
  sides = [np.ptp(np.nonzero(view), axis=1) for view in (still, turned)]
  assert sides[0][0] > 1.4 * sides[0][1]  # squashed
  assert np.abs(sides[0] - sides[1]).max() <= 1 and abs(1 - turned.sum() / still.sum()) < 0.05


@pytest.mark.parametrize("pixels", (7, -5))
def test_translation_moves_by_whole_pixels(pixels):
  pair = texture()
  policy = only(("translate",), translate_range=(pixels / SIZE, pixels / SIZE))
  into = slice(max(pixels, 0), SIZE + min(pixels, 0))
  came = slice(max(-pixels, 0), SIZE + min(-pixels, 0))
  for before, after in zip(pair, run(policy, *pair), strict=True):
    assert np.abs(after[into, into].astype(int) - before[came, came]).max() <= 1
    assert np.abs(after.astype(int) - before).max() > 0
    # What comes in from outside is the reflection, without the outermost row twice.
    k = abs(pixels)
    mirror = np.pad(before, ((k, k), (k, k), (0, 0))[: before.ndim], mode="reflect")
    whole = mirror[k - pixels :, k - pixels :][:SIZE, :SIZE]
    assert np.abs(after.astype(int) - whole).max() <= 1


def test_scaling_is_about_the_centre():
  for factor in (0.8, 1.25):
    policy = only(("scale",), scale_range=(factor, factor))
    image, _ = run(policy, *ramps(), size=256)
    inner = np.arange(60, 196)  # what both factors still take from inside the picture
    expected = 127.5 + (inner - 127.5) / factor
    assert np.abs(image[128, inner, 0] - expected).max() < 1.1
    assert np.abs(image[inner, 128, 1] - expected).max() < 1.1


def test_crop_takes_a_window_of_the_size_and_shape_asked_for():
  policy = only(("crop",), crop_scale=(0.6, 0.6), crop_ratio=(1.3, 1.3))
  corners = []
  for seed in range(30):
    image, _ = run(policy, *ramps(), seed, size=256)
    red, green = image[..., 0].astype(int), image[..., 1].astype(int)
    assert abs(red[0, -1] - red[0, 0] - 256 * 0.6 * 1.3**0.5) < 3
    assert abs(green[-1, 0] - green[0, 0] - 256 * 0.6 / 1.3**0.5) < 3
    corners.append((red[0, 0], green[0, 0]))
  assert np.ptp(corners, axis=0).min() > 50  # it lands all over the picture
  assert abs(np.corrcoef(np.transpose(corners))[0, 1]) < 0.5


def test_crop_stays_inside_the_picture():
  policy = only(("crop",), crop_scale=(1.0, 1.0), crop_ratio=(1.3, 1.3))
  image, _ = run(policy, *ramps(), size=256)
  assert np.abs(image[..., 0].astype(int) - ramps()[0][..., 0]).max() <= 1
  assert np.all(np.diff(image[:, 0, 1].astype(int)) >= 0)


def test_elastic_displacement_has_the_amplitude_asked_for():
  policy = only(("elastic",), elastic_amplitude=(0.02, 0.02))
  plain = ramps()[0].astype(int)
  bent = [run(policy, *ramps(), seed, size=256)[0] for seed in range(20)]
  moved = (np.array(bent) - plain)[:, 32:-32, 32:-32, :2]
  assert 0.6 * 0.02 * 256 < np.std(moved) < 1.1 * 0.02 * 256  # between control points it is less
  still = run(only(("elastic",), elastic_amplitude=(0.0, 0.0)), *ramps(), size=256)[0]
  assert np.abs(still - plain).max() <= 1


def test_bending_follows_the_other_geometric_ones():
  image, mask = texture()
  mirrored = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
  bent, bent_mask = run(only(("elastic",)), *mirrored)
  both, both_mask = run(only(("elastic", "flip_horizontal")), image, mask)
  assert np.abs(bent.astype(int) - both).max() <= 1
  assert np.mean(bent_mask != both_mask) < 1e-3


def test_mask_is_binary_under_any_policy():
  chance = np.random.default_rng(3)
  for seed in range(30):
    drawn = {f"{name}_probability": chance.random() for name in NAMES}
    height, width = (int(side) for side in chance.integers(40, 300, 2))
    size = int(chance.integers(16, 128))
    policy = dataclasses.replace(POLICY, **drawn)
    image, mask = run(policy, *lesion(height, width), seed, size)
    assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((size, size), np.uint8)
    assert set(np.unique(mask)) <= {0, 1}


def test_nothing_drawn_is_the_resize_of_evaluation():
  pair = texture(200)
  for policy in (only(()), dataclasses.replace(only(NAMES), enabled=False)):
    image, mask = run(policy, *pair)
    np.testing.assert_array_equal(image, resize_image(pair[0], SIZE, SIZE))
    np.testing.assert_array_equal(mask, resize_mask(pair[1], SIZE, SIZE))


@pytest.mark.parametrize("source", (SIZE, 200, 50))
def test_strengths_that_change_nothing_change_nothing(source):
  pair = texture(source)
  drawn = [name for name in NAMES if not name.startswith("flip") and name != "clahe"]
  image, mask = run(only(drawn, **IDENTITY), *pair)
  plain = resize_image(pair[0], SIZE, SIZE).astype(int)
  # A picture smaller than the square is enlarged before the map, so that this holds for it too.
  assert np.abs(image - plain).max() <= 1
  assert np.mean(mask != resize_mask(pair[1], SIZE, SIZE)) < 1e-3


class Draws:
  """Replaces a generator: returns these numbers, then any others in further rows."""

  def __init__(self, rows, others):
    self.rows, self.others = rows, others

  def random(self, shape):
    more = shape[0] - len(self.rows)
    return np.concatenate([self.rows, np.full((more, shape[1]), self.others)])


@pytest.mark.parametrize("others", [0.0, 0.5])
def test_augmentations_that_are_off_do_not_change_the_draws_of_others(others):
  """Runs from before the hard cases get the same views: their twelve rows come first."""
  pair = texture(150)
  for seed in range(5):
    draws = Draws(np.random.default_rng(seed).random((len(NAMES), 5)), others)
    for a, b in zip(augment(draws, *pair, SIZE, POLICY), run(POLICY, *pair, seed), strict=True):
      np.testing.assert_array_equal(a, b)
  rows = np.ones((len(NAMES), 5))  # not below any probability but 1
  rows[NAMES.index("flip_vertical"), 0] = 0.0
  image, _ = augment(Draws(rows, 1.0), *pair, SIZE, POLICY)
  np.testing.assert_array_equal(image, resize_image(pair[0], SIZE, SIZE)[::-1])


def test_repeatable_from_the_rng_alone():
  pair, policy = texture(150), only(NAMES)
  first, again, other = (run(policy, *pair, seed) for seed in (1, 1, 2))
  for a, b, c in zip(first, again, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)


def test_threads_give_the_same_results():
  pair, policy = texture(150), only(NAMES)
  alone = [run(policy, *pair, seed) for seed in range(24)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    together = list(pool.map(lambda seed: run(policy, *pair, seed), range(24)))
  np.testing.assert_array_equal([a[0] for a in alone], [b[0] for b in together])
  np.testing.assert_array_equal([a[1] for a in alone], [b[1] for b in together])


def test_rng_advances_by_the_same_amount_for_every_policy():
  following = set()
  for policy in (only(()), only(NAMES), POLICY, dataclasses.replace(POLICY, enabled=False)):
    rng = np.random.default_rng(5)
    augment(rng, *texture(), SIZE, policy)
    following.add(rng.random())
  assert len(following) == 1


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("flip")])
def test_one_probability_does_not_reshuffle_the_others(name):
  # Applied at a strength that changes nothing, or not applied: the others must come out alike.
  own = {field: bounds for field, bounds in IDENTITY.items() if field.startswith(name)}
  if name == "brightness_contrast":
    own = {field: IDENTITY[field] for field in ("brightness_range", "contrast_range")}
  half = {f"{other}_probability": 0.5 for other in NAMES if other != "clahe"}
  with_it, without = (
    dataclasses.replace(POLICY, **half | own | {f"{name}_probability": p}) for p in (1.0, 0.0)
  )
  for seed in range(8):
    image, mask = run(with_it, *texture(120), seed)
    expected, expected_mask = run(without, *texture(120), seed)
    assert np.mean(mask != expected_mask) < 1e-3
    if name != "clahe":
      assert np.abs(image.astype(int) - expected).max() <= 4


def test_single_augmentations_change_one_thing_each():
  alone = single_augmentations(dataclasses.replace(POLICY, enabled=False))
  assert set(alone) == {*NAMES, *HARD}
  pair = texture()
  for name, policy in alone.items():
    on = [other for other in (*NAMES, *HARD) if getattr(policy, f"{other}_probability") > 0]
    assert on == [name]
    assert getattr(policy, f"{name}_probability") == 1
    assert policy.crop_scale == POLICY.crop_scale
    assert any(np.any(run(policy, *pair, seed)[0] != pair[0]) for seed in range(5))


def test_brightness_is_added_in_full_scale():
  image, mask = texture()
  image = image // 3 + 60
  for amount in (0.1, -0.1):
    fields = {"brightness_range": (amount, amount), "contrast_range": (1.0, 1.0)}
    brighter, _ = run(only(("brightness_contrast",), **fields), image, mask)
    assert brighter.mean() - image.mean() == pytest.approx(255 * amount, abs=1)


def test_contrast_is_a_factor_around_the_mean():
  image, mask = texture()
  image = image // 3 + 60
  for factor in (0.5, 1.5):
    fields = {"brightness_range": (0.0, 0.0), "contrast_range": (factor, factor)}
    changed, _ = run(only(("brightness_contrast",), **fields), image, mask)
    assert changed.std() == pytest.approx(factor * image.std(), rel=0.02)
    assert changed.mean() == pytest.approx(image.mean(), abs=1)


def test_gamma_bends_the_greys_and_keeps_black_and_white():
  image = np.full((SIZE, SIZE, 3), 128, np.uint8)
  image[:4], image[-4:] = 0, 255
  for gamma in (0.7, 1.4):
    bent, _ = run(only(("gamma",), gamma_range=(gamma, gamma)), image, np.zeros_like(image[..., 0]))
    assert np.all(bent[:4] == 0)
    assert np.all(bent[-4:] == 255)
    assert np.all(bent[8:-8] == round(255 * (128 / 255) ** gamma))


def test_clahe_raises_the_contrast_of_a_flat_picture():
  image, mask = texture(192)
  faint = image // 8 + np.uint8([150, 110, 90])
  clear, _ = run(only(("clahe",), clahe_clip_limit=(3.0, 3.0)), faint, mask, size=192)

  def local_contrast(picture):
    grey = picture.mean(axis=2)
    return np.mean([tile.std() for row in np.split(grey, 8) for tile in np.split(row, 8, axis=1)])

  assert local_contrast(clear) > 1.5 * local_contrast(faint)
  tints = [np.diff(picture.mean(axis=(0, 1))) for picture in (faint, clear)]
  np.testing.assert_allclose(*tints, atol=8)


def test_noise_has_the_standard_deviation_asked_for():
  grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
  mask = np.zeros((SIZE, SIZE), np.uint8)
  for std in (0.02, 0.04):
    noisy, _ = run(only(("noise",), noise_std=(std, std)), grey, mask)
    assert noisy.std() == pytest.approx(255 * std, rel=0.03)
    assert noisy.mean() == pytest.approx(128, abs=0.5)
    assert abs(np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1]) < 0.05
  assert np.any(noisy != run(only(("noise",), noise_std=(0.04, 0.04)), grey, mask, seed=1)[0])
  edges = run(only(("noise",), noise_std=(0.3, 0.3)), np.uint8([0, 255])[grey // 129], mask)[0]
  assert np.all(edges <= 255) and np.mean(edges == 0) > 0.4  # clipped at black, not wrapped round


def test_blur_is_a_fraction_of_the_side():
  spread = []
  for size in (64, 128):
    point = np.zeros((size, size, 3), np.uint8)
    point[size // 2 - 4 : size // 2 + 4] = 200
    policy = only(("blur",), blur_sigma=(0.03, 0.03))
    blurred, _ = run(policy, point, point[..., 0], size=size)
    steepest = [np.abs(np.diff(p[:, 0, 0].astype(float))).max() for p in (point, blurred)]
    assert steepest[1] < 0.5 * steepest[0]
    edge = np.zeros((size, size, 3), np.uint8)
    edge[size // 2 :] = 200
    profile = run(policy, edge, edge[..., 0], size=size)[0][:, 0, 0].astype(float)
    weights = np.diff(profile) / 200
    where = np.arange(size - 1) - np.sum(weights * np.arange(size - 1))
    spread.append(np.sqrt(np.sum(weights * where**2)) / size)
  assert spread == pytest.approx([0.03, 0.03], rel=0.1)


def test_fine_hair_in_a_large_photograph_does_not_alias():
  stripes = np.zeros((900, 1200, 3), np.uint8)
  stripes[:, ::2] = 200
  for name in ("rotate", "crop", "scale", "elastic"):
    image, _ = run(only((name,)), stripes, stripes[..., 0] // 200)
    assert np.abs(image.astype(int) - 100).max() < 15


def test_resize_averages_the_side_that_shrinks_though_the_other_grows():
  stripes = np.zeros((20, 600, 3), np.uint8)
  stripes[:, ::3] = 201
  assert np.abs(resize_image(stripes, 60, 100).astype(int) - 67).max() <= 1


@pytest.mark.parametrize("size", (32, 75, 300))
def test_resized_mask_is_aligned_with_the_resized_picture(size):
  image, mask = lesion(150, 200)
  small, small_mask = resize_image(image, size, size), resize_mask(mask, size, size)
  assert set(np.unique(small_mask)) == {0, 1}
  assert np.mean((small[..., 0] >= 120) != small_mask) < 1e-3
  assert small_mask.mean() == pytest.approx(mask.mean(), rel=0.03)
  assert mask_coverage(mask, size, size).mean() / 255 == pytest.approx(mask.mean(), rel=0.01)


def test_reversed_channels_and_read_only_arrays_are_accepted():
  image, mask = texture(120)
  locked = image[..., ::-1]
  locked.setflags(write=False)
  got, _ = run(only(NAMES), locked, mask)
  np.testing.assert_array_equal(got, run(only(NAMES), np.ascontiguousarray(locked), mask)[0])


def test_unusable_arrays_are_refused():
  image, mask = texture()
  with pytest.raises(ValueError, match="differ in size"):
    run(POLICY, image, mask[:-1])
  with pytest.raises(ValueError, match="image must be"):
    run(POLICY, image.astype(np.float32), mask)
  with pytest.raises(ValueError, match="mask must be"):
    run(POLICY, image, mask[..., None])


@pytest.mark.parametrize(
  "field",
  [
    {"crop_probability": 1.5},
    {"noise_std": (0.1, 0.0)},
    {"scale_range": (0.0, 1.0)},
    {"crop_scale": (0.5, 1.2)},
    {"elastic_grid": 1},
  ],
)
def test_an_invalid_policy_is_refused_naming_the_field(field):
  with pytest.raises(InputError, match=next(iter(field))):
    dataclasses.replace(POLICY, **field)
