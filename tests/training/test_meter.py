"""The training loop's own measurements, on a clock that the test sets."""

import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.training.meter import Meter


def figures(loss, skipped=0):
  return {"loss": jnp.float32(loss), "skipped": jnp.float32(skipped)}


def one_batch(meter, clock, loss, *, waiting=0.0, step=0.0, logging=0.0, skipped=0):
  clock.now += waiting
  meter.spent_on("waiting")
  clock.now += step
  meter.add(figures(loss, skipped))
  clock.now += logging
  meter.spent_on("logging")


def test_time_goes_to_what_it_was_spent_on(clock):
  meter = Meter(batch_size=4)
  one_batch(meter, clock, 1.0, waiting=1, step=6, logging=0.5)
  one_batch(meter, clock, 3.0, waiting=1, step=1, logging=0.5)
  means = meter.read()
  assert means["loss"] == 2 and means["images_per_second"] == pytest.approx(8 / 10)
  assert means["waiting_share"] == pytest.approx(0.2)
  assert means["logging_share"] == pytest.approx(0.1)


def test_reading_forgets_and_other_work_is_not_counted(clock):
  meter = Meter(batch_size=4)
  one_batch(meter, clock, 1.0, waiting=3, step=1)
  meter.read()
  clock.now += 50  # validation
  meter.restart()
  one_batch(meter, clock, 5.0, step=2)
  means = meter.read()
  assert means["loss"] == 5 and means["waiting_share"] == 0
  assert means["images_per_second"] == pytest.approx(4 / 2)


def test_a_skipped_batch_is_counted_and_spoils_no_mean(clock):
  meter = Meter(batch_size=1)
  one_batch(meter, clock, 1.0, step=1)
  one_batch(meter, clock, float("nan"), step=1, skipped=1)
  one_batch(meter, clock, 3.0, step=1, skipped=1)
  means = meter.read()
  assert means["loss"] == 2 and means["skipped"] == 1
  one_batch(meter, clock, float("inf"), step=1, skipped=2)
  assert np.isnan(meter.read()["loss"])
