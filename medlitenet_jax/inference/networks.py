"""Trained networks at work: from photographs to maps of probability, alone or as an ensemble."""

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.cases import Photographs, Source, split_hash
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.pipeline import eval_batches
from medlitenet_jax.formats.safetensors import SUFFIX, find_weights, is_released, read_weights
from medlitenet_jax.inference.ensemble import Maps, join_maps, performance_weights
from medlitenet_jax.inference.tta import six_views
from medlitenet_jax.models.fold import fold_loaded
from medlitenet_jax.models.forward import lesion_probs
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_json, replace_file

logger = logging.getLogger(__name__)

ENSEMBLE_FILE = "ensemble.json"


class Network(NamedTuple):
  """A network that can be run, or one member of an ensemble.

  Attributes:
    model: maps normalised images to logits.
    variables: averaged parameters, the statistics folded into them.
    image_size: pixels a side that it sees.
    precision: that it computes in.
    weight: its share in the mean; the weights of an ensemble add up to 1.
    origin: where it comes from, for a protocol: run, variant, step, selection, validation scores.
    seen: names of the cases that it was trained on ("train") and selected by ("val").
  """

  model: nn.Module
  variables: Mapping[str, Any]
  image_size: int
  precision: str
  weight: float
  origin: dict[str, Any]
  seen: dict[str, list[str]]


def load_networks(config: ConfigDict, workdir: Path, weights: Path | None = None) -> list[Network]:
  """Reads the networks that a configuration is evaluated with.

  Args:
    config: resolved; of a run, or of an ensemble, whose members are rebuilt from their own
      configuration and see their own size of image.
    workdir: folder of the run, or of the ensemble, where the members' weights are kept.
    weights: a weights file that is read in place of the run's checkpoint.

  Returns:
    The run's network, or the members with the weights of `workdir/ensemble.json`, which is written
    on first use.

  Raises:
    InputError: if a checkpoint is missing or of another network, if both a weights file and members
      are given, if the folder of an ensemble holds
      a run, if the members were selected on different cases, if a member was trained with other
      preprocessing than the configuration has, or if a member is not the one that was weighted.
  """
  if not config.ensemble.members:
    return [_load_network(config, workdir) if weights is None else _from_weights(config, weights)]
  if weights is not None:
    raise InputError(
      f"config.ensemble.members names networks and --weights another, {weights}; leave one out"
    )
  if (workdir / config_lib.CONFIG_FILE).exists() and not config_lib.load(workdir).ensemble.members:
    raise InputError(f"{workdir}: holds a run; choose another --workdir for the ensemble")
  networks = [_load_member(config, member) for member in config.ensemble.members]
  hashes = {split_hash(network.seen["val"]) for network in networks}
  if len(hashes) > 1:
    raise InputError(
      f"{workdir}: the members were selected on different validation cases, so their Dice cannot "
      "weight them; train them on one split"
    )
  shares = _ensemble_weights(networks, hashes.pop(), workdir)
  return [network._replace(weight=w) for network, w in zip(networks, shares, strict=True)]


def precision_of(networks: Sequence[Network]) -> str:
  """What networks compute in, for a protocol; members of an ensemble may differ."""
  return ", ".join(sorted({network.precision for network in networks}))


def _load_member(config: ConfigDict, member: str) -> Network:
  """Reads a weights file by its path or released name, or the run in a folder."""
  if not (is_released(member) or member.endswith(SUFFIX)):
    own = _member_config(config, member, config_lib.load(Path(member)))
    return _load_network(own, Path(member))
  path = find_weights(member)
  return _from_weights(_member_config(config, member, read_weights(path).config), path)


def _member_config(config: ConfigDict, member: str, saved: ConfigDict) -> ConfigDict:
  overrides = {"eval.checkpoint": config.eval.checkpoint}
  if config.precision != "auto":
    overrides["precision"] = config.precision
  if config.eval.image_size:
    overrides["eval.image_size"] = config.eval.image_size
  own = config_lib.for_evaluation(saved, overrides, jax.default_backend(), config)
  for name, value in own.preprocess.items():
    if value != config.preprocess[name]:
      raise InputError(
        f"{member}: was trained with config.preprocess.{name}={value!r}, and the ensemble says "
        f"{config.preprocess[name]!r}; all members must see photographs cleaned alike, so set this "
        "field to theirs, or choose other members"
      )
  return own


def _from_weights(config: ConfigDict, path: Path) -> Network:
  weights = read_weights(path)
  model = create_model(config.model.to_dict(), DTYPES[config.precision])
  origin = {
    **weights.origin,
    "run": str(path),
    "network_size": config.eval.image_size,
    "weights_sha256": weights.sha256,
  }
  size, precision = config.eval.image_size, config.precision
  variables = _folded(model, weights.variables, size)
  return Network(model, variables, size, precision, 1.0, origin, weights.seen)


def _load_network(config: ConfigDict, workdir: Path) -> Network:
  from medlitenet_jax.training.workdir import read_cases  # as below

  model = create_model(config.model.to_dict(), DTYPES[config.precision])
  variables, origin = load_averaged(config, workdir)
  size, precision = config.eval.image_size, config.precision
  folded = _folded(model, variables, size)
  return Network(model, folded, size, precision, 1.0, origin, read_cases(workdir))


def _folded(model: nn.Module, variables: Mapping[str, Any], image_size: int) -> dict[str, Any]:
  folds = inspect_model(model, image_size).folds
  return fold_loaded(variables, folds)


