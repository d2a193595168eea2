"""Times the work around the network: reading photographs, the training loop, an evaluation."""

import contextlib
import csv
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax.data.augment.geometry import augment
from medlitenet_jax.data.augment.on_device import pack_view
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.cases import MASK_SUFFIX, Source
from medlitenet_jax.data.images.image_files import write_mask
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.pipeline import eval_batches
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.data.synthetic import draw_dermoscopy
from medlitenet_jax.inference.networks import Network, create_predict
from medlitenet_jax.inference.outline import mask_rule
from medlitenet_jax.modes.evaluate import score_cases
from medlitenet_jax.modes.train import train
from medlitenet_jax.scores.masks import PLAIN_THRESHOLD
from medlitenet_jax.speed.timing import time_interleaved
from medlitenet_jax.system import devices
from medlitenet_jax.training import log
from medlitenet_jax.training.run import create_plan, create_train_batches

logger = logging.getLogger(__name__)

LOOP_BATCHES = 8
PIPELINE_CASES = 48
SETTLING_BATCHES, TIMED_BATCHES = 4, 12
PHOTOGRAPHS = {"train": 48, "val": 16}  # generated where the recipe's are not at hand
PHOTOGRAPH_SIZE = 512


def with_data_at_hand(config: ConfigDict, scratch: Path) -> tuple[ConfigDict, str]:
  """Shortens a recipe, and generates photographs where its own are not there.

  Args:
    config: resolved.
    scratch: folder that receives generated photographs.

  Returns:
    The recipe for a few batches at the first size, and what its data are.

  Raises:
    InputError: if its photographs cannot be used.
  """
  size = config.benchmark.image_sizes[0]
  short = config.copy_and_resolve_references().unlock()
  # Enough batches that the last lines of the log are of some read after the step was compiled.
  uncounted = math.ceil((config.data.prefetch_batches + 1) / LOOP_BATCHES)
  short.train.update(
    image_sizes=(size,),
    max_steps=(uncounted + 1) * LOOP_BATCHES,
    log_every_steps=LOOP_BATCHES,
    validate_every_epochs=10**6,  # only at the end
    start_from="",
    start_partly=False,
    keep_statistics=False,
  )
  short.eval.image_size = size
  # Generated photographs have no classes, and telling them apart costs next to nothing.
  short.data.class_column, short.loss.classes.weight = "", 0.0
  if "classes" in (network := short.model[short.model.name]):
    network.classes = 0
  short.data.max_eval_images = config.eval.batch_size
  if config.data.source != "synthetic" and Path(config.data.root).exists():
    for split in ("train", "val"):
      create_source(short.data, split, short.seed, to_score=split == "val")
    return short.lock(), f"{config.data.source} {config.data.root}"
  logger.info("No photographs are at hand: drawing some.")
  root = str(_write_photographs(scratch / "data", config.seed))
  short.data.update(source="folder", root=root, mask_suffix=MASK_SUFFIX, group_column="")
  return short.lock(), f"generated JPEG files of {PHOTOGRAPH_SIZE}x{PHOTOGRAPH_SIZE}"


def time_pipeline(short: ConfigDict) -> dict[str, Any]:
  """Times each step of reading photographs for training, on one core.

  Args:
    short: of `with_data_at_hand`.

  Returns:
    Images a second of decoding, preprocessing and augmenting alone, and of all as batches, "total".
  """
  source = create_source(short.data, "train", short.seed, to_score=False)
  cases = [source[i] for i in range(min(PIPELINE_CASES, len(source)))]
  size, policy = short.train.image_sizes[0], AugmentPolicy(**short.augment)
  change = pack_view if short.data.augment_on == "device" else augment
  preprocessing = Preprocessing(**short.preprocess)
  one_thread = short.copy_and_resolve_references().unlock()
  one_thread.data.update(num_threads=1, prefetch_batches=1)
  calls: dict[str, Callable[[], Any]] = {
    "decode": lambda: [source[i].index for i in range(len(cases))],
    "preprocess": lambda: [preprocessing(case.image).size for case in cases],
    "augment": lambda: [
      len(change(np.random.default_rng(case.index), case.image, case.mask, size, policy))
      for case in cases
    ],
  }
  with _one_core():
    seconds = {
      name: value / len(cases)
      for name, value in time_interleaved(calls, short.benchmark.rounds).items()
    }
    batches = create_train_batches(one_thread.lock(), source, create_plan(short, len(source)))
    for _ in range(SETTLING_BATCHES):  # they were read before the clock starts
      next(batches)
    start = time.perf_counter()
    for _ in range(TIMED_BATCHES):
      next(batches)
    seconds["total"] = (time.perf_counter() - start) / TIMED_BATCHES / short.train.batch_size
  return {
    "image_size": size,
    "augment_on": short.data.augment_on,
    **{f"{name}_images_per_second": 1 / value for name, value in seconds.items()},
  }


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
  """Keeps this thread, and those it starts, on one core, where the system lets a program choose."""
  if not hasattr(os, "sched_setaffinity"):
    yield
    return
  usual = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {min(usual)})
  try:
    yield
  finally:
    os.sched_setaffinity(0, usual)


