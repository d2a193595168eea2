"""Batches: complete, repeatable for any number of threads, and resumable in mid-epoch."""

import collections
import dataclasses

import numpy as np
import pytest
from small_runs import create_stub, resolved, write_case, write_splits

from configs.base import get_config
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.images.resize import resize_image, resize_mask
from medlitenet_jax.data.photographs import PhotographSource
from medlitenet_jax.data.pipeline import eval_batches, train_batches
from medlitenet_jax.data.sources import CachedCases, SyntheticSource, create_source
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.run import create_run

POLICY = AugmentPolicy(**get_config().augment)
AS_IT_IS = Preprocessing(hair_removal=False, color_constancy="none")
PLAIN = dataclasses.replace(POLICY, enabled=False)
CASES, BATCH = 10, 4  # five batches make two epochs


def drawings(count=CASES, image_size=40):
  return SyntheticSource(seed=0, first=0, count=count, image_size=image_size)


def folder_source(root, split):
  data = {**get_config().data.to_dict(), "source": "folder", "root": str(root)}
  return create_source(data, split, 0)


def open_train(source=None, **settings):
  defaults = {
    "seed": 5,
    "batch_size": BATCH,
    "image_size_at": lambda step: 32,
    "preprocessing": AS_IT_IS,
    "policy": POLICY,
    "num_threads": 2,
    "prefetch_batches": 2,
  }
  return train_batches(source or drawings(), **(defaults | settings))


def open_eval(source, **settings):
  defaults = {
    "batch_size": BATCH,
    "image_sizes": [32],
    "preprocessing": AS_IT_IS,
    "num_threads": 2,
    "prefetch_batches": 2,
  }
  return eval_batches(source, **(defaults | settings))


def take(batches, count):
  return [next(batches) for _ in range(count)]


def assert_equal(actual, expected):
  assert len(actual) == len(expected)
  for one, other in zip(actual, expected, strict=True):
    assert list(one["case_id"]) == list(other["case_id"])
    np.testing.assert_array_equal(one["image"], other["image"])
    np.testing.assert_array_equal(one["targets"]["mask"], other["targets"]["mask"])


def rows(batches):
  """Case, image and mask of every row, in order."""
  return [
    row
    for batch in batches
    for row in zip(batch["case_id"], batch["image"], batch["targets"]["mask"], strict=True)
  ]


def test_shapes_and_values():
  batch = next(open_train())
  assert batch["image"].shape == (BATCH, 32, 32, 3) and batch["image"].dtype == np.uint8
  assert (
    batch["targets"]["mask"].shape == (BATCH, 32, 32, 1)
    and batch["targets"]["mask"].dtype == np.uint8
  )
  assert set(np.unique(batch["targets"]["mask"])) == {0, 1}
  assert len(batch["case_id"]) == BATCH


@pytest.mark.parametrize(("num_threads", "prefetch_batches"), [(1, 1), (8, 1), (8, 9)])
def test_threads_change_nothing(num_threads, prefetch_batches):
  batches = open_train(num_threads=num_threads, prefetch_batches=prefetch_batches)
  assert_equal(take(batches, 7), take(open_train(), 7))


@pytest.mark.parametrize("limit", [0, 3 * 4 * 40**2, 2**30])  # none, three of ten, all
def test_keeping_decoded_cases_changes_nothing(limit):
  plain, cached = take(open_train(), 6), take(open_train(CachedCases(drawings(), limit)), 6)
  assert_equal(plain, cached)


@pytest.mark.parametrize("cache_gib", [0.0, 1.0])
def test_training_decodes_a_case_once_if_it_may_be_kept(cache_gib):
  config = resolved(data__cache_gib=cache_gib, data__num_threads=1, data__prefetch_batches=1)
  read = []

  class Recorded(SyntheticSource):
    def __getitem__(self, index):
      read.append(index)
      return super().__getitem__(index)

  source = Recorded(seed=0, first=0, count=8, image_size=40)
  take(create_run(config, create_stub(), source).batches, 6)
  if cache_gib:
    assert sorted(read) == list(range(8))
  else:
    assert len(read) >= 6 * config.train.batch_size == 24


