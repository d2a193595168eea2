"""Resolves a run's configuration for the platform, and checks, saves and compares it."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medlitenet_jax.data.augment.on_device import ON_HOST, refuse_undrawable
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.sources import SOURCES
from medlitenet_jax.data.splits import ALL, SPLITS
from medlitenet_jax.models.entry import Sizes
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import (
  model_loss_weights,
  model_sizes,
  resolve_model,
  with_newer_fields,
)
from medlitenet_jax.scores.masks import STEPS
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_json, replace_file
from medlitenet_jax.system.rules import Rule, number, one_of, some_of, whole

CONFIG_FILE = "config.json"
LARGEST_SIDE = 8192  # pixels; no memory holds more
_INT32 = 2**31 - 1
# Whether a run may be resumed with another value of a field.
FREE = "free"  # yes: affects neither training nor the choice of the best checkpoint
# Only with --force: training can continue, but the run no longer follows a single recipe.
FORCE_ONLY = "force only"
# No. Network, precision and seed change the state. Data, preprocessing and batch size change which
# cases follow the saved position. accumulation may have a partial update. A new eval.image_size
# would compare scores of different kinds.
FIXED = "fixed"


class Field(NamedTuple):
  """Rules for a field of the configuration.

  Attributes:
    rule: checks the value; None if the code that reads the field checks it.
    resume: whether a run may be resumed with another value: `FREE`, `FORCE_ONLY` or `FIXED`.
  """

  rule: Rule | None = None
  resume: str = FIXED


# One row per field; the first pattern that matches counts. Fields matched by a star are checked by
# the code that reads them: `Preprocessing`, `AugmentPolicy`, networks, loss terms.
FIELDS: dict[str, Field] = {
  "seed": Field(whole(0, 2**32 - 1)),
  "precision": Field(one_of(("auto", *DTYPES))),
  "data.source": Field(one_of(SOURCES)),
  "data.root": Field(resume=FREE),  # whether it has the same cases is checked separately
  "data.raw": Field(resume=FREE),
  "data.working_size": Field(whole(32, LARGEST_SIDE)),
  "data.mask_suffix": Field(
    Rule(lambda v: not set(v) & set("/\\"), "the end of a file name, without a folder")
  ),
  "data.group_column": Field(
    Rule(lambda v: v not in ("id", "split"), "a column of splits.csv other than id and split")
  ),
  "data.class_column": Field(
    Rule(lambda v: v.casefold() != "id", "a column of splits.csv other than id")
  ),
  "data.split_seed": Field(whole(0, 2**32 - 1)),
  "data.val_fraction": Field(number(least=0, most=1)),
  "data.test_fraction": Field(number(least=0, most=1)),
  "data.max_train_images": Field(whole(0, _INT32)),
  "data.max_eval_images": Field(whole(0, _INT32)),
  "data.num_threads": Field(whole(1, 1024), FREE),
  "data.prefetch_batches": Field(whole(1, 1024), FREE),
  "data.cache_gib": Field(number(least=0), FREE),
  "data.augment_on": Field(one_of(("platform", "host", "device")), FORCE_ONLY),
  # The splits' pictures are numbered a million apart; more would overlap.
  "data.synthetic.num_train": Field(whole(0, 1_000_000)),
  "data.synthetic.num_val": Field(whole(0, 1_000_000)),
  "data.synthetic.num_test": Field(whole(0, 1_000_000)),
  "data.synthetic.image_size": Field(whole(32, LARGEST_SIDE)),
  "preprocess.*": Field(),
  "augment.*": Field(resume=FORCE_ONLY),
  "model.remat": Field(resume=FREE),
  "model.*.dropout": Field(resume=FORCE_ONLY),
  "model.*": Field(),
  "loss.*": Field(resume=FORCE_ONLY),
  "optim.name": Field(),
  "optim.learning_rate": Field(number(above=0), FORCE_ONLY),
  "optim.final_learning_rate": Field(number(least=0), FORCE_ONLY),
  "optim.warmup_updates": Field(whole(0, _INT32), FORCE_ONLY),
  "optim.weight_decay": Field(number(least=0), FORCE_ONLY),
  "optim.momentum": Field(number(least=0, below=1), FORCE_ONLY),
  "optim.clip_norm": Field(number(above=0), FORCE_ONLY),
  "optim.accumulation": Field(whole(1, 2**20)),
  "optim.ema_decay": Field(number(least=0, below=1), FORCE_ONLY),
  "optim.ema_warmup": Field(resume=FORCE_ONLY),
  "train.epochs": Field(whole(0, 1_000_000), FORCE_ONLY),
  "train.start_from": Field(),
  "train.start_partly": Field(),
  "train.keep_statistics": Field(),
  "train.max_steps": Field(whole(0, _INT32), FORCE_ONLY),
  "train.low_contrast_repeats": Field(whole(1, 1000)),
  "train.batch_size": Field(whole(1, 65_536)),
  "train.image_sizes": Field(resume=FORCE_ONLY),
  "train.mixed_sizes": Field(resume=FORCE_ONLY),
  "train.validate_every_epochs": Field(whole(1, _INT32), FORCE_ONLY),
  "train.validate_min_steps": Field(whole(1, _INT32), FORCE_ONLY),
  "train.patience": Field(whole(0, _INT32), FREE),
  "train.log_every_steps": Field(whole(1, _INT32), FREE),
  "train.max_skipped_in_a_row": Field(whole(0, _INT32), FREE),
  "eval.split": Field(one_of((*SPLITS, ALL)), FREE),
  "eval.image_size": Field(),
  "eval.batch_size": Field(whole(1, 65_536), FREE),
  "eval.threshold": Field(number(least=0, below=1), FREE),
  "eval.hysteresis_low": Field(number(least=0, below=1), FREE),
  "eval.tta": Field(one_of(("none", "six")), FREE),
  "eval.postprocess": Field(some_of(STEPS), FREE),
  "eval.review_below": Field(number(least=0, most=1), FREE),
  "eval.checkpoint": Field(one_of(("best", "latest")), FREE),
  "ensemble.members": Field(
    Rule(
      lambda v: all(isinstance(member, str) and member for member in v),
      "released names, weights files or folders of runs",
    )
  ),
  "profile.start_step": Field(whole(0, _INT32), FREE),
  "profile.num_steps": Field(whole(0, _INT32), FREE),
  "benchmark.image_sizes": Field(resume=FREE),
  "benchmark.rounds": Field(whole(1, 1_000_000), FREE),
  "benchmark.compare_plain": Field(resume=FREE),
}
# Fields that an evaluation may override.
EVALUATION_FIELDS = (
  *("data.", "eval.", "ensemble.", "benchmark.", "precision", "model.form", "model.remat"),
)
NOT_ARCHITECTURE = (
  "model.form",
  "model.remat",
  "model.*.dropout",
)  # a trained network ignores them
# Fields that are resolved for one machine, with the value that resolves them for another.
_PER_MACHINE = {"data.num_threads": 0, "data.prefetch_batches": 0}
BENCHMARK_SIZES = (256, 512)  # pixels; the defaults of benchmark.image_sizes


def field_of(name: str) -> Field:
  """The row of `FIELDS` for a dotted name; an unknown field has no rule and is `FIXED`."""
  return next((row for pattern, row in FIELDS.items() if fnmatchcase(name, pattern)), Field())


def resolve(config: ConfigDict, platform: str) -> ConfigDict:
  """Replaces "auto", None and 0 by the defaults they stand for, and checks all values.

  Args:
    config: from a file in `configs/`, with the command line's overrides.
    platform: "cpu", "gpu" or "tpu".

  Returns:
    A locked copy.

  Raises:
    InputError: names the field with an invalid value and says which values are valid.
  """
  tree = config.copy_and_resolve_references().to_dict()
  config = ConfigDict(_lists_to_tuples(tree))
  try:
    return _resolved(config, platform)
  except (KeyError, AttributeError, TypeError) as error:
    reason = str(error.args[0] if error.args else error).splitlines()[0]
    raise InputError(
      f"the configuration lacks a field or has one of the wrong type ({reason}); configs/base.py "
      "has all of them"
    ) from error


def _resolved(config: ConfigDict, platform: str) -> ConfigDict:
  # Each member of an ensemble keeps its own precision and image size.
  if config.precision == "auto" and not config.ensemble.members:
    config.precision = "float32" if platform == "cpu" else "bfloat16"
  with config.ignore_type():
    config.model = ConfigDict(resolve_model(config.model.to_dict()))
  weights = model_loss_weights(config.model.to_dict())
  for term, section in config.loss.items():
    if section.weight is None:
      section.weight = float(weights.get(term, 0))
  if config.data.augment_on == "platform":
    drawn_on_host = any(config.augment[f"{name}_probability"] for name in ON_HOST)
    config.data.augment_on = "host" if platform == "cpu" or drawn_on_host else "device"
  if not config.data.num_threads:
    config.data.num_threads = devices.available_cores()
  if not config.data.prefetch_batches:
    config.data.prefetch_batches = min(max(4, config.data.num_threads), 16)
  sizes = model_sizes(config.model.to_dict())
  _check_sizes("train.image_sizes", config.train.image_sizes, sizes)
  if not config.benchmark.image_sizes:
    usual = tuple(size for size in BENCHMARK_SIZES if sizes.take(size))
    config.benchmark.image_sizes = usual or config.train.image_sizes[-1:]
  _check_sizes("benchmark.image_sizes", config.benchmark.image_sizes, sizes)
  if not config.eval.image_size and not config.ensemble.members:
    config.eval.image_size = config.train.image_sizes[-1]
  if config.eval.image_size:
    _check_sizes("eval.image_size", (config.eval.image_size,), sizes)
  _check(config)
  try:
    policy = AugmentPolicy(**config.augment)
    if config.data.augment_on == "device":
      refuse_undrawable(policy)
    Preprocessing(**config.preprocess)
  except InputError as error:
    raise InputError(f"config.{error}") from error
  return config.lock()


def _check_sizes(field: str, values, sizes: Sizes) -> None:
  if not values:
    raise InputError(f"config.{field} is empty; give it at least one size")
  if not isinstance(values, tuple):
    raise InputError(f"config.{field} takes a tuple as (256, 384), not {values!r}")
  for value in values:
    try:
      sizes.check(value)
    except ValueError as error:
      raise InputError(f"config.{field}: {error}") from error
    if value > LARGEST_SIDE:
      raise InputError(f"config.{field} takes at most {LARGEST_SIDE} pixels, not {value}")


def _check(config: ConfigDict) -> None:
  """Raises InputError for invalid values, naming the field."""
  for name, value in flatten(config):
    if (rule := field_of(name).rule) is not None:
      rule.check(f"config.{name}", value)
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
      raise InputError(f"config.{name} takes finite numbers, not {value!r:.80}")
  if config.eval.threshold and config.eval.hysteresis_low >= config.eval.threshold:
    raise InputError(
      f"config.eval.hysteresis_low is {config.eval.hysteresis_low!r}; it must be lower than "
      f"config.eval.threshold, which is {config.eval.threshold!r}"
    )
  if config.data.val_fraction + config.data.test_fraction > 1:
    raise InputError(
      f"config.data.val_fraction is {config.data.val_fraction!r}; with config.data.test_fraction, "
      f"which is {config.data.test_fraction!r}, it must not exceed 1"
    )
  if not config.train.epochs and not config.train.max_steps:
    raise InputError("config.train.epochs and config.train.max_steps are both 0; give one of them")


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields every field's dotted name and value, in the order of the file."""
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from flatten(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
  """Fields that differ and are not `FREE`: {field: (old value, new value)}, None if missing."""
  before, after = dict(flatten(old)), dict(flatten(new))
  return {
    field: (before.get(field), after.get(field))
    for field in before.keys() | after.keys()
    if before.get(field) != after.get(field) and field_of(field).resume != FREE
  }


def refuse_other_version(workdir: Path, saved: ConfigDict, asked: ConfigDict) -> None:
  """Refuses to resume a run whose configuration has other fields than this version's.

  Args:
    workdir: folder of the run.
    saved: the run's configuration.
    asked: the new configuration, resolved.

  Raises:
    InputError: names a field that one of them lacks, or whose type differs. Fields of two different
      networks are not compared.
  """
  before, now = dict(flatten(saved)), dict(flatten(asked))
  same_network = saved.model.get("name") == asked.model.name
  changed = {f for f in before.keys() ^ now.keys() if same_network or not f.startswith("model.")}
  changed |= {f for f in before.keys() & now.keys() if not _same_type(before[f], now[f])}
  if changed:
    raise InputError(
      f"{workdir / CONFIG_FILE}: config.{min(changed)} does not fit this version, so another one "
      "made the run, or the file was changed; use that version, or choose another --workdir"
    )


def _same_type(value: Any, like: Any) -> bool:
  """Whether a value can replace another; an int can replace a float."""
  if isinstance(like, float):
    return type(value) in (int, float)
  return type(value) is type(like)


def _with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
  """An unlocked copy with fields, given by dotted names, added or replaced."""
  tree = config.to_dict()
  for field, value in fields.items():
    *sections, name = field.split(".")
    group = functools.reduce(lambda part, section: part.setdefault(section, {}), sections, tree)
    group[name] = value
  return ConfigDict(tree)


def network_difference(saved: ConfigDict, asked: ConfigDict) -> tuple[str, Any, Any] | None:
  """Finds what makes the networks of two configurations different.

  Args:
    saved: configuration of a trained network.
    asked: the recipe's configuration, resolved.

  Returns:
    A field of the model by its dotted name, its saved value and the recipe's; None if parameters of
    one fit the other.
  """
  changed = differences(ConfigDict({"model": saved.model}), ConfigDict({"model": asked.model}))
  changed = {
    field: values
    for field, values in changed.items()
    if not any(fnmatchcase(field, pattern) for pattern in NOT_ARCHITECTURE)
  }
  if not changed:
    return None
  field, values = min(changed.items())
  return field, *values


def for_evaluation(
  saved: ConfigDict,
  overrides: Mapping[str, Any],
  platform: str,
  recipe: ConfigDict,
  described: object = "the trained network",
) -> ConfigDict:
  """The configuration for evaluating a workdir's network.

  Args:
    saved: the workdir's configuration.
    overrides: fields given on the command line, by dotted name.
    platform: see `resolve`.
    recipe: supplies fields that did not exist when the network was trained, except preprocessing,
      which is off if it did not exist; and the column of groups, where the overrides name other
      photographs. The number of threads is resolved again.
    described: where `saved` comes from, for a message.

  Returns:
    `saved` with the overrides; locked.

  Raises:
    InputError: if an override would change the trained network, or its value is not valid.
  """
  try:
    known = dict(flatten(saved))
    later = {**dict(flatten(recipe)), **_without_preprocessing(), **known}
    missing = {f: v for f, v in later.items() if f not in known and not f.startswith("model.")}
    config = _with_fields(saved, {**missing, **_PER_MACHINE})
    if overrides.keys() & {"data.root", "data.source"}:
      # It names a column of the photographs that the network learned from.
      config.data.group_column = recipe.data.group_column
    for field, value in overrides.items():
      if field.startswith(EVALUATION_FIELDS):
        config.update_from_flattened_dict({field: value})
      elif later.get(field) != value:
        raise InputError(
          f"config.{field} is {later.get(field)!r} in the trained network and cannot be changed to "
          f"{value!r} after training"
        )
    return _resolved(ConfigDict(_lists_to_tuples(config.to_dict())), platform)
  except (KeyError, AttributeError, TypeError) as error:
    raise InputError(
      f"{described}: the configuration lacks a field ({str(error).splitlines()[0]}); another "
      "version of this project made it, so use that version"
    ) from error


def _without_preprocessing() -> dict[str, Any]:
  fields = dataclasses.asdict(Preprocessing())
  return {f"preprocess.{name}": value for name, value in fields.items()}


def save(config: ConfigDict, workdir: Path) -> None:
  """Writes `config.json` into a workdir."""
  replace_file(workdir / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def load(workdir: Path) -> ConfigDict:
  """Reads the resolved configuration of a workdir.

  Args:
    workdir: folder of a run.

  Returns:
    A locked ConfigDict.

  Raises:
    InputError: if the file is missing or not a configuration.
  """
  path = workdir / CONFIG_FILE
  try:
    tree = read_json(path)
  except OSError as error:
    raise InputError(f"{path}: cannot be read; --workdir must name a folder of a run") from error
  except ValueError as error:
    raise InputError(f"{path}: not JSON ({error}); restore it or start a new run") from error
  if not isinstance(tree, dict) or "model" not in tree:
    raise InputError(f"{path}: not a configuration of this project; start a new run")
  return from_tree(tree)


def from_tree(tree: Mapping[str, Any]) -> ConfigDict:
  """A locked configuration from parsed JSON, as it was saved.

  Fields that its network has got since then have the values that leave the network as it was.
  """
  config = ConfigDict(_lists_to_tuples(tree))
  if isinstance(tree["model"], Mapping):
    config.model = with_newer_fields(config.model.to_dict())
  return config.lock()


def _lists_to_tuples(tree):
  """Converts lists to tuples: JSON has no tuples, the configuration no lists."""
  if isinstance(tree, dict):
    return {name: _lists_to_tuples(value) for name, value in tree.items()}
  return tuple(tree) if isinstance(tree, list) else tree