def time_loop(short: ConfigDict, scratch: Path) -> dict[str, Any]:
  """Trains for a few batches, and reads speed and shares of time from the log."""
  logger.info("Training for %d batches.", short.train.max_steps)
  train(short, scratch / "run")
  # The first line has the compilation in it.
  last = [row for row in log.read_metrics(scratch / "run") if row["split"] == "train"][-1]
  return {
    "image_size": short.train.image_sizes[0],
    "batch": short.train.batch_size,
    "images_per_second": last["images_per_second"],
    "waiting_share": last["waiting_share"],
    "step_share": 1 - last["waiting_share"] - last["logging_share"],
    "logging_share": last["logging_share"],
  }


def _write_photographs(folder: Path, seed: int) -> Path:
  """Writes generated dermoscopy in the layout of the folder source."""
  for name in ("images", "masks"):
    (folder / name).mkdir(parents=True)
  splits = [split for split, count in PHOTOGRAPHS.items() for _ in range(count)]
  with (folder / "splits.csv").open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(("id", "split"))
    for index, split in enumerate(splits):
      image, mask = draw_dermoscopy(seed, index, PHOTOGRAPH_SIZE)
      cv2.imwrite(str(folder / "images" / f"{index:04d}.jpg"), image[..., ::-1])
      write_mask(folder / "masks" / f"{index:04d}{MASK_SUFFIX}.png", mask)
      rows.writerow((f"{index:04d}", split))
  return folder


def open_source(config: ConfigDict) -> Source:
  """Opens the cases that `time_evaluation` scores, so that a mistake is known before any timing.

  Args:
    config: resolved; what the networks are evaluated with.

  Returns:
    The cases.

  Raises:
    InputError: if they cannot be used.
  """
  return create_source(config.data, config.eval.split, config.seed)


def time_evaluation(
  config: ConfigDict, networks: Sequence[Network], source: Source, folder: Path
) -> dict[str, Any]:
  """Scores a split as an evaluation does, between two timings of the networks alone."""
  predict = create_predict(networks, config.eval.tta)
  sizes = [network.image_size for network in networks]
  count = devices.rows_for(config.eval.batch_size)
  batches = eval_batches(
    source,
    batch_size=count,
    image_sizes=sizes,
    preprocessing=Preprocessing(**config.preprocess),
    num_threads=config.data.num_threads,
    prefetch_batches=config.data.prefetch_batches,
  )
  images = devices.shard_batch(next(batches).images)
  alone = {"networks": lambda: predict(images)}
  run = ", ".join(network.origin["run"] for network in networks)
  logger.info("Evaluating %s.", run)
  jax.block_until_ready(predict(images))  # so that no timing has the compilation in it
  before = time_interleaved(alone, config.benchmark.rounds)["networks"]
  start = time.perf_counter()
  rule = mask_rule(config.eval, config.eval.threshold or PLAIN_THRESHOLD)
  score_cases(predict, source, sizes, config, rule, folder)
  seconds = time.perf_counter() - start
  after = time_interleaved(alone, config.benchmark.rounds)["networks"]
  rate, raw = len(source) / seconds, 2 * count / (before + after)
  return {
    "run": run,
    "split": config.eval.split,
    "cases": len(source),
    "image_sizes": sizes,
    "tta": config.eval.tta,
    "images_per_second": rate,
    "networks_alone_images_per_second": raw,
    "share": rate / raw,
  }