def load_averaged(config: ConfigDict, workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the averaged network of a run as it was trained, and where it comes from.

  Args:
    config: resolved, of the run; `eval.checkpoint` says which checkpoint.
    workdir: folder of the run.

  Returns:
    variables: "params" and "batch_stats".
    origin: as `Network` has it.

  Raises:
    InputError: if there is no checkpoint, or it is of another network.
  """
  # Orbax and Grain take a while to import, and a weights file needs neither.
  from medlitenet_jax.training.checkpoint import Checkpoints

  model = create_model(config.model.to_dict(), DTYPES[config.precision])
  which = config.eval.checkpoint
  with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
    step = checkpoints.best_step if which == "best" else checkpoints.latest_step
    if step is None and checkpoints.latest_step is not None:
      raise InputError(
        f"{workdir}: no checkpoint in it was validated yet; train on, or take the newest by "
        "--config.eval.checkpoint=latest"
      )
    if step is None:
      raise InputError(f"{workdir}: no checkpoint in it yet; train first")
    origin = {
      "run": str(workdir),
      "model": config.model.name,
      "variant": config.model.variant,
      "network_size": config.eval.image_size,
      "weights": "exponential moving average",
      "step": step,
      "selected_by": "highest validation Dice" if which == "best" else "newest",
      "validation": dict(checkpoints.metrics(step)),
    }
    shapes = inspect_model(model, config.eval.image_size).shapes
    return checkpoints.restore_ema(step, shapes), origin


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
  # Without where they lie: they may be moved, and a path can be written in many ways.
  identity = [{"step": member["step"], "dice": member["dice"]} for member in members]
  path = workdir / ENSEMBLE_FILE
  if path.exists():
    try:
      stored = read_json(path)
      known = [{name: m[name] for name in identity[0]} for m in stored["members"]]
      weights = [float(m["weight"]) for m in stored["members"]]
      known_hash = stored.get("val_hash")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(f"{path}: not a list of members; remove it to have it made anew") from error
    if known != identity or known_hash != val_hash:
      raise InputError(
        f"{path}: was computed for other members or checkpoints; remove it to weight these anew, "
        "or choose another --workdir"
      )
    return weights
  weights = performance_weights([member["dice"] for member in members]).tolist()
  stored = [{**member, "weight": w} for member, w in zip(members, weights, strict=True)]
  if not devices.is_first():
    return weights
  workdir.mkdir(parents=True, exist_ok=True)
  replace_file(path, json.dumps({"val_hash": val_hash, "members": stored}, indent=2) + "\n")
  return weights


def create_predict(
  models: Sequence[tuple[nn.Module, int]], weights: Sequence[float] = (1.0,), tta: str = "none"
) -> Callable[[Sequence[Any], Mapping[int, Any]], Maps]:
  """Compiles networks, all their views and the joining of their maps into one call.

  Args:
    models: each with the size of image that it sees; it maps normalised images to logits.
    weights: of each, with sum 1.
    tta: test-time augmentation, "none" or "six".

  Returns:
    (variables of each, [B, S, S, 3] uint8 images by size) to Maps at the largest size.
  """

  @jax.jit
  def predict(variables, images):
    def views(model, own, image):
      probs = functools.partial(lesion_probs, model, own)
      return six_views(probs, image) if tta == "six" else probs(image)[None]

    stacks = [
      views(model, own, images[size]) for (model, size), own in zip(models, variables, strict=True)
    ]
    return join_maps(stacks, weights)

  return predict


def compile_networks(networks: Sequence[Network], tta: str) -> Callable[[Mapping[int, Any]], Maps]:
  """Binds `create_predict` to loaded networks: (images by size) to Maps."""
  predict = create_predict(
    [(n.model, n.image_size) for n in networks], [float(n.weight) for n in networks], tta
  )
  variables = [n.variables for n in networks]
  return lambda images: predict(variables, images)


def predict_cases(
  predict: Callable[[Mapping[int, Any]], Maps],
  source: Source | Photographs,
  image_sizes: Sequence[int],
  config: ConfigDict,
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
  """Runs networks over a source, one batch ahead of what is given out.

  Args:
    predict: images by size to Maps.
    source: the cases.
    image_sizes: that the networks see.
    config: resolved; `eval.batch_size`, `data` and `preprocess` are used.

  Yields:
    (case, [S, S] float32 probabilities, [S, S] float32 disagreement), each case of this process's
    rows once, in order; the case's photograph has the largest of the sizes.
  """
  batch_size = devices.rows_for(config.eval.batch_size)
  batches = eval_batches(
    source,
    batch_size=batch_size,
    image_sizes=image_sizes,
    preprocessing=Preprocessing(**config.preprocess),
    num_threads=config.data.num_threads,
    prefetch_batches=config.data.prefetch_batches,
    rows=devices.own_rows(batch_size),
  )
  running = None
  for batch in batches:
    previous, running = running, (predict(devices.share_out(batch.images)), batch.cases)
    if previous is not None:
      yield from _cases_of(*previous)
  if running is not None:
    yield from _cases_of(*running)


def _cases_of(maps: Maps, cases):
  # Where the compiler has left the maps is its own affair.
  probs, disagreement = map(devices.own_part, jax.device_put(tuple(maps), devices.by_rows()))
  # Rows that only fill the batch have no case, so zip leaves them out.
  return zip(cases, probs, disagreement, strict=False)
