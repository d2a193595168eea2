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
from medlitenet_jax.models.forward import lesion_probs, probs_and_features
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
    probs_and_likeness: maps photographs to the same probabilities and the [B] float32 likeness of
      each to those that the network has learned from; None if that is not known.
    likeness_bound: likeness that only few photographs like those stay under, see `Likeness`; None
      if that is not known.
  """

  probs: Callable[[Any], Any]
  image_size: int
  precision: str = "float32"
  origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seen: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  weight: float = 1.0
  probs_and_likeness: Callable[[Any], tuple[Any, Any]] | None = None
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
  scored = bound = None
  if trained.likeness is not None:
    fitted = jax.device_put(trained.likeness, devices.replicated())
    scored = functools.partial(jax.jit(functools.partial(_scored, model)), variables, fitted)
    bound = float(trained.likeness.bound)
  return Network(
    probs=functools.partial(run, variables),
    image_size=size,
    precision=config.precision,
    origin={**trained.origin, "network_size": size},
    seen=trained.seen,
    probs_and_likeness=scored,
    likeness_bound=bound,
  )


def _scored(model: nn.Module, variables: Any, fitted: Likeness, image):
  """Probabilities and likeness of photographs, see `Network`."""
  probs, features = probs_and_features(model, variables, image)
  return probs, likeness_of(features, fitted)


def create_predict(networks: Sequence[Network], tta: str = "none") -> Predict:
  """Joins networks and their views into one function.

  Args:
    networks: with weights of sum 1.
    tta: test-time augmentation, "none" or "six".

  Returns:
    A function from [B, S, S, 3] uint8 images by size S to Maps at the largest size.
  """

  def look(network: Network, image) -> tuple[Any, Any]:
    """The [V, B, S, S] maps of all views, and the likeness in the first, the photograph itself."""
    scores = []

    def probs(view):
      if network.probs_and_likeness is None:
        return network.probs(view)
      found, likeness = network.probs_and_likeness(view)
      scores.append(likeness)
      return found

    stack = six_views(probs, image) if tta == "six" else probs(image)[None]
    return stack, scores[0] if scores else None

  def predict(images: Mapping[int, Any]) -> Maps:
    stacks, likeness = zip(*(look(n, images[n.image_size]) for n in networks), strict=True)
    return join_maps(stacks, [network.weight for network in networks], likeness)

  return predict


def precision_of(networks: Sequence[Network]) -> str:
  """The precision of networks as a protocol names it; members of an ensemble may differ."""
  return ", ".join(sorted({network.precision for network in networks}))


def lowest_likeness_bound(networks: Sequence[Network]) -> float | None:
  """The bound that goes with the lowest likeness of several networks; None if none has one."""
  bounds = [n.likeness_bound for n in networks if n.likeness_bound is not None]
  return min(bounds, default=None)
