"""Time to go: right from the second batch on, whatever compiling and the first batch took."""

import dataclasses

import pytest

from medlitenet_jax.training.forecast import Forecast, spoken
from medlitenet_jax.training.run import Plan

PLAN = Plan(
  total_steps=47,
  num_cases=20,
  batch_size=4,
  image_sizes=(64, 96, 128),
  mixed_sizes=False,
  seed=0,
  log_every_steps=1,
  validate_every_steps=10,
)


@pytest.mark.parametrize(
  "plan", [PLAN, dataclasses.replace(PLAN, mixed_sizes=True, image_sizes=(64, 96, 96, 128))]
)
def test_what_is_left_is_what_the_loop_will_do(plan):
  for step in range(plan.total_steps + 1):
    sizes = [plan.image_size_at(later) for later in range(step, plan.total_steps)]
    assert plan.batches_left(step) == {size: sizes.count(size) for size in set(sizes)}
    due = [plan.validation_due(later) for later in range(step + 1, plan.total_steps + 1)]
    assert plan.validations_left(step) == sum(due)


def test_mixed_sizes_take_turns_in_an_order_of_the_seed():
  def sizes(seed):
    plan = dataclasses.replace(PLAN, mixed_sizes=True, seed=seed)
    return [plan.image_size_at(step) for step in range(60)]

  for start in range(0, 60, 3):
    assert sorted(sizes(0)[start : start + 3]) == [64, 96, 128]
  assert sizes(0) == sizes(0) != sizes(1)
  assert len({tuple(sizes(0)[start : start + 3]) for start in range(0, 60, 3)}) > 3


def seconds_of(size):
  return 0.5 * (size / 64) ** 2


def test_it_is_right_from_the_second_batch_on():
  forecast = Forecast(PLAN, num_validated=12, eval_size=128)
  assert forecast.seconds_left(0) is None
  forecast.compiling_took(64, 30.0)
  forecast.batch_took(64, 9.0)  # the first is slow
  forecast.batch_took(64, seconds_of(64))
  forward = seconds_of(128) * 12 / 4 / 3
  batches = sum(n * seconds_of(size) for size, n in PLAN.batches_left(2).items())
  expected = batches + PLAN.validations_left(2) * forward + 2 * 30  # two sizes to be compiled
  assert forecast.seconds_left(2) == pytest.approx(expected)
  # What is measured takes the place of what was supposed.
  forecast.validation_took(7.0)
  for size in (96, 128):
    forecast.compiling_took(size, 1.0)
  expected = batches + PLAN.validations_left(2) * 7.0
  assert forecast.seconds_left(2) == pytest.approx(expected)
  assert forecast.seconds_left(PLAN.total_steps) == 0


def test_recent_batches_count():
  forecast = Forecast(PLAN, num_validated=1, eval_size=64)
  for seconds in (*[5.0] * 50, *[1.0] * 200):
    forecast.batch_took(64, seconds)
  assert forecast.batch_seconds(64) == pytest.approx(1.0)


def test_durations_in_words():
  assert [spoken(s) for s in (0.2, 42, 99, 700, 12_000, 400_000)] == [
    *("1 s", "42 s", "99 s", "12 min", "3 h 20 min", "4 days 15 h")
  ]
