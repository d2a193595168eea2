"""Training: opens the data and the weights to start from, trains, and draws the curves."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.sources import class_names, create_source
from medlitenet_jax.formats.encoders import is_foreign, read_encoder
from medlitenet_jax.formats.safetensors import find_weights, read_weights
from medlitenet_jax.inference.trained import open_trained
from medlitenet_jax.inference.validation import ScoreCases, create_scoring, create_validate
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.modes.call import Call, begin, resolve_recipe
from medlitenet_jax.modes.check import short_look
from medlitenet_jax.modes.prepare import make_ready
from medlitenet_jax.pages.figures import draw_curves
from medlitenet_jax.scores.statistics import paired_difference
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training import log, loop
from medlitenet_jax.training.layout import whole_steps
from medlitenet_jax.training.run import goes_on

logger = logging.getLogger(__name__)


def main(call: Call) -> None:
  """Trains the network of the recipe, or continues an earlier call's run; see `train`."""
  begin(call, call.workdir, shared=True, rehearsed=True)
  config = resolve_recipe(call)
  make_ready(call, config)
  train(config, call.workdir, force=call.force, dry_run=call.dry_run)


def train(config: ConfigDict, workdir: Path, *, force: bool = False, dry_run: bool = False) -> None:
  """Trains a network, or continues where an earlier call stopped; see `loop.train`.

  Args:
    config: resolved.
    workdir: receives what `loop.train` writes, and `figures/`.
    force: whether the run may continue with other values of the fields that are
      `config.FORCE_ONLY`, start on data that `check.short_look` refuses, and start where memory or
      room on the disk seem to be short.
    dry_run: whether only to say what it would do and need; nothing is written.

  Raises:
    InputError: if the data, the weights to start from or the workdir cannot be used, in which case
      nothing in it is changed; if there is too little memory or room on the disk; or if too many
      batches in a row were skipped, after the state was saved.
    Stopped: if a signal ended the run early, after the state was saved.
  """
  if config.ensemble.members:
    raise InputError("config.ensemble.members: an ensemble is not trained; train its members")
  devices.check_shares("train.batch_size", config.train.batch_size)
  _refuse_unfit_classes(config)
  sources = {
    name: create_source(config.data, name, config.seed, to_score=name == "val", with_classes=True)
    for name in ("train", "val")
  }
  _refuse_larger_batch(config, len(sources["train"]))
  steps_before = whole_steps(workdir)
  if not steps_before:
    devices.on_main_process(lambda: short_look(config, sources, force=force))
  model = create_model(config.model.to_dict(), DTYPES[config.precision])
  score_cases = create_scoring(config, model, sources["val"])
  best_step = loop.train(
    config,
    workdir,
    model=model,
    sources=sources,
    validate=create_validate(score_cases),
    start=_read_start(config, workdir),
    force=force,
    dry_run=dry_run,
  )
  if dry_run:
    return

  def finish() -> None:
    curves = draw_curves(log.read_metrics(workdir), workdir)
    logger.info("Best validation Dice after %s batches; curves: %s", best_step, curves)

  devices.on_main_process(finish)
  trained = whole_steps(workdir)[-1:] != steps_before[-1:]
  if goes_on(config) and best_step is not None and trained:
    _say_what_it_was_worth(config, workdir, score_cases, best_step)


def _say_what_it_was_worth(
  config: ConfigDict, workdir: Path, score_cases: ScoreCases, best_step: int
) -> None:
  """Logs the validation Dice of the weights that a run started from, and of its best network."""
  if best_step == 0:
    logger.info(
      "Nothing beat %s, so the best network of this run is still that.", config.train.start_from
    )
    return
  try:
    first = open_trained(config.train.start_from).variables
  except InputError as error:  # a run that went on needs them no more
    logger.warning("What the run was worth is not known: %s", error)
    return
  best = open_trained(workdir, "best").variables
  before, after = (
    np.array([row["dice"] for row in score_cases(variables, lambda: False) or ()])
    for variables in (first, best)
  )
  change = paired_difference(before, after)
  interval = "95 %% interval {:+.4f} to {:+.4f}, ".format(*change["ci95"]) if change["ci95"] else ""
  logger.info(
    "val Dice %.4f by %s, %.4f by this run: %+.4f (%s%d photographs). The best batch was chosen on "
    "the same photographs, which flatters it a little.",
    *(before.mean(), config.train.start_from, after.mean(), change["difference"]),
    *(interval.replace("%%", "%"), len(before)),
  )


