"""Opens the trained networks that a command line names."""

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
