"""Weights files: a trained network and everything needed to run it, in one safetensors file.

Neither Orbax, Grain nor TFDS is needed to load one, and nothing in it is executed:

    from medlitenet_jax.formats.safetensors import load
    segment = load("base")          # a released name, or the path of a file
    probs = segment(photograph)     # [H, W, 3] uint8 RGB to [H, W] float32
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.models.fold import fold_loaded
from medlitenet_jax.models.forward import lesion_probs
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file

RELEASED = Path(__file__).parents[1] / "released"
SUFFIX = ".safetensors"
FORMAT = "medlitenet_jax 2"
EARLIER_FORMAT = "medlitenet_jax 1"  # of the first released weights, see `_in_sections`
STORED_DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class Weights:
  """What a weights file holds.

  Attributes:
    config: resolved configuration of the run, locked.
    variables: averaged parameters and running statistics, float32, by module.
    origin: where they come from: run, variant, step, selection, validation scores.
    seen: names of the cases that the network was trained on ("train") and selected by ("val"), as
      `workdir.read_cases` has them.
    sha256: of the file, hexadecimal.
  """

  config: ConfigDict
  variables: dict[str, Any]
  origin: dict[str, Any]
  seen: dict[str, list[str]]
  sha256: str


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
) -> None:
  """Writes a weights file.

  Args:
    path: ends in .safetensors.
    variables: "params" and "batch_stats" by module, float32.
    config: resolved.
    origin: as `Weights` has it; what JSON can hold.
    seen: as `Weights` has it.
    dtype: "float32", or "float16" at half the size; statistics stay float32, for a variance may be
      too large or too small for less.
  """
  arrays = {}
  for (group, *modules), value in _flat(variables).items():
    kind = np.float32 if group == "batch_stats" else np.dtype(dtype)
    arrays["/".join((group, *modules))] = np.asarray(value, kind)
  metadata = {
    "format": FORMAT,
    "config": json.dumps(config.to_dict()),
    "origin": json.dumps(dict(origin)),
    "seen": json.dumps(dict(seen)),
  }
  replace_file(path, save(arrays, metadata))


# What a file that is none of ours raises, or one that was changed.
_DAMAGE = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError)


def read_config(path: Path) -> ConfigDict:
  """Reads the configuration alone, which takes no time; nothing else in the file is checked.

  Args:
    path: of a weights file.

  Returns:
    The configuration of the run, locked.

  Raises:
    InputError: if the file is damaged or not one of this project.
  """
  try:
    with safe_open(path, framework="numpy") as file:
      return _config_in(file.metadata() or {})
  except _DAMAGE as error:
    raise InputError(f"{path}: not a weights file of this project ({error})") from error


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
    InputError: if the file is damaged, not one of this project, or of another network.
  """
  try:
    with safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      arrays = {name: np.asarray(file.get_tensor(name), np.float32) for name in sorted(file.keys())}
    config = _config_in(metadata)
    origin, seen = json.loads(metadata["origin"]), json.loads(metadata["seen"])
    seen = {name: list(seen[name]) for name in ("train", "val")}
    model = create_model(config.model.to_dict(), jnp.float32)
  except _DAMAGE as error:
    raise InputError(f"{path}: not a weights file of this project ({error})") from error
  variables: dict[str, Any] = {}
  for name, value in arrays.items():
    *modules, leaf = name.split("/")
    place = variables
    for module in modules:
      place = place.setdefault(module, {})
    place[leaf] = value
  shapes = inspect_model(model, int(config.eval.image_size)).shapes
  expected = {"/".join(at): leaf.shape for at, leaf in _flat(shapes).items()}
  if expected != {name: value.shape for name, value in arrays.items()}:
    raise InputError(f"{path}: holds other parameters than the network that it describes")
  return Weights(config, variables, origin, seen, hashlib.sha256(path.read_bytes()).hexdigest())


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


class Segmenter:
  """A network that finds the lesion in a photograph.

  Attributes:
    config: that it was trained with.
    image_size: pixels a side that the network sees.
  """

  def __init__(self, weights: Weights):
    """Prepares a network; it is compiled when it is first called."""
    self.config = weights.config
    self.image_size = int(weights.config.eval.image_size)
    self._preprocessing = Preprocessing(**weights.config.preprocess)
    model = create_model(weights.config.model.to_dict(), DTYPES[weights.config.precision])
    folds = inspect_model(model, self.image_size).folds
    self._variables = fold_loaded(weights.variables, folds)
    self._probs = jax.jit(functools.partial(lesion_probs, model))

  def __call__(self, image: np.ndarray) -> np.ndarray:
    """Finds the lesion.

    Args:
      image: [H, W, 3] uint8 RGB, of any size.

    Returns:
      [H, W] float32, the probability that a pixel is lesion.
    """
    small = resize_image(self._preprocessing(image), self.image_size, self.image_size)
    probs = np.asarray(self._probs(self._variables, small[None])[0])
    return cv2.resize(probs, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def load(name: str) -> Segmenter:
  """Loads a network by a released name or the path of a weights file.

  Raises:
    InputError: if there is no such file or it cannot be used.
  """
  return Segmenter(read_weights(find_weights(name)))
