"""Tells whether two runs are the same, bit for bit."""

import json

import numpy as np
import orbax.checkpoint as ocp

# The figures that may differ between equal runs.
SPEED = {"images_per_second", "waiting_share", "logging_share"}


def saved_state(workdir, step):
  """A checkpoint as it lies on disk, without asking the code under test."""
  path = workdir / "checkpoints" / str(step) / "state"
  return ocp.StandardCheckpointer().restore(path.absolute())


def flat(tree, prefix=""):
  if isinstance(tree, dict | list | tuple):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for name, value in items for k, v in flat(value, f"{prefix}/{name}").items()}
  return {} if tree is None else {prefix: np.asarray(tree)}


def assert_identical(actual, expected):
  actual, expected = flat(actual), flat(expected)
  assert actual.keys() == expected.keys()
  for name, value in actual.items():
    assert value.dtype == expected[name].dtype, name
    np.testing.assert_array_equal(value, expected[name], err_msg=name)


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_speed(rows):
  return [{name: value for name, value in row.items() if name not in SPEED} for row in rows]
