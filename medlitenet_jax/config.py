"""What a run's configuration means: resolved for the platform, checked, saved and compared."""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medlitenet_jax.data.augment.on_device import ON_HOST, refuse_undrawable
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.models.medlitenet.network import check_image_size
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import resolve_model
from medlitenet_jax.scores.masks import STEPS
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_json, replace_file

CONFIG_FILE = "config.json"
# Fields that a run may be resumed with other values of: they touch neither what is learned nor
# which checkpoint is best. That data.root still holds the same cases is checked apart.
FREE_FIELDS = (
  *(
    "data.root",
    "data.raw",
    "data.num_threads",
    "data.prefetch_batches",
    "data.cache_gib",
    "eval.split",
    "eval.checkpoint",
  ),
  *("eval.batch_size", "eval.tta", "eval.threshold", "eval.hysteresis_low", "eval.postprocess"),
  *("eval.review_below", "train.log_every_steps", "model.remat", "profile.", "benchmark."),
  "train.max_skipped_in_a_row",
)
# Fields that a run may be resumed with other values of by --force: what was learned stays of use,
# and what comes is learned otherwise, so that the run is no longer that of any one recipe. All
# others are refused: the network, the precision and the seed make another state; the data, its
# preprocessing and the size of a batch put other cases behind the saved position; accumulation
# holds a half-done update; and eval.image_size would compare scores that are not of one kind.
ODD_FIELDS = (
  *("optim.learning_rate", "optim.final_learning_rate", "optim.warmup_updates"),
  *("optim.weight_decay", "optim.clip_norm", "optim.ema_decay", "optim.ema_warmup"),
  *("loss.", "augment.", "data.augment_on", "model.dropout"),
  *("train.epochs", "train.max_steps", "train.image_sizes", "train.validate_every_epochs"),
)
# What fields that a run is older than were in effect; its other augmentations were off as well.
BEFORE_THEM = {
  "preprocess.hair_removal": False,
  "preprocess.color_constancy": "none",
  "data.augment_on": "host",
  "train.start_from": "",
  "data.working_size": 768,
  "data.mask_suffix": "_segmentation",
  "data.group_column": "",
  "data.split_seed": 0,
  "data.val_fraction": 0.1,
  "data.test_fraction": 0.1,
  "train.max_skipped_in_a_row": 0,
}
# Fields that are resolved for the machine at hand and mean nothing on another.
_OF_A_MACHINE = {"data.num_threads": 0, "data.prefetch_batches": 0}
# Fields that an evaluation may set anew.
EVALUATION_FIELDS = (
  *("data.", "eval.", "ensemble.", "benchmark.", "precision", "model.form", "model.remat"),
)


def resolve(config: ConfigDict, platform: str) -> ConfigDict:
  """Replaces every "auto", None and 0-for-default by the value it stands for, and checks the rest.

  Args:
    config: as a file in `configs/` gives it, with the command line's overrides.
    platform: "cpu", "gpu" or "tpu".

  Returns:
    A locked copy.

  Raises:
    InputError: names the field whose value cannot be used and says what it takes.
  """
  tree = config.copy_and_resolve_references().to_dict()
  config = ConfigDict(_lists_to_tuples(tree))
  try:
    return _resolved(config, platform)
  except (KeyError, AttributeError, TypeError) as error:
    reason = str(error.args[0] if error.args else error).splitlines()[0]
    raise InputError(
      f"the configuration lacks a field or has one of another type ({reason}); configs/base.py has "
      "all of them"
    ) from error


