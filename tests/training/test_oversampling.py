"""Oversampling: which cases come more often in an epoch, and that each time is another view."""

import numpy as np
from small_runs import create_stub, resolved

from medlitenet_jax.data.cases import Case
from medlitenet_jax.training.oversampling import with_faint_repeated
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
  repeated = with_faint_repeated(discs, 3, num_threads=2)
  counts = {name: list(repeated.case_ids).count(name) for name in discs.case_ids}
  assert counts == {name: 3 if name in FAINT else 1 for name in discs.case_ids}
  assert [repeated[i].index for i in range(len(repeated))] == list(range(12 + 8))
  for i, name in enumerate(repeated.case_ids):
    np.testing.assert_array_equal(repeated[i].image, discs[int(name[4:])].image)


def test_once_each_is_the_source_itself():
  discs = Discs()
  assert with_faint_repeated(discs, 1, num_threads=1) is discs


def test_an_epoch_holds_the_repetitions_as_other_views():
  config = resolved(train__low_contrast_repeats=2, train__batch_size=16, train__image_sizes=(64,))
  run = create_run(config, create_stub(None, np.float32), Discs())
  assert run.plan.num_cases == 16
  batch = next(run.batches)
  twice = [name for name in set(batch["case_id"]) if batch["case_id"].count(name) == 2]
  assert len(batch["case_id"]) == 16 and sorted(twice) == sorted(FAINT)
  for name in twice:
    one, other = (i for i, other in enumerate(batch["case_id"]) if other == name)
    assert np.any(batch["image"][one] != batch["image"][other])
