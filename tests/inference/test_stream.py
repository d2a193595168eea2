"""Networks on a source: batches, padding and sizes change nothing that they should not."""

import numpy as np
import pytest
from small_runs import (
  SIZES,
  compiled_as_by_launch,
  finished_run,
  network_of,
  resolved,
  write_sizes,
)

from medlitenet_jax.data.sources import create_source
from medlitenet_jax.inference.networks import Network, create_predict
from medlitenet_jax.inference.stream import predict_cases


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
  """A folder with a test split of six photographs of six sizes, as the configuration names it."""
  root = write_sizes(tmp_path_factory.mktemp("photographs"))
  return {"data__source": "folder", "data__root": str(root)}


def brightness(*sizes, tta="none"):
  """Networks outside JAX, whose probability of a pixel is its brightness."""

  def probs(image):
    return np.asarray(image).mean(axis=-1, dtype=np.float32) / np.float32(255)

  return create_predict([Network(probs, size, weight=1 / len(sizes)) for size in sizes], tta)


def maps_of(predict, sizes, **settings):
  config = resolved(**settings)
  source = create_source(config.data, "test", 0)
  return {
    case.case_id: (maps.probs, maps.disagreement, case)
    for case, maps in predict_cases(predict, source, sizes, config)
  }


@pytest.mark.parametrize("batch_size", [1, 4, 6, 16])
def test_batch_and_padding_change_nothing(fields, batch_size):
  maps = maps_of(brightness(96), [96], **fields, eval__batch_size=batch_size)
  others = maps_of(brightness(96), [96], **fields, eval__batch_size=2)
  assert list(maps) == sorted(SIZES) and maps.keys() == others.keys()
  for case_id, (probs, _, case) in maps.items():
    np.testing.assert_array_equal(probs, others[case_id][0])
    assert case.mask.shape == SIZES[case_id]


def test_members_of_several_sizes_see_their_own(fields):
  """The mean of two sizes has the larger one, and lies between what either says."""
  maps = maps_of(brightness(64, 96), [64, 96], **fields)
  small, large = (maps_of(brightness(size), [size], **fields) for size in (64, 96))
  for case_id, (probs, disagreement, case) in maps.items():
    assert probs.shape == disagreement.shape == (96, 96) and case.image.shape == (96, 96, 3)
    assert probs.mean() == pytest.approx(
      (small[case_id][0].mean() + large[case_id][0].mean()) / 2, abs=1e-3
    )
    assert disagreement.mean() > 0


def test_six_views_of_what_does_not_turn_agree(fields):
  maps = maps_of(brightness(96, tta="six"), [96], **fields)
  plain = maps_of(brightness(96), [96], **fields)
  for case_id, (probs, disagreement, _) in maps.items():
    np.testing.assert_allclose(probs, plain[case_id][0], atol=1e-6)
    assert disagreement.max() < 1e-3


def test_a_case_does_not_see_the_others_of_its_batch(fields):
  """The trained network gives a case the same map whatever stands beside it in the batch."""
  network = network_of(finished_run(), resolved(**fields))
  with compiled_as_by_launch():
    predict = create_predict([network])
    all_six, five = (
      maps_of(predict, [96], **fields, data__max_eval_images=limit) for limit in (0, 5)
    )
  assert len(all_six) == 6 and len(five) == 5
  for case_id, (probs, disagreement, _) in five.items():
    np.testing.assert_array_equal(probs, all_six[case_id][0])
    assert not disagreement.any()


def test_networks_see_what_the_configuration_cleans(fields):
  """The map of a network that says a photograph's brightness follows the cleaning."""
  plain = maps_of(brightness(96), [96], **fields)
  cleaned = maps_of(brightness(96), [96], **fields, preprocess__color_constancy="shades_of_grey")
  for case_id, (probs, _, case) in cleaned.items():
    assert np.any(probs != plain[case_id][0])
    np.testing.assert_array_equal(case.image, plain[case_id][2].image)
    np.testing.assert_array_equal(case.mask, plain[case_id][2].mask)
