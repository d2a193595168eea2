"""Oversampling: which cases come more often in an epoch, and that each time is another view."""

import collections

import numpy as np
import pytest
from small_runs import create_stub, resolved

from medlitenet_jax.data.cases import Case
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.oversampling import FaintRepeated
from medlitenet_jax.training.run import create_run

DARKER = (40, 10, 60, 20, 15, 50, 70, 25, 80, 90, 30, 5)  # than the skin, by case
FAINT = ("disc1", "disc3", "disc4", "disc7")  # not disc11, whose mask is full


class Discs:
  """Discs on even skin."""

  def __init__(self):
    self.case_ids = [f"disc{i}" for i in range(len(DARKER))]

  def __len__(self):
    return len(self.case_ids)

  def __getitem__(self, index):
    y, x = np.mgrid[:64, :64]
    mask = (np.hypot(y - 32, x - 32) < (16 if index < 11 else 64)).astype(np.uint8)
    image = np.full((64, 64, 3), 200, np.uint8)
    image[mask == 1] -= np.uint8(DARKER[index])
    return Case(index, self.case_ids[index], image, mask)


def test_the_faintest_third_comes_more_often():
  discs = Discs()
  repeated = FaintRepeated(discs, 3, num_threads=2)
  assert len(repeated) == 12 + 8
  cases = [repeated[i] for i in range(len(repeated))]
  counts = collections.Counter(case.case_id for case in cases)
  assert counts == {name: 3 if name in FAINT else 1 for name in discs.case_ids}
  assert [case.case_id for case in cases] == list(repeated.case_ids)
  assert [case.index for case in cases] == list(range(len(repeated)))
  for case in cases:
    np.testing.assert_array_equal(case.image, discs[int(case.case_id[4:])].image)


def test_nothing_is_read_until_a_repetition_is_asked_for():
  class Unreadable(Discs):
    def __getitem__(self, index):
      raise InputError("broken.png: cannot be read")

  repeated = FaintRepeated(Unreadable(), 2, num_threads=2)
  assert len(repeated) == 16
  with pytest.raises(InputError, match=r"broken\.png"):
    repeated[12]


def test_an_epoch_holds_the_repetitions_as_other_views():
  config = resolved(train__low_contrast_repeats=2, train__batch_size=16, train__image_sizes=(64,))
  run = create_run(config, create_stub(), Discs())
  assert run.plan.num_cases == 16
  batch = next(run.batches)
  twice = [name for name in set(batch["case_id"]) if batch["case_id"].count(name) == 2]
  assert len(batch["case_id"]) == 16 and sorted(twice) == sorted(FAINT)
  for name in twice:
    one, other = (i for i, other in enumerate(batch["case_id"]) if other == name)
    assert np.any(batch["image"][one] != batch["image"][other])
