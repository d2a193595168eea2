"""How calls are timed, and the whole mode on a reduced network whose times mean nothing."""

import contextlib
import io
import json
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import contents, network_of, resolved

from medlitenet_jax.modes import benchmark, benchmark_loop
from medlitenet_jax.modes.train import train
from medlitenet_jax.speed.timing import time_interleaved


def takes(clock, order, name, *seconds):
  """A call that takes these seconds in turn, the last of them ever after."""
  left = list(seconds)

  def call():
    order.append(name)
    clock.now += left.pop(0) if len(left) > 1 else left[0]
    return jnp.zeros(())

  return call


def test_long_calls_take_turns_and_the_first_is_not_counted(clock):
  order = []
  calls = {
    "a": takes(clock, order, "a", 99, 1, 5, 3),
    "b": takes(clock, order, "b", 7),
  }
  assert time_interleaved(calls, rounds=3) == {"a": 3, "b": 7}
  assert order == ["a", "b"] * 4


def test_short_calls_are_repeated_in_their_turn_after_one_that_is_not_counted(clock):
  order = []
  calls = {"short": takes(clock, order, "short", 0.02), "long": takes(clock, order, "long", 1)}
  seconds = time_interleaved(calls, rounds=2)
  assert seconds["short"] == pytest.approx(0.02) and seconds["long"] == 1
  assert order == ["short", "long", *(["short"] * 6 + ["long"]) * 2]


class Measured(NamedTuple):
  figures: dict
  printed: str
  run_before: dict
  run_after: dict


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  """A benchmark beside a trained run, whose folder is read before and after."""
  workdir, output = (tmp_path_factory.mktemp(name) for name in ("run", "benchmark"))
  fields = {"benchmark__image_sizes": (64, 96), "benchmark__rounds": 1, "eval__tta": "six"}
  config = resolved(**fields)
  with pytest.MonkeyPatch.context() as patch, io.StringIO() as out:
    patch.setattr(benchmark_loop, "PHOTOGRAPHS", {"train": 6, "val": 2})
    patch.setattr(benchmark_loop, "PHOTOGRAPH_SIZE", 80)
    train(config, workdir)
    before = contents(workdir)
    with contextlib.redirect_stdout(out):
      # The weights that a recipe goes on from need not be there: the time is that of any others.
      start = {
        "train__start_from": "w",
        "train__start_partly": True,
        "train__keep_statistics": True,
      }
      recipe = resolved(**fields, **start)
      benchmark.benchmark(recipe, output, (config, [network_of(workdir, config)]))
    printed = out.getvalue()
  figures = json.loads((output / "benchmark.json").read_text())
  return Measured(figures, printed, before, contents(workdir))


def test_every_task_stands_beside_its_floor_and_its_plain_form(measured):
  forward, step = measured.figures["groups"]
  tasks = [(row["task"], row["image_size"], row["batch"]) for row in forward["rows"]]
  assert tasks == [
    (name, size, batch)
    for size in (64, 96)
    for name, batch in (("forward", 1), ("forward", 4), ("six views", 1))
  ]
  assert [(r["task"], r["image_size"], r["batch"]) for r in step["rows"]] == [
    ("training step", 64, 4)
  ]
  rates = forward["matmul_gflops"] * 1e9, forward["copy_gb_per_second"] * 1e9
  for row in forward["rows"]:
    floor = max(row["gflop"] * 1e9 / rates[0], row["gb_moved"] * 1e9 / rates[1])
    assert row["floor_ms"] == pytest.approx(1e3 * floor)
    assert row["floor_share"] == pytest.approx(row["floor_ms"] / row["ms"])
    assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["ms"])
    assert row["memory_bytes"] > 0 and row["cached_compile_seconds"] > 0
  plain = [r for r in (*forward["rows"], *step["rows"]) if r["plain_ms"]]
  assert len(plain) == 3
  assert all(r["times_plain"] == pytest.approx(r["plain_ms"] / r["ms"]) for r in plain)


def test_operations_grow_with_pixels_photographs_and_views(measured):
  rows = {
    (r["task"], r["image_size"], r["batch"]): r for r in measured.figures["groups"][0]["rows"]
  }
  gflop = {key: row["gflop"] for key, row in rows.items()}
  assert gflop["forward", 64, 4] == pytest.approx(4 * gflop["forward", 64, 1], rel=0.05)
  assert gflop["six views", 64, 1] == pytest.approx(6 * gflop["forward", 64, 1])
  assert gflop["forward", 96, 1] == pytest.approx(2.25 * gflop["forward", 64, 1], rel=0.2)


def test_the_profile_divides_the_time_of_a_forward_pass(measured):
  profile, (forward, _) = measured.figures["profile"], measured.figures["groups"]
  assert profile["ms"] == forward["rows"][0]["ms"]
  spent = [part["products_ms"] + part["rest_ms"] for part in profile["parts"]]
  assert sum(spent) == pytest.approx(profile["ms"])
  parts = {part["part"]: part for part in profile["parts"]}
  assert parts["conv"]["products_ms"] > 0 and parts["conv"]["rest_ms"] > 0
  assert parts["head"]["products_ms"] > 0
  counted = sum(part["flops"] for part in measured.figures["parts"]) / 1e6
  assert sum(part["mflop"] for part in profile["parts"]) == pytest.approx(counted)


def test_loop_and_evaluation_are_measured(measured):
  loop, evaluation = measured.figures["loop"], measured.figures["evaluation"]
  shares = [loop[f"{part}_share"] for part in ("waiting", "step", "logging")]
  assert sum(shares) == pytest.approx(1) and all(0 <= share <= 1 for share in shares)
  assert "generated" in measured.figures["data"] and loop["images_per_second"] > 0
  assert evaluation["cases"] == 6 and evaluation["tta"] == "six"
  assert evaluation["share"] == pytest.approx(
    evaluation["images_per_second"] / evaluation["networks_alone_images_per_second"]
  )


def test_a_photograph_takes_as_long_as_its_steps(measured):
  pipeline = measured.figures["pipeline"]
  seconds = {s: 1 / pipeline[f"{s}_images_per_second"] for s in ("decode", "augment", "total")}
  assert pipeline["augment_on"] == "host" and all(value > 0 for value in seconds.values())
  assert seconds["total"] > 0.5 * (seconds["decode"] + seconds["augment"])


def test_the_printout_has_every_part_and_ratio(measured):
  figures, printed = measured.figures, measured.printed
  for words in (
    *(part["name"] for part in figures["parts"]),
    *(ratio["what"] for ratio in figures["ratios"]),
    *(
      "training step",
      "waiting for data",
      "on one core",
      "decode",
      "evaluation of 6 cases",
      "peak memory",
    ),
  ):
    assert words in printed


@pytest.mark.parametrize("augment_on", ["host", "device"])
def test_a_step_that_learns_classes_gets_some(augment_on):
  fields = {"data__augment_on": augment_on, "data__class_column": "kind"}
  batch = benchmark.train_batch(resolved(**fields), 3, 64)
  assert batch["targets"]["class"].shape == (3,) and batch["targets"]["class"].dtype == np.int32
  assert ("mask" in batch["targets"]) == (augment_on == "host")


def test_the_run_that_is_timed_stays_as_it_is(measured):
  assert measured.run_after == measured.run_before
