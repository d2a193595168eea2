"""Augmentation on the device gives the same views as on the host, from the same draws."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_pairs import POLICY, SIZE, pairs
from small_runs import resolved

from configs.base import get_config
from medlitenet_jax.config import resolve
from medlitenet_jax.data.augment.geometry import augment, single_augmentations
from medlitenet_jax.data.augment.on_device import ON_HOST, pack_view, unpack_views
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.pipeline import train_batches
from medlitenet_jax.data.sources import SyntheticSource
from medlitenet_jax.system.errors import InputError

ALONE = {n: p for n, p in single_augmentations(POLICY).items() if n not in ON_HOST}
NOISELESS = dataclasses.replace(POLICY, noise_probability=0.0)


def on_device(photographs, policy, seed=0, size=SIZE):
  views = [
    pack_view(np.random.default_rng((seed, i)), *pair, size, policy)
    for i, pair in enumerate(photographs)
  ]
  batch = {name: np.stack([view[name] for view in views]) for name in views[0]}
  return jax.device_get(jax.jit(lambda arrays: unpack_views(arrays, policy))(batch))


def on_host(photographs, policy, seed=0, size=SIZE):
  views = [
    augment(np.random.default_rng((seed, i)), *pair, size, policy)
    for i, pair in enumerate(photographs)
  ]
  return [np.stack(arrays) for arrays in zip(*views, strict=True)]


def assert_alike(photographs, policy, levels, pixels=0.004, **settings):
  image, mask = on_device(photographs, policy, **settings)
  expected, expected_mask = on_host(photographs, policy, **settings)
  assert image.dtype == mask.dtype == np.uint8
  assert image.shape == expected.shape and mask.shape == (*expected_mask.shape, 1)
  assert np.abs(image.astype(int) - expected).mean((1, 2, 3)).max() < levels
  assert (mask[..., 0] != expected_mask).mean((1, 2)).max() < pixels


@pytest.mark.parametrize("name", [name for name in ALONE if name != "noise"])
def test_each_augmentation_is_that_of_the_host(name):
  photographs, levels = pairs([(192, 192), (150, 190)]), 1.6 if name == "clahe" else 1.2
  policy = dataclasses.replace(ALONE[name], blur_sigma=(0.03, 0.03))  # smooth already: blur more
  plain, _ = on_host(photographs, dataclasses.replace(policy, enabled=False))
  changed, _ = on_host(photographs, policy)
  assert np.abs(changed.astype(int) - plain).mean((1, 2, 3)).max() > 2 * levels, "shows nothing"
  assert_alike(photographs, policy, levels)


@pytest.mark.parametrize("seed", range(3))
def test_all_together_are_those_of_the_host(seed):
  photographs = pairs([(192, 192), (140, 190), (192, 130), (100, 192)])
  assert_alike(photographs, NOISELESS, 1.8, seed=seed)


def test_photographs_larger_than_the_canvas_or_smaller_than_the_view_give_the_same_view():
  assert_alike(pairs([(300, 420), (60, 80)]), NOISELESS, 2.0)


@pytest.mark.parametrize("name", ["canvas", "matrix", "offset", "bend", "gamma"])
def test_arrays_that_would_broadcast_are_refused(name):
  (pair,) = pairs([(60, 80)])
  view = pack_view(np.random.default_rng(0), *pair, SIZE, POLICY)
  batch = {key: np.stack([value] * 2) for key, value in view.items()}
  batch[name] = batch[name][:1] if name != "canvas" else batch[name][..., :3]
  with pytest.raises(AssertionError, match="assert_shape"):
    jax.eval_shape(lambda arrays: unpack_views(arrays, POLICY), batch)


def test_nothing_drawn_is_the_resize_of_evaluation():
  plain = dataclasses.replace(POLICY, enabled=False)
  assert_alike(pairs([(192, 192), (60, 80)]), plain, 0.5, pixels=0.002)


@pytest.mark.parametrize("name", ["flip_horizontal", "rotate", "elastic"])
def test_the_mask_moves_with_the_photograph(name):
  _, mask = pairs([(192, 192)])[0]
  photograph = np.repeat(mask[..., None] * np.uint8(200) + np.uint8(20), 3, axis=2)
  image, moved = on_device([(photograph, mask)], ALONE[name])
  assert np.mean((image[0, ..., 1] >= 120) != moved[0, ..., 0]) < 2e-3


def test_noise_has_the_standard_deviation_asked_for_and_is_new_for_each_photograph():
  policy = dataclasses.replace(ALONE["noise"], noise_std=(0.04, 0.04))
  grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
  image, _ = on_device([(grey, grey[..., 0] * 0)] * 2, policy)
  for one in image:
    assert one.std() == pytest.approx(255 * 0.04, rel=0.03)
    assert one.mean() == pytest.approx(128, abs=0.5)
  assert abs(np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1]) < 0.05
  again, _ = on_device([(grey, grey[..., 0] * 0)] * 2, policy)
  np.testing.assert_array_equal(again, image)


def test_clahe_is_opencvs_where_a_side_is_no_multiple_of_the_tiles():
  policy = dataclasses.replace(ALONE["clahe"], clahe_tiles=7, clahe_clip_limit=(2.0, 2.0))
  assert_alike(pairs([(240, 240)]), policy, 1.6)


def open_batches(**settings):
  source = SyntheticSource(seed=0, first=0, count=6, image_size=80)
  return train_batches(
    source,
    **{
      "seed": 5,
      "batch_size": 4,
      "image_size_at": lambda step: 32,
      "policy": POLICY,
      "preprocessing": Preprocessing(False, "none"),
      "num_threads": 2,
      "prefetch_batches": 2,
      **settings,
    },
  )


def test_batches_hold_the_same_cases_and_views_for_any_threads():
  packed = open_batches(on_device=True)
  first = [next(packed) for _ in range(3)]
  other = open_batches(on_device=True, num_threads=8)
  host = open_batches()
  unpack = jax.jit(lambda arrays: unpack_views(arrays, POLICY))
  for batch in first:
    again, plain = next(other), next(host)
    assert batch["case_id"] == again["case_id"] == plain["case_id"]
    assert batch["views"]["canvas"].shape == (4, 64, 64, 4) and batch["targets"] == {}
    for name, array in batch["views"].items():
      np.testing.assert_array_equal(array, again["views"][name])
    _, mask = unpack(jax.tree.map(jnp.asarray, batch["views"]))
    assert np.mean(mask != plain["targets"]["mask"]) < 0.01


def test_a_gpu_augments_on_the_device_unless_the_host_has_to():
  config = get_config()
  assert resolve(config, "cpu").data.augment_on == "host"
  assert resolve(config, "gpu").data.augment_on == "device"
  config.augment.hairs_probability = 0.5
  assert resolve(config, "gpu").data.augment_on == "host"
  config.data.augment_on = "device"
  with pytest.raises(InputError, match=r"config\.augment\.hairs_probability .*augment_on=host"):
    resolve(config, "gpu")
  with pytest.raises(InputError, match=r"config\.data\.augment_on takes one of"):
    resolved(**{"data.augment_on": "both"})


def test_opencvs_colours_and_back():
  levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  from medlitenet_jax.data.augment.on_device import _lab_from_rgb, _rgb_from_lab

  lab = np.asarray(_lab_from_rgb(jnp.asarray(levels, jnp.float32)))
  expected = cv2.cvtColor(levels, cv2.COLOR_RGB2LAB).astype(int)
  assert np.mean(lab == expected) > 0.999 and np.abs(lab - expected).max() <= 1
  back = np.asarray(_rgb_from_lab(jnp.asarray(expected, jnp.float32)))
  assert np.abs(back - cv2.cvtColor(np.uint8(expected), cv2.COLOR_LAB2RGB)).mean() < 1
