"""Operations whose batch is shared out: nothing but sums travels, in either form."""

import json
import os
import subprocess
import sys

import pytest
from small_runs import COMPILATION, ROOT


@pytest.fixture(scope="module")
def compared():
  environment = {
    **os.environ,
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    **{name.upper(): str(value) for name, value in COMPILATION.items()},
  }
  done = subprocess.run(
    [sys.executable, str(ROOT / "tests" / "system" / "sharded_ops.py")],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_gradients_of_kernels_are_all_that_devices_tell_each_other(compared):
  of_network = {name: result for name, result in compared.items() if name != "augment"}
  assert len(of_network) == 19
  for name, (said, error) in of_network.items():
    # The compiler may put sums together; the statistics of a norm are two more.
    assert set(said) == {"all-reduce"} and len(said) <= 3, (name, said)
    assert error < 1e-4, name


def test_augmentation_needs_no_word_between_devices(compared):
  said, error = compared["augment"]
  assert said == []
  assert error <= 1 / 255  # of a level: products of other shapes are summed in another order
