"""Time to go: right from the second batch on, whatever compiling and the first batch took."""

import pytest

from medlitenet_jax.training.forecast import Forecast, spoken
from medlitenet_jax.training.run import Plan

PLAN = Plan(
  total_steps=47,
  num_cases=20,
  batch_size=4,
  image_sizes=(64, 96, 128),
  log_every_steps=1,
  validate_every_steps=10,
)


def test_what_is_left_is_what_the_loop_will_do():
  for step in range(PLAN.total_steps + 1):
    sizes = [PLAN.image_size_at(later) for later in range(step, PLAN.total_steps)]
    assert PLAN.batches_left(step) == {size: sizes.count(size) for size in dict.fromkeys(sizes)}
    due = [PLAN.validation_due(later) for later in range(step + 1, PLAN.total_steps + 1)]
    assert PLAN.validations_left(step) == sum(due)


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
