"""Speed of the platform's form against plain convolutions, measured side by side in one run."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax import report
from medlitenet_jax.inference import create_predict
from medlitenet_jax.models.ops import FORMS
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.state import DTYPES, create_state
from medlitenet_jax.train import create_run_optimizer, create_train_step

ROUNDS = 7
MATMUL_SIDE = 2048


def time_interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
  """Times several calls in turn, so that a change of the machine's speed meets all of them alike.

  Args:
    calls: by name; each returns what has to be waited for.
    rounds: times each is called after a first call that is not counted.

  Returns:
    Median seconds of each.
  """
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for number in tqdm(range(rounds + 1), unit="round", leave=False):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      if number:
        seconds[name].append(time.perf_counter() - start)
  return {name: float(np.median(values)) for name, values in seconds.items()}


def benchmark(config: ConfigDict, output: Path) -> None:
  """Times forward pass and training step in both forms, at every size of `train.image_sizes`.

  Args:
    config: resolved.
    output: folder that receives `benchmark.json`.
  """
  matrix = jnp.ones((MATMUL_SIDE, MATMUL_SIDE), jnp.float32)
  product = jax.jit(jnp.matmul)
  calls: dict[str, Callable[[], Any]] = {"matmul": lambda: product(matrix, matrix)}
  for size in config.train.image_sizes:
    for form in FORMS:
      calls |= _calls(config, size, form)
  seconds = time_interleaved(calls, ROUNDS)

  rows = []
  for size in config.train.image_sizes:
    for task, images in _tasks(config):
      rates = {form: images / seconds[f"{task} {size} {form}"] for form in FORMS}
      rows.append(
        {
          "task": task,
          "image_size": size,
          "batch": images,
          "images_per_second": rates["platform"],
          "images_per_second_library": rates["library"],
          "ratio": rates["platform"] / rates["library"],
        }
      )
  flops = 2 * MATMUL_SIDE**3 / seconds["matmul"]
  result = {
    "device": jax.devices()[0].device_kind,
    "machine": platform.machine(),
    "cores": os.cpu_count(),
    "precision": config.precision,
    "matmul_float32_gflops": flops / 1e9,
    "rows": rows,
  }
  output.mkdir(parents=True, exist_ok=True)
  (output / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n")
  columns = ("task", "size", "batch", "images/s", "plain form", "ratio")
  print(f"float32 matrix product in the same run: {flops / 1e9:.0f} GFLOP/s")
  print(report.table(columns, [_cells(row) for row in rows]))
  print(f"Figures: {output / 'benchmark.json'}")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  return (
    row["task"],
    str(row["image_size"]),
    str(row["batch"]),
    f"{row['images_per_second']:.1f}",
    f"{row['images_per_second_library']:.1f}",
    f"{row['ratio']:.1f}x",
  )


def _tasks(config: ConfigDict) -> list[tuple[str, int]]:
  """Name and batch of what is timed."""
  return [("forward", 1), ("train", config.train.batch_size)]


def _calls(config: ConfigDict, size: int, form: str) -> dict[str, Callable[[], Any]]:
  """What is timed of one form at one size, each with its own state."""
  model = create_model({**config.model.to_dict(), "form": form}, DTYPES[config.precision])
  tx, _ = create_run_optimizer(config.optim, total_steps=1000)
  state = create_state(model, tx, config.seed, config.precision)
  step, predict = create_train_step(config, model, tx), create_predict([(model, size)])
  rng = np.random.default_rng(config.seed)
  batch = config.train.batch_size
  image = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
  mask = rng.integers(0, 2, (batch, size, size, 1), np.uint8)
  variables = jax.tree.map(jnp.copy, state.ema_variables)

  def train():
    nonlocal state
    state, figures = step(state, image, mask)
    return figures

  return {
    f"forward {size} {form}": lambda: predict([variables], {size: image[:1]}),
    f"train {size} {form}": train,
  }
