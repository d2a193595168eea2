"""Trained networks that can be run, one or several on the same photographs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from medlitenet_jax.inference.ensemble import Maps, join_maps
from medlitenet_jax.inference.trained import Trained
from medlitenet_jax.inference.tta import six_views
from medlitenet_jax.models.fold import fold_loaded
from medlitenet_jax.models.forward import lesion_probs, look
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.scores.likeness import Likeness, likeness_of
from medlitenet_jax.system import devices

Predict = Callable[[Mapping[int, Any]], Maps]


@dataclasses.dataclass(frozen=True)
class Network:
  """A trained network that can be run, or one member of an ensemble.

  Everything that scores or predicts needs these attributes only, so a network may compute in any
  library.

  Attributes:
    probs: maps [B, S, S, 3] uint8 RGB photographs to [B, S, S] float32 probabilities of lesion.
    image_size: S, in pixels.
    precision: what it computes in, for a protocol.
    origin: where it comes from, as `Trained` has it.
    seen: names of the cases that it was trained on ("train") and selected by ("val").
    weight: its share in the mean; the weights of an ensemble have sum 1.
    details: maps photographs to {"probs": the same probabilities, ...} with what else is known:
      "likeness", [B] float32, of each to those that the network has learned from, and "boundary",
      [B, S, S] float32, the probability that the lesion's border is there. None: nothing is.
    likeness_bound: likeness that only few photographs like those stay under, see `Likeness`; None
      if that is not known.
  """

  probs: Callable[[Any], Any]
  image_size: int
  precision: str = "float32"
  origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seen: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  weight: float = 1.0
  details: Callable[[Any], Mapping[str, Any]] | None = None
  likeness_bound: float | None = None


def create_network(trained: Trained, config: ConfigDict) -> Network:
  """Prepares a trained network to be run with JAX.

  Args:
    trained: the network.
    config: resolved; `model`, `precision` and `eval.image_size` are used, and may differ from
      `trained.config` where that changes no parameter.

  Returns:
    The network. It is compiled when `probs` is first called, once for each number of photographs.
  """
  size = config.eval.image_size
  model = create_model(config.model.to_dict(), DTYPES[config.precision])
  folded = fold_loaded(trained.variables, inspect_model(model, size).folds)
  variables = jax.device_put(folded, devices.replicated())
  run = jax.jit(functools.partial(lesion_probs, model))
  fitted = bound = None
  if trained.likeness is not None:
    fitted = jax.device_put(trained.likeness, devices.replicated())
    bound = float(trained.likeness.bound)
  details = jax.jit(functools.partial(_details, model))
  return Network(
    probs=functools.partial(run, variables),
    image_size=size,
    precision=config.precision,
    origin={**trained.origin, "network_size": size},
    seen=trained.seen,
    details=functools.partial(details, variables, fitted),
    likeness_bound=bound,
  )


def _details(model: nn.Module, variables: Any, fitted: Likeness | None, image):
  """What a network says of photographs, see `Network`."""
  found = look(model, variables, image)
  said = {name: found[name] for name in ("probs", "boundary") if name in found}
  return said if fitted is None else {**said, "likeness": likeness_of(found["features"], fitted)}


def create_predict(networks: Sequence[Network], tta: str = "none") -> Predict:
  """Joins networks and their views into one function.

  Args:
    networks: with weights of sum 1.
    tta: test-time augmentation, "none" or "six".

  Returns:
    A function from [B, S, S, 3] uint8 images by size S to Maps at the largest size.
  """

  def view(network: Network, image) -> tuple[Any, Mapping[str, Any]]:
    """The [V, B, S, S] maps of all views, and what is said of the first, the photograph itself."""
    said: list[Mapping[str, Any]] = []

    def probs(image):
      if network.details is None:
        return network.probs(image)
      said.append(network.details(image))
      return said[-1]["probs"]

    stack = six_views(probs, image) if tta == "six" else probs(image)[None]
    return stack, said[0] if said else {}

  def predict(images: Mapping[int, Any]) -> Maps:
    stacks, said = zip(*(view(n, images[n.image_size]) for n in networks), strict=True)
    further = {
      name: [each[name] for each in said if name in each] for name in ("likeness", "boundary")
    }
    return join_maps(stacks, [network.weight for network in networks], **further)

  return predict


def precision_of(networks: Sequence[Network]) -> str:
  """The precision of networks as a protocol names it; members of an ensemble may differ."""
  return ", ".join(sorted({network.precision for network in networks}))


def lowest_likeness_bound(networks: Sequence[Network]) -> float | None:
  """The bound that goes with the lowest likeness of several networks; None if none has one."""
  bounds = [n.likeness_bound for n in networks if n.likeness_bound is not None]
  return min(bounds, default=None)