def test_seed_changes_order_and_augmentation():
  one, other = (rows(take(open_train(seed=seed), 5)) for seed in (5, 6))
  assert [case_id for case_id, *_ in one] != [case_id for case_id, *_ in other]
  images = [{case_id: image for case_id, image, _ in reversed(drawn)} for drawn in (one, other)]
  assert all(np.any(images[0][case_id] != images[1][case_id]) for case_id in images[0])


@pytest.mark.parametrize("batch_size", [4, 5, 7, 16])
def test_every_case_once_an_epoch_across_batches(batch_size):
  drawn = rows(take(open_train(batch_size=batch_size), 30 // batch_size + 1))
  case_ids = [case_id for case_id, *_ in drawn]
  for epoch in range(3):
    assert sorted(case_ids[epoch * CASES : (epoch + 1) * CASES]) == drawings().case_ids


def test_the_next_epoch_has_another_order_and_augmentation():
  drawn = rows(take(open_train(), 10))
  epochs = [drawn[i * CASES : (i + 1) * CASES] for i in range(4)]
  orders = {tuple(case_id for case_id, *_ in epoch) for epoch in epochs}
  assert len(orders) == 4
  versions = collections.defaultdict(set)
  for case_id, image, _ in drawn:
    versions[case_id].add(image.tobytes())
  assert all(len(images) == 4 for images in versions.values())


def test_the_augmentation_of_a_case_does_not_depend_on_its_batch():
  small, large = rows(take(open_train(batch_size=2), 10)), rows(take(open_train(batch_size=5), 4))
  for (one_id, one_image, one_mask), (case_id, image, mask) in zip(small, large, strict=True):
    assert one_id == case_id
    np.testing.assert_array_equal(one_image, image)
    np.testing.assert_array_equal(one_mask, mask)


def test_without_augmentation_cases_are_only_resized():
  source = drawings()
  for case_id, image, mask in rows(take(open_train(policy=PLAIN), 5)):
    case = source[source.case_ids.index(case_id)]
    np.testing.assert_array_equal(image, resize_image(case.image, 32, 32))
    np.testing.assert_array_equal(mask[..., 0], resize_mask(case.mask, 32, 32))


@pytest.mark.parametrize("seen", [0, 1, 2, 3, 6])
def test_saved_position_gives_the_batches_that_would_have_followed(seen):
  batches = open_train()
  take(batches, seen)
  state = batches.get_state()
  expected = take(batches, 5)
  resumed = open_train(num_threads=5, prefetch_batches=3)
  resumed.set_state(state)
  assert_equal(take(resumed, 5), expected)


@pytest.mark.parametrize("processes", [2, 4])
def test_rows_of_all_processes_are_the_batch(processes):
  whole = take(open_train(), 5)
  share = BATCH // processes
  rows_of = [range(p * share, (p + 1) * share) for p in range(processes)]
  parts = [take(open_train(rows=rows, num_threads=p + 1), 5) for p, rows in enumerate(rows_of)]
  for number, batch in enumerate(whole):
    own = [part[number] for part in parts]
    assert [name for part in own for name in part["case_id"]] == batch["case_id"]
    for given in (lambda part: part["image"], lambda part: part["targets"]["mask"]):
      np.testing.assert_array_equal(np.concatenate([given(part) for part in own]), given(batch))


def test_position_saved_by_one_process_is_that_of_each():
  batches = open_train()
  take(batches, 3)
  expected = next(open_after(batches.get_state(), rows=range(2, 4)))
  whole = next(batches)
  assert expected["case_id"] == whole["case_id"][2:]
  np.testing.assert_array_equal(expected["image"], whole["image"][2:])


def open_after(state, **settings):
  batches = open_train(**settings)
  batches.set_state(state)
  return batches


def test_processes_read_only_their_own_cases():
  read = []

  class Noting(SyntheticSource):
    def __getitem__(self, index):
      read.append(index)
      return super().__getitem__(index)

  source = Noting(seed=0, first=0, count=9, image_size=40)
  batches = list(open_eval(source, rows=range(2, 4)))
  assert [[case.index for case in batch.cases] for batch in batches] == [[2, 3], [6, 7], []]
  assert sorted(read) == [2, 3, 6, 7]
  assert all(batch.images[32].shape == (2, 32, 32, 3) for batch in batches)
  assert not batches[-1].images[32].any()


def test_image_sizes_switch_at_their_batch():
  sizes = [32, 32, 32, 64, 64, 96, 96]
  batches = open_train(image_size_at=lambda step: sizes[step], num_threads=4, prefetch_batches=3)
  assert [batch["image"].shape[1] for batch in take(batches, 7)] == sizes
  batches = open_train(image_size_at=lambda step: sizes[step])
  masks = [batch["targets"]["mask"].shape for batch in take(batches, 7)]
  assert masks == [(BATCH, size, size, 1) for size in sizes]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 10])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_evaluation_drops_no_case(count, num_threads):
  source = drawings(count)
  batches = list(open_eval(source, image_sizes=[48, 32], num_threads=num_threads))
  assert len(batches) == -(-count // 4)
  assert [case.case_id for batch in batches for case in batch.cases] == source.case_ids
  for number, batch in enumerate(batches):
    assert set(batch.images) == {32, 48}
    for size, images in batch.images.items():
      assert images.shape == (4, size, size, 3) and images.dtype == np.uint8
      assert not images[len(batch.cases) :].any()
    for row, given in enumerate(batch.cases):
      case = source[number * 4 + row]
      for size, images in batch.images.items():
        np.testing.assert_array_equal(images[row], resize_image(case.image, size, size))
      np.testing.assert_array_equal(given.image, resize_image(case.image, 48, 48))
      np.testing.assert_array_equal(given.mask, case.mask)


def test_evaluation_keeps_masks_at_their_own_sizes(tmp_path):
  sizes = {"a": (50, 40), "b": (33, 90), "c": (64, 64)}
  for number, (case_id, size) in enumerate(sizes.items()):
    write_case(tmp_path, case_id, number, size)
  write_splits(tmp_path, dict.fromkeys(sizes, "test"))
  source = folder_source(tmp_path, "test")
  batches = open_eval(source, batch_size=2, prefetch_batches=1)
  masks = [case.mask for batch in batches for case in batch.cases]
  assert [mask.shape for mask in masks] == list(sizes.values())
  for mask, index in zip(masks, range(3), strict=True):
    np.testing.assert_array_equal(mask, source[index].mask)


@pytest.mark.parametrize("size", [(60, 90), (540, 700)])
def test_training_and_evaluation_give_the_network_the_same_pixels(tmp_path, size):
  """Small and large photographs, from a folder of cases and as files to predict."""
  cleaning = Preprocessing(hair_removal=True, color_constancy="shades_of_grey")
  for number, case_id in enumerate("abcd"):
    write_case(tmp_path, case_id, number, size)
  write_splits(tmp_path, dict.fromkeys("abcd", "train"))
  source = folder_source(tmp_path, "train")
  trained = rows(take(open_train(source, policy=PLAIN, preprocessing=cleaning), 1))
  (batch,) = open_eval(source, preprocessing=cleaning)
  paths = sorted((tmp_path / "images").iterdir())
  (predicted,) = open_eval(
    PhotographSource(paths, {path: path.stem for path in paths}), preprocessing=cleaning
  )
  np.testing.assert_array_equal(batch.images[32], predicted.images[32])
  seen = {case.case_id: image for case, image in zip(batch.cases, batch.images[32], strict=True)}
  for case_id, image, mask in trained:
    case = source[source.case_ids.index(case_id)]
    np.testing.assert_array_equal(image, seen[case_id])
    assert np.any(image != resize_image(case.image, 32, 32))
    # Resizing in two steps may move the border within a pixel.
    assert np.mean(mask[..., 0] != resize_mask(case.mask, 32, 32)) < 0.01
  for given in batch.cases:
    case = source[given.index]
    np.testing.assert_array_equal(given.mask, case.mask)
    np.testing.assert_array_equal(given.image, resize_image(case.image, 32, 32))
  for given in predicted.cases:
    np.testing.assert_array_equal(given.view, source[given.index].image)


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_photograph_truncated_after_its_header_is_refused_by_name(tmp_path, kind):
  for number, case_id in enumerate("abcdef"):
    write_case(tmp_path, case_id, number, suffix="jpg")
  write_splits(tmp_path, dict.fromkeys("abcdef", "train"))
  path = tmp_path / "images" / "e.jpg"
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  source = folder_source(tmp_path, "train")
  if kind == "train":
    batches = open_train(source, num_threads=3)
  else:
    batches = open_eval(source, num_threads=3)
  with pytest.raises(InputError) as error:
    take(batches, 2)
  assert str(path) in str(error.value)
