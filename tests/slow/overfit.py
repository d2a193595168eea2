"""Whether every network learns 16 photographs by heart, and trains in half precision.

    PYTHONPATH=.:examples python tests/slow/overfit.py FOLDER overfit.json

FOLDER has images/ and masks/. Without augmentation and at the rate of the recipe, each network
learns from 16 photographs in one batch until it outlines them, in inference mode, with a mean Dice
over 0.95; in bfloat16 it takes a few steps, whose losses must be finite and fall. Prints a line for
each and keeps it in the file, so that an interrupted call goes on. Ends with status 1 if one fails.
"""

import argparse
import importlib
import json
import math
import sys
import time
from pathlib import Path

import jax
import numpy as np
from table1 import NETWORKS, network_fields, recipe_file

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.sources import SomeCases, create_source
from medlitenet_jax.models.forward import lesion_probs
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.system import devices, process
from medlitenet_jax.system.files import replace_file
from medlitenet_jax.training.run import create_run

CASES, EVERY, HALF_STEPS = 16, 20, 30


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("data", type=Path)
  parser.add_argument("output", type=Path)
  parser.add_argument("--networks", default=",".join(NETWORKS))
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--steps", type=int, default=600, help="the most that a network may take")
  options = parser.parse_args()
  found = json.loads(options.output.read_text()) if options.output.exists() else {}
  for name in options.networks.split(","):
    for precision, learn in (("float32", by_heart), ("bfloat16", in_half)):
      key = f"{name} {precision}"
      if key not in found:
        found[key] = learn(name, precision, options)
        replace_file(options.output, json.dumps(found, indent=2) + "\n")
      print(key, found[key], flush=True)
      jax.clear_caches()
  sys.exit(not all(result["passed"] for result in found.values()))


def begin(name, precision, options):
  """The model, the run, and its only batch."""
  config = importlib.import_module(f"configs.{recipe_file(name).replace('/', '.')}").get_config()
  fields = {
    **network_fields(name, options.size),
    "precision": precision,
    "augment.enabled": False,
    "optim.accumulation": 1,
    "data.source": "folder",
    "data.root": str(options.data),
    "train.batch_size": CASES,
    "train.max_steps": options.steps,
    "optim.warmup_updates": 20,
    "data.augment_on": "host",
  }
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  config = config_lib.resolve(config, devices.platform())
  model = create_model(config.model.to_dict(), DTYPES[precision])
  source = create_source(config.data, "train", 0, to_score=False)
  run = create_run(config, model, SomeCases([(source, number) for number in range(CASES)]))
  batch = next(run.batches)
  batch.pop("case_id")
  return model, run, batch


def by_heart(name, precision, options):
  model, run, batch = begin(name, precision, options)
  predict = jax.jit(lambda variables, image: lesion_probs(model, variables, image))
  state, start, dice = run.initialise(), time.perf_counter(), 0.0
  for step in range(1, options.steps + 1):
    state, figures = run.step(state, batch, run.numbers)
    if step % EVERY == 0:
      own = {"params": state.params, "batch_stats": state.batch_stats}
      probs = np.asarray(predict(own, batch["image"]))[..., None]
      masks = zip(probs > 0.5, batch["targets"]["mask"] > 0, strict=True)
      dice = float(np.mean([2 * np.sum(a & b) / (np.sum(a) + np.sum(b)) for a, b in masks]))
      if dice > 0.95:
        break
  seconds = time.perf_counter() - start
  loss = float(figures["loss"])
  result = {"passed": dice > 0.95, "dice": dice, "steps": step, "loss": loss}
  return {**result, "seconds": round(seconds)}


def in_half(name, precision, options):
  _, run, batch = begin(name, precision, options)
  state, losses = run.initialise(), []
  for _ in range(HALF_STEPS):
    state, figures = run.step(state, batch, run.numbers)
    losses.append(float(figures["loss"]))
  finite = all(map(math.isfinite, losses)) and int(state.skipped) == 0
  return {"passed": finite and losses[-1] < losses[0], "losses": [losses[0], losses[-1]]}


if __name__ == "__main__":
  process.set_up_compiler()
  main()