def _resolved(config: ConfigDict, platform: str) -> ConfigDict:
  # A member of an ensemble has its own precision, and its own size of image.
  if config.precision == "auto" and not config.ensemble.members:
    config.precision = "float32" if platform == "cpu" else "bfloat16"
  for field, value in resolve_model(config.model.to_dict()).items():
    config.model[field] = value
  if config.data.augment_on == "platform":
    drawn_on_host = any(config.augment[f"{name}_probability"] for name in ON_HOST)
    config.data.augment_on = "host" if platform == "cpu" or drawn_on_host else "device"
  if not config.data.num_threads:
    config.data.num_threads = devices.available_cores()
  if not config.data.prefetch_batches:
    config.data.prefetch_batches = min(max(4, config.data.num_threads), 16)
  _check_sizes("train.image_sizes", config.train.image_sizes)
  _check_sizes("benchmark.image_sizes", config.benchmark.image_sizes)
  if not config.eval.image_size and not config.ensemble.members:
    config.eval.image_size = config.train.image_sizes[-1]
  if config.eval.image_size:
    _check_sizes("eval.image_size", (config.eval.image_size,))
  _check(config)
  try:
    policy = AugmentPolicy(**config.augment)
    if config.data.augment_on == "device":
      refuse_undrawable(policy)
    Preprocessing(**config.preprocess)
  except InputError as error:
    raise InputError(f"config.{error}") from error
  return config.lock()


def _check_sizes(field: str, sizes) -> None:
  if not sizes:
    raise InputError(f"config.{field} is empty; give it at least one size")
  if not isinstance(sizes, tuple):
    raise InputError(f"config.{field} takes a tuple as (256, 384), not {sizes!r}")
  for size in sizes:
    try:
      check_image_size(size, size)
    except ValueError as error:
      raise InputError(f"config.{field}: {error}") from error
    if size > MOST_PIXELS:
      raise InputError(f"config.{field} takes at most {MOST_PIXELS} pixels, not {size}")


_RULES: dict[str, list[tuple[str, Any]]] = {
  "takes 1 or more": [
    (field, lambda v: v >= 1)
    for field in (
      "data.num_threads",
      "data.prefetch_batches",
      "train.batch_size",
      "train.validate_every_epochs",
      "train.log_every_steps",
      "eval.batch_size",
      "optim.accumulation",
      "benchmark.rounds",
    )
  ],
  "takes 0 or more": [
    (field, lambda v: v >= 0)
    for field in (
      "seed",
      "data.split_seed",
      "data.cache_gib",
      "data.max_train_images",
      "data.max_eval_images",
      "train.epochs",
      "train.max_steps",
      "train.max_skipped_in_a_row",
      "optim.warmup_updates",
      "optim.weight_decay",
      "optim.final_learning_rate",
      "loss.bce_weight",
      "loss.dice_weight",
      "loss.boundary_weight",
      "loss.boundary_width",
      "profile.start_step",
      "profile.num_steps",
    )
  ],
  "takes a number above 0": [
    (field, lambda v: v > 0)
    for field in ("optim.learning_rate", "optim.clip_norm", "loss.dice_epsilon")
  ],
  "takes 32 pixels or more": [
    (field, lambda v: v >= 32) for field in ("data.synthetic.image_size", "data.working_size")
  ],
  "takes a number between 0 and 1, or 0": [
    (field, lambda v: 0 <= v < 1) for field in ("eval.threshold", "eval.hysteresis_low")
  ],
  "takes a number from 0 to 1": [
    (field, lambda v: 0 <= v <= 1)
    for field in ("eval.review_below", "data.val_fraction", "data.test_fraction")
  ],
  "takes the end of a file's name, without folder": [
    ("data.mask_suffix", lambda v: not set(v) & set("/\\"))
  ],
  "takes a column of splits.csv other than id and split": [
    ("data.group_column", lambda v: v not in ("id", "split"))
  ],
  "takes a decay from 0 up to, not including, 1": [("optim.ema_decay", lambda v: 0 <= v < 1)],
  "takes one of train, val, test": [("eval.split", lambda v: v in ("train", "val", "test"))],
  "takes one of platform, host, device": [("data.augment_on", lambda v: v in ("host", "device"))],
  "takes one of none, six": [("eval.tta", lambda v: v in ("none", "six"))],
  f"takes any of {', '.join(STEPS)}, each once": [
    ("eval.postprocess", lambda v: set(v) <= set(STEPS) and len(set(v)) == len(v))
  ],
  "takes released names, weights files or folders of runs": [
    ("ensemble.members", lambda v: all(isinstance(member, str) and member for member in v))
  ],
  "takes one of best, latest": [("eval.checkpoint", lambda v: v in ("best", "latest"))],
  f"takes one of auto, {', '.join(DTYPES)}": [("precision", lambda v: v in ("auto", *DTYPES))],
}


