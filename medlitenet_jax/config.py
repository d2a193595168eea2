"""What a run's configuration means: resolved for the platform, checked, saved and compared."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medlitenet_jax.errors import InputError
from medlitenet_jax.models.medlitenet import check_image_size
from medlitenet_jax.models.registry import resolve_model
from medlitenet_jax.state import DTYPES

CONFIG_FILE = "config.json"
# Fields that a run may be resumed with other values of: they do not touch what is learned.
FREE_FIELDS = ("data.root", "data.num_threads", "data.prefetch_batches", "eval.", "profile.")
# Fields that an evaluation may set anew.
EVALUATION_FIELDS = ("data.", "eval.", "precision")


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
  config = config.copy_and_resolve_references().unlock()
  if config.precision == "auto":
    config.precision = "float32" if platform == "cpu" else "bfloat16"
  for field, value in resolve_model(config.model.to_dict()).items():
    config.model[field] = value
  _check_sizes("train.image_sizes", config.train.image_sizes)
  if not config.eval.image_size:
    config.eval.image_size = config.train.image_sizes[-1]
  _check_sizes("eval.image_size", (config.eval.image_size,))
  _check(config)
  return config.lock()


def _check_sizes(field: str, sizes) -> None:
  if not sizes:
    raise InputError(f"config.{field} is empty; give it at least one size")
  for size in sizes:
    try:
      check_image_size(size, size)
    except (ValueError, TypeError) as error:
      raise InputError(f"config.{field}: {error}") from error


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
      "augment.clahe_tiles",
    )
  ],
  "takes 0 or more": [
    (field, lambda v: v >= 0)
    for field in (
      "seed",
      "data.max_train_images",
      "data.max_eval_images",
      "train.epochs",
      "train.max_steps",
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
  "takes 32 pixels or more": [("data.synthetic.image_size", lambda v: v >= 32)],
  "takes a number between 0 and 1": [("eval.threshold", lambda v: 0 < v < 1)],
  "takes a decay from 0 up to, not including, 1": [("optim.ema_decay", lambda v: 0 <= v < 1)],
  "takes one of train, val, test": [("eval.split", lambda v: v in ("train", "val", "test"))],
  "takes one of best, latest": [("eval.checkpoint", lambda v: v in ("best", "latest"))],
  f"takes one of auto, {', '.join(DTYPES)}": [("precision", lambda v: v in DTYPES)],
}


def _check(config: ConfigDict) -> None:
  """Refuses values that no run can be made of, naming the field."""
  values = dict(flatten(config))
  for takes, rules in _RULES.items():
    for field, holds in rules:
      if not holds(values[field]):
        raise InputError(f"config.{field} {takes}, not {values[field]!r}")
  if not config.train.epochs and not config.train.max_steps:
    raise InputError("config.train.epochs and config.train.max_steps are both 0; give one of them")
  for field, value in config.augment.items():
    if field.endswith("_probability") and not 0 <= value <= 1:
      raise InputError(f"config.augment.{field} takes a probability, not {value!r}")
    if isinstance(value, tuple) and (len(value) != 2 or value[0] > value[1]):
      raise InputError(f"config.augment.{field} takes (low, high), not {value!r}")


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


def for_evaluation(saved: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
  """The configuration that a workdir's network is evaluated with.

  Args:
    saved: of the workdir.
    overrides: fields given on the command line, by dotted name.

  Returns:
    `saved` with those of the overrides that leave the network as it was trained; locked.

  Raises:
    InputError: if an override would make another network, or its value cannot be used.
  """
  config = saved.copy_and_resolve_references()
  known = dict(flatten(saved))
  with config.unlocked():
    for field, value in overrides.items():
      if field.startswith(EVALUATION_FIELDS):
        config.update_from_flattened_dict({field: value})
      elif known.get(field) != value:
        raise InputError(
          f"config.{field} is {known.get(field)!r} in the workdir and cannot be changed to "
          f"{value!r} after training"
        )
  return resolve(config, "cpu")


def save(config: ConfigDict, workdir: Path) -> None:
  """Writes `config.json` into a workdir."""
  (workdir / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n")


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
    tree = json.loads(path.read_text())
  except OSError as error:
    raise InputError(f"{path}: cannot be read; --workdir must name a folder of a run") from error
  except ValueError as error:
    raise InputError(f"{path}: not JSON ({error}); restore it or start a new run") from error
  if not isinstance(tree, dict) or "model" not in tree:
    raise InputError(f"{path}: not a configuration of this project; start a new run")
  return ConfigDict(_lists_to_tuples(tree)).lock()


def _lists_to_tuples(tree):
  """JSON has no tuples; the configuration has no lists."""
  if isinstance(tree, dict):
    return {name: _lists_to_tuples(value) for name, value in tree.items()}
  return tuple(tree) if isinstance(tree, list) else tree
