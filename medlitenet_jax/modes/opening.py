"""Opens the trained networks that a command line names."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from medlitenet_jax import config as config_lib
from medlitenet_jax.formats.safetensors import find_weights
from medlitenet_jax.inference.members import open_members
from medlitenet_jax.inference.networks import Network, create_network
from medlitenet_jax.inference.trained import Trained, open_trained
from medlitenet_jax.modes.call import Call, announce
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError

logger = logging.getLogger(__name__)


def open_networks(call: Call) -> tuple[ConfigDict, list[Network]]:
  """Opens a trained network, or the members of an ensemble, to be run.

  Args:
    call: names a weights file, the folder of a run or ensemble, or a recipe with members.

  Returns:
    The configuration that the networks are evaluated with, resolved, and the networks.

  Raises:
    InputError: if two networks are named, none can be opened, or the recipe is of another network.
  """
  config, trained = _open(call)
  if trained is None:
    return config, open_members(config, call.workdir)
  return config, [create_network(trained, config)]


def open_single(call: Call) -> tuple[ConfigDict, Trained]:
  """Opens a trained network that is no ensemble, as it was saved.

  Args:
    call: names a weights file or the folder of a run.

  Returns:
    The configuration that it is evaluated with, resolved, and the network.

  Raises:
    InputError: as `open_networks`, and if an ensemble is named.
  """
  config, trained = _open(call)
  if trained is None:
    raise InputError(
      f"config.ensemble.members: --mode={call.mode} takes one network; name each member by "
      "--weights or --workdir"
    )
  return config, trained


def _open(call: Call) -> tuple[ConfigDict, Trained | None]:
  """The resolved configuration, logged, and the network; None for an ensemble."""
  platform = devices.platform()
  ensemble = call.recipe_named and bool(call.recipe.ensemble.members)
  trained = None
  place = call.workdir
  if call.weights is not None:
    place = find_weights(call.weights)
    if call.workdir_named and call.mode != "evaluate":  # which writes there
      raise InputError("--weights and --workdir both name a network; give one of them")
    if ensemble:
      raise InputError(
        f"config.ensemble.members names networks and --weights another, {place}; leave one out"
      )
    trained = open_trained(place)
  if ensemble:
    config = config_lib.resolve(call.recipe, platform)
  else:
    saved = trained.config if trained else config_lib.load(place)
    config = _for_evaluation(call, place, saved, platform)
  announce(call, config)
  if trained is None and not config.ensemble.members:
    trained = open_trained(place, config.eval.checkpoint)
  return config, trained


def _for_evaluation(call: Call, place: Path, saved: ConfigDict, platform: str) -> ConfigDict:
  described = place / config_lib.CONFIG_FILE if place.is_dir() else place
  if call.recipe_named:
    asked = config_lib.resolve(call.recipe, platform)
    if difference := config_lib.network_difference(saved, asked):
      field, old, new = difference
      raise InputError(
        f"{place}: has a network with config.{field}={old!r}, but --config describes one with "
        f"{new!r}; leave --config out, since evaluation rebuilds the network from the workdir"
      )
  return config_lib.for_evaluation(saved, call.overrides, platform, call.recipe, described)


def count_seen(
  networks: Sequence[Network | Trained], case_ids: Sequence[str], split: str
) -> dict[str, int]:
  """Counts the cases that a network has seen, and warns of them.

  Args:
    networks: one, or the members of an ensemble.
    case_ids: names of the cases that are scored.
    split: their name.

  Returns:
    The numbers of "cases_trained_on" and "cases_selected_by".

  Raises:
    InputError: if a member of an ensemble has seen any.
  """
  scored = set(case_ids)
  seen = {}
  for use, name in (("trained on", "train"), ("selected by", "val")):
    count = len(scored & {case_id for network in networks for case_id in network.seen[name]})
    if count and len(networks) > 1:
      raise InputError(
        f"config.eval.split={split}: the members of the ensemble were {use} {count} of its "
        f"{len(scored)} cases, so its scores would mean nothing; choose another split"
      )
    if count:
      logger.warning(
        "The network was %s %d of the %d cases that are scored.", use, count, len(scored)
      )
    seen[f"cases_{use.replace(' ', '_')}"] = count
  return seen
