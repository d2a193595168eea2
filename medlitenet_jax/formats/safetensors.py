"""Weights files: a trained network and everything needed to run it, in one safetensors file.

Nothing in it is executed when it is read.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from medlitenet_jax import config as config_lib
from medlitenet_jax.models.registry import variable_shapes
from medlitenet_jax.scores.likeness import Likeness
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file

RELEASED = Path(__file__).parents[1] / "released"
SUFFIX = ".safetensors"
PROJECT = "medlitenet_jax"  # begins the names of its formats
FORMAT = f"{PROJECT} 2"
EARLIER_FORMAT = f"{PROJECT} 1"  # of the first released weights, see `_in_sections`
LIKENESS = "likeness"  # begins the names of its arrays
STORED_DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class Weights:
  """What a weights file holds.

  Attributes:
    config: resolved configuration of the run, locked.
    variables: "params" and "batch_stats" by module, float32: averaged parameters and statistics,
      the latter empty for a network without norms.
    origin: where they come from: run, variant, step, selection, validation scores.
    seen: names of the cases that the network was trained on ("train") and selected by ("val"), as
      `workdir.read_cases` has them.
    sha256: of the file, hexadecimal.
    likeness: what the photographs that the network has learned from look like to it, or None.
  """

  config: ConfigDict
  variables: dict[str, Any]
  origin: dict[str, Any]
  seen: dict[str, list[str]]
  sha256: str
  likeness: Likeness | None = None


def is_released(name: str) -> bool:
  """Whether a name is that of released weights; with a folder before it, it is a path."""
  return "/" not in name and (RELEASED / f"{name}{SUFFIX}").is_file()


def find_weights(name: str) -> Path:
  """Path of a weights file by its released name, or as it is given.

  Raises:
    InputError: if there is no such file.
  """
  path = RELEASED / f"{name}{SUFFIX}" if is_released(name) else Path(name)
  if not path.is_file():
    names = ", ".join(sorted(path.stem for path in RELEASED.glob(f"*{SUFFIX}"))) or "none"
    raise InputError(f"{name}: no such weights file, nor a released name (there are: {names})")
  return path


def write_weights(
  path: Path,
  variables: Mapping[str, Any],
  config: ConfigDict,
  origin: Mapping[str, Any],
  seen: Mapping[str, list[str]],
  dtype: str = "float32",
  likeness: Likeness | None = None,
) -> None:
  """Writes a weights file.

  Args:
    path: ends in .safetensors.
    variables: "params" and, for a network with norms, "batch_stats" by module, float32.
    config: resolved.
    origin: as `Weights` has it; anything that JSON can hold.
    seen: as `Weights` has it.
    dtype: of the parameters, "float32" or "float16". Statistics stay float32, because a variance
      may be out of the range of float16.
    likeness: as `Weights` has it.
  """
  arrays = {}
  for (group, *modules), value in _flat(variables).items():
    kind = np.float32 if group == "batch_stats" else np.dtype(dtype)
    arrays["/".join((group, *modules))] = np.asarray(value, kind)
  for name, value in (likeness._asdict() if likeness else {}).items():
    arrays[f"{LIKENESS}/{name}"] = np.asarray(value, np.float32)
  metadata = {
    "format": FORMAT,
    "config": json.dumps(config.to_dict()),
    "origin": json.dumps(dict(origin)),
    "seen": json.dumps(dict(seen)),
  }
  replace_file(path, save(arrays, metadata))


# What reading raises for a damaged file, or one that is not of this project.
DAMAGE = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError)


def _config_in(metadata: Mapping[str, str]) -> ConfigDict:
  if metadata.get("format") not in (FORMAT, EARLIER_FORMAT):
    raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
  tree = json.loads(metadata["config"])
  if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
    raise ValueError("it describes no network")
  return config_lib.from_tree(tree if metadata["format"] == FORMAT else _in_sections(tree))


def read_weights(path: Path) -> Weights:
  """Reads a weights file and checks that it fits the network that it describes.

  Args:
    path: of the file.

  Returns:
    Its content.

  Raises:
    InputError: if the file is damaged, not one of this project, or describes a network that this
      version does not have. Fields of the network that it lacks take the module's defaults.
  """
  try:
    with safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      arrays = {name: np.asarray(file.get_tensor(name), np.float32) for name in sorted(file.keys())}
    config = _config_in(metadata)
    origin, seen = json.loads(metadata["origin"]), json.loads(metadata["seen"])
    seen = {name: list(seen[name]) for name in ("train", "val")}
    likeness = _take_likeness(arrays)
    shapes = variable_shapes(config.model.to_dict(), config.eval.image_size)
  except InputError as error:
    raise InputError(
      f"{path}: describes a network that this version does not have ({error}); use the version "
      "that wrote the file"
    ) from error
  except DAMAGE as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InputError(f"{path}: not a weights file of this project ({reason})") from error
  expected = {"/".join(at): leaf.shape for at, leaf in _flat(shapes).items()}
  if expected != {name: value.shape for name, value in arrays.items()}:
    raise InputError(f"{path}: holds other parameters than the network that it describes")
  variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
  for name, value in arrays.items():
    *modules, leaf = name.split("/")
    place = variables
    for module in modules:
      place = place.setdefault(module, {})
    place[leaf] = value
  sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
  return Weights(config, variables, origin, seen, sha256, likeness)


def _take_likeness(arrays: dict[str, np.ndarray]) -> Likeness | None:
  """Takes what `write_weights` has written of it out of the arrays of a file."""
  names = {name: f"{LIKENESS}/{name}" for name in Likeness._fields}
  if not arrays.keys() & set(names.values()):
    return None
  found = Likeness(**{name: arrays.pop(place) for name, place in names.items()})
  size = len(found.mean)
  if [value.shape for value in found] != [(size,), (size, size), (), ()]:
    raise ValueError("its likeness is of another shape")
  return found


def _in_sections(tree: dict[str, Any]) -> dict[str, Any]:
  """A configuration of `EARLIER_FORMAT`, whose networks and loss terms had no sections."""
  model, loss = dict(tree["model"]), tree["loss"]
  shared = {name: model.pop(name) for name in ("name", "variant", "form", "remat")}
  terms = {
    "bce": {
      "weight": loss["bce_weight"],
      "boundary_weight": loss["boundary_weight"],
      "boundary_width": loss["boundary_width"],
    },
    "dice": {"weight": loss["dice_weight"], "epsilon": loss["dice_epsilon"]},
  }
  return {**tree, "model": {**shared, shared["name"]: model}, "loss": terms}


def _flat(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
  paths = jax.tree_util.tree_flatten_with_path(variables)[0]
  return {tuple(key.key for key in path): leaf for path, leaf in paths}