def _refuse_larger_batch(config: ConfigDict, num_cases: int) -> None:
  """Refuses a batch of more photographs than there are, which would have some of them twice."""
  if config.train.batch_size > num_cases:
    raise InputError(
      f"config.train.batch_size is {config.train.batch_size}, but train has {num_cases} "
      f"photographs; set at most {num_cases}, with config.optim.accumulation for updates from more"
    )


def _refuse_unfit_classes(config: ConfigDict) -> None:
  """Refuses a network, a column of classes and a term of the loss that do not go together."""
  column, name = config.data.class_column, config.model.name
  own = config.model[name].get("classes", 0)
  field, weight = f"config.model.{name}.classes", config.loss.classes.weight
  if column:
    names, _ = class_names(config.data)
    named = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if "classes" not in config.model[name]:
      raise InputError(f"config.data.class_column: {name} tells no classes apart; leave it empty")
    if own != len(names):
      raise InputError(
        f"config.data.class_column={column!r} has {len(names)} classes ({named}), but the network "
        f"has {own or 'none'}; set {field}={len(names)}"
      )
  if not bool(column) == bool(own) == bool(weight):
    raise InputError(
      f"config.data.class_column is {column!r}, {field} {own} and config.loss.classes.weight "
      f"{weight}; classes are learned with all three, so set all or none"
    )


def _read_start(config: ConfigDict, workdir: Path) -> loop.Start | None:
  """The weights that a new run starts from; a run with a checkpoint no longer needs them."""
  name = config.train.start_from
  if config.train.start_partly and not name:
    raise InputError("config.train.start_partly: set config.train.start_from, or leave this False")
  if config.train.keep_statistics and not name:
    raise InputError(
      "config.train.keep_statistics: there are none to keep without config.train.start_from; set "
      "it, or leave this False"
    )
  if not name or whole_steps(workdir):
    return None
  partly = config.train.start_partly
  several = "," in name and not Path(name).is_file()
  paths = [find_weights(part) for part in (name.split(",") if several else [name])]
  if several or is_foreign(paths[0]):
    if not partly:
      raise InputError(
        f"config.train.start_from: {name} is no network of this project; the encoder of another is "
        "taken over with config.train.start_partly=True"
      )
    return loop.Start(name, _read_encoders(config, paths), {"train": [], "val": []}, partly)
  weights = read_weights(paths[0])
  if not partly and (difference := config_lib.network_difference(weights.config, config)):
    field, theirs, own = difference
    raise InputError(
      f"config.train.start_from: {name} is a network with config.{field}={theirs!r}, and this run "
      f"has one with {own!r}; set the field to that, take over what fits with "
      "config.train.start_partly=True, or start from other weights"
    )
  return loop.Start(name, weights.variables, weights.seen, partly)


def _read_encoders(config: ConfigDict, paths: Sequence[Path]) -> dict[str, Any]:
  """Variables of the encoders in files that others wrote; says what of each is taken."""
  merged: dict[str, Any] = {}
  for path in paths:
    found = read_encoder(path, config.model.to_dict(), config.eval.image_size)
    arrays = traverse_util.flatten_dict(found.variables, sep="/")
    if merged.keys() & arrays.keys():
      raise InputError(
        f"config.train.start_from: {path} holds {found.title} once more; name each encoder once"
      )
    merged |= arrays
    rest = ", ".join(f"{name} ({count})" for name, count in found.left_out.items())
    logger.info(
      "%s: %s; takes %d arrays for %d of this network, and leaves out %d: %s.",
      *(path, found.title, found.taken, len(arrays), sum(found.left_out.values()), rest or "none"),
    )
  return traverse_util.unflatten_dict(merged, sep="/")