MOST_PIXELS = 8192  # a side; more fits no memory
# What fits no memory, or no counter of 32 bits.
_MOST = {
  "seed": 2**32 - 1,
  "data.num_threads": 1024,
  "data.prefetch_batches": 1024,
  "data.working_size": MOST_PIXELS,
  "data.synthetic.image_size": MOST_PIXELS,
  # More would draw the same pictures for two splits.
  "data.synthetic.num_train": 1_000_000,
  "data.synthetic.num_val": 1_000_000,
  "data.synthetic.num_test": 1_000_000,
  "train.batch_size": 65_536,
  "eval.batch_size": 65_536,
  "train.epochs": 1_000_000,
  "train.max_steps": 2**31 - 1,
  "optim.accumulation": 2**20,
  "optim.warmup_updates": 2**31 - 1,
  "loss.boundary_width": MOST_PIXELS,
}


def _holds(rule, value) -> bool:
  """Whether a value keeps a rule; one of another type does not."""
  try:
    return bool(rule(value))
  except (TypeError, ValueError, OverflowError):
    return False


def _check(config: ConfigDict) -> None:
  """Refuses values that no run can be made of, naming the field."""
  values = dict(flatten(config))
  for takes, rules in _RULES.items():
    for field, holds in rules:
      if not _holds(holds, values[field]):
        raise InputError(f"config.{field} {takes}, not {values[field]!r:.80}")
  for field, most in _MOST.items():
    if not _holds(lambda v, most=most: v <= most, values[field]):
      raise InputError(f"config.{field} takes at most {most}, not {values[field]!r:.80}")
  for field, value in values.items():
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
      raise InputError(f"config.{field} takes finite numbers, not {value!r:.80}")
  if config.eval.threshold and config.eval.hysteresis_low >= config.eval.threshold:
    raise InputError(
      f"config.eval.hysteresis_low is {config.eval.hysteresis_low!r}; it must lie under "
      f"config.eval.threshold, which is {config.eval.threshold!r}"
    )
  if config.data.val_fraction + config.data.test_fraction > 1:
    raise InputError(
      f"config.data.val_fraction is {config.data.val_fraction!r}; it must leave room for "
      f"config.data.test_fraction, which is {config.data.test_fraction!r}"
    )
  if not config.loss.bce_weight and not config.loss.dice_weight:
    raise InputError(
      "config.loss.bce_weight and config.loss.dice_weight are both 0; give one of them"
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
  """Fields that make `new` another run than `old`, with both values; None where a side has none."""
  before, after = dict(flatten(old)), dict(flatten(new))
  return {
    field: (before.get(field), after.get(field))
    for field in before.keys() | after.keys()
    if before.get(field) != after.get(field) and not field.startswith(FREE_FIELDS)
  }


def with_later_fields(saved: ConfigDict, recipe: ConfigDict) -> ConfigDict:
  """Adds the fields of data, preprocessing and augmentation that a run is older than.

  What they switch on was off.

  Args:
    saved: of a workdir.
    recipe: has all fields; gives the ranges, which an augmentation that is off does not use.

  Returns:
    A copy, not locked.

  Raises:
    InputError: if a value is of another type than the recipe's, or a section of fields is none.
  """
  known, later = dict(flatten(saved)), dict(BEFORE_THEM)
  for field, value in flatten(recipe):
    if field in known and not _same_type(known[field], value):
      raise InputError(
        f"{CONFIG_FILE} of the workdir: config.{field} is {known[field]!r:.80}, which it cannot "
        "be; restore the file"
      )
    if field.startswith("augment."):
      later[field] = 0.0 if field.endswith("_probability") else value
  missing = {field: value for field, value in later.items() if field not in known}
  try:
    return _with_fields(saved, missing)
  except (AttributeError, TypeError) as error:
    raise InputError(
      f"{CONFIG_FILE} of the workdir is not as it was written ({error}); restore the file"
    ) from error


def _same_type(value: Any, like: Any) -> bool:
  """Whether a value can stand where another does; where that is None anything can."""
  if like is None or value is None:
    return True
  if isinstance(like, float):
    return type(value) in (int, float)
  return type(value) is type(like)


def _with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
  """A copy with more fields, given by their dotted names; not locked."""
  tree = config.to_dict()
  for field, value in fields.items():
    *sections, name = field.split(".")
    group = functools.reduce(lambda part, section: part.setdefault(section, {}), sections, tree)
    group[name] = value
  return ConfigDict(tree)


def refuse_other_network(workdir: Path, saved: ConfigDict, asked: ConfigDict) -> None:
  """Refuses to evaluate a run under a recipe of another network.

  Args:
    workdir: folder of the run.
    saved: its configuration.
    asked: the recipe's, resolved.

  Raises:
    InputError: names a field of the model that differs.
  """
  changed = differences(ConfigDict({"model": saved.model}), ConfigDict({"model": asked.model}))
  changed = {field: values for field, values in changed.items() if field not in _UNBUILT}
  if changed:
    field, (old, new) = min(changed.items())
    raise InputError(
      f"{workdir}: holds a network with config.{field}={old!r}, and --config describes one with "
      f"{new!r}; leave --config out, for evaluation rebuilds the network from the workdir"
    )


_UNBUILT = (
  "model.form",
  "model.dropout",
  "model.remat",
)  # none changes a network that is evaluated


def for_evaluation(
  saved: ConfigDict, overrides: Mapping[str, Any], platform: str, recipe: ConfigDict
) -> ConfigDict:
  """The configuration that a workdir's network is evaluated with.

  Args:
    saved: of the workdir.
    overrides: fields given on the command line, by dotted name.
    platform: as in `resolve`.
    recipe: gives the fields of evaluation that did not exist when the workdir was made; those of
      preprocessing and augmentation are off. How many threads read is resolved anew.

  Returns:
    `saved` with those of the overrides that leave the network as it was trained; locked.

  Raises:
    InputError: if an override would make another network, or its value cannot be used.
  """
  try:
    saved = with_later_fields(saved, recipe)
    known = dict(flatten(saved))
    missing = {
      field: value
      for field, value in flatten(recipe)
      if field not in known and field.startswith(EVALUATION_FIELDS)
    }
    config = _with_fields(saved, {**missing, **_OF_A_MACHINE})
    for field, value in overrides.items():
      if field.startswith(EVALUATION_FIELDS):
        config.update_from_flattened_dict({field: value})
      elif known.get(field) != value:
        raise InputError(
          f"config.{field} is {known.get(field)!r} in the workdir and cannot be changed to "
          f"{value!r} after training"
        )
    return _resolved(ConfigDict(_lists_to_tuples(config.to_dict())), platform)
  except (KeyError, AttributeError, TypeError) as error:
    raise InputError(
      f"{CONFIG_FILE} of the workdir lacks a field ({str(error).splitlines()[0]}); it was made by "
      "another version of this project, so evaluate it with that one"
    ) from error


def save(config: ConfigDict, workdir: Path) -> None:
  """Writes `config.json` into a workdir."""
  replace_file(workdir / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def load(workdir: Path) -> ConfigDict:
  """Reads the resolved configuration that a workdir was made with.

  Args:
    workdir: folder of a run.

  Returns:
    A locked ConfigDict.

  Raises:
    InputError: if there is no such file or it is not a configuration.
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
  """The configuration that JSON holds, locked."""
  return ConfigDict(_lists_to_tuples(tree)).lock()


def _lists_to_tuples(tree):
  """JSON has no tuples; the configuration has no lists."""
  if isinstance(tree, dict):
    return {name: _lists_to_tuples(value) for name, value in tree.items()}
  return tuple(tree) if isinstance(tree, list) else tree
