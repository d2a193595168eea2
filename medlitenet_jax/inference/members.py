"""The members of an ensemble and their weights."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.cases import split_hash
from medlitenet_jax.inference.ensemble import performance_weights
from medlitenet_jax.inference.networks import Network, create_network
from medlitenet_jax.inference.trained import Trained, open_trained
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_json, replace_file

ENSEMBLE_FILE = "ensemble.json"


def open_members(config: ConfigDict, workdir: Path) -> list[Network]:
  """Opens the members of an ensemble.

  Each member keeps its own configuration and its own size of image, unless the ensemble's
  configuration gives a precision or a size for all.

  Args:
    config: resolved; `ensemble.members` names them.
    workdir: folder of the ensemble. The weights are read from `ensemble.json` in it, which is
      written on first use.

  Returns:
    The members, with weights of sum 1.

  Raises:
    InputError: if the folder is that of a run, if a member cannot be opened or was trained with
      other preprocessing than `config` has, if the members were selected on different cases, or if
      `ensemble.json` was written for other members.
  """
  if (workdir / config_lib.CONFIG_FILE).exists() and not config_lib.load(workdir).ensemble.members:
    raise InputError(f"{workdir}: holds a run; choose another --workdir for the ensemble")
  networks = []
  for member in config.ensemble.members:
    trained = open_trained(member, config.eval.checkpoint)
    networks.append(create_network(trained, _member_config(config, member, trained)))
  hashes = {split_hash(network.seen["val"]) for network in networks}
  if len(hashes) > 1:
    raise InputError(
      f"{workdir}: the members were selected on different validation cases, so their Dice cannot "
      "weight them; train them on one split"
    )
  weights = _ensemble_weights(networks, hashes.pop(), workdir)
  return [dataclasses.replace(n, weight=w) for n, w in zip(networks, weights, strict=True)]


def _member_config(config: ConfigDict, member: str, trained: Trained) -> ConfigDict:
  overrides = {"eval.checkpoint": config.eval.checkpoint}
  if config.precision != "auto":
    overrides["precision"] = config.precision
  if config.eval.image_size:
    overrides["eval.image_size"] = config.eval.image_size
  own = config_lib.for_evaluation(trained.config, overrides, jax.default_backend(), config)
  for name, value in own.preprocess.items():
    if value != config.preprocess[name]:
      raise InputError(
        f"{member}: was trained with config.preprocess.{name}={value!r}, and the ensemble has "
        f"{config.preprocess[name]!r}; all members must see photographs cleaned alike, so set this "
        "field to theirs, or choose other members"
      )
  return own


def _ensemble_weights(networks: Sequence[Network], val_hash: str, workdir: Path) -> list[float]:
  """Reads the weights of the members, or computes and stores them."""
  for network in networks:
    if not network.origin["validation"].get("dice", 0) > 0:
      raise InputError(
        f"{network.origin['run']}: its checkpoint after batch {network.origin['step']} has no "
        "validation Dice above 0 to be weighted by; train on, or take the best one"
      )
  members = [
    {"run": n.origin["run"], "step": n.origin["step"], "dice": n.origin["validation"]["dice"]}
    for n in networks
  ]
  # Without their paths: a member may be moved, and a path can be written in many ways.
  identity = [{"step": member["step"], "dice": member["dice"]} for member in members]
  path = workdir / ENSEMBLE_FILE
  if path.exists():
    try:
      stored = read_json(path)
      known = [{name: m[name] for name in identity[0]} for m in stored["members"]]
      weights = [float(m["weight"]) for m in stored["members"]]
      known_hash = stored["val_hash"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f"{path}: not a list of members; remove it, and it is written again"
      ) from error
    if known != identity or known_hash != val_hash:
      raise InputError(
        f"{path}: was computed for other members or checkpoints; remove it to weight these anew, "
        "or choose another --workdir"
      )
    return weights
  weights = performance_weights([member["dice"] for member in members]).tolist()
  if devices.is_main_process():
    stored = [{**member, "weight": w} for member, w in zip(members, weights, strict=True)]
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"val_hash": val_hash, "members": stored}, indent=2) + "\n")
  return weights
