"""Folds BatchNorm into the convolution before it, for networks that are no longer trained."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Fold(NamedTuple):
  """A norm and the convolution that it can be folded into.

  Attributes:
    norm: path of the norm, as module names from the network down.
    convolution: path of the convolution, whose result must be the norm's only input.
    epsilon: number that the norm adds to the variance.
  """

  norm: tuple[str, ...]
  convolution: tuple[str, ...]
  epsilon: float


def fold_batch_norm(variables: Mapping[str, Any], folds: Sequence[Fold]) -> dict[str, Any]:
  """Folds norms into convolutions, which saves one multiplication per normalised value.

  With running statistics, a norm multiplies each channel by a factor and adds a constant:

    scale (W x + b - mean) / sqrt(var + epsilon) + bias
      = (factor W) x + factor b + (bias - factor mean),  factor = scale / sqrt(var + epsilon)

  The factor goes into the convolution; the constant becomes the norm's bias.

  Args:
    variables: {"params", "batch_stats"} of a network; "batch_stats" may be missing if it has no
      norms.
    folds: the norms to fold, as `Structure.folds` lists them. Other norms stay as they are.

  Returns:
    Variables with which the same module computes the same function (a `Norm` without statistics
    only adds its bias), float32. "batch_stats" is left out if no norm has statistics any more.

  Raises:
    KeyError: if the variables lack a norm or a convolution of `folds`.
  """
  return _fold(variables, folds, [_terms(*_norm_of(variables, fold)) for fold in folds])


def fold_loaded(variables: Mapping[str, Any], folds: Sequence[Fold]) -> dict[str, Any]:
  """Folds variables that were read from a file, as `fold_batch_norm` does, but faster.

  Compiling that function for a whole network takes most of a second. Here the terms of all norms
  are computed as one vector, and kernels are multiplied by NumPy. The last bit may be another: a
  compiled square root depends on where in a vector a value stands.

  Args:
    variables: as `fold_batch_norm` has them, in memory.
    folds: of the network's structure.

  Returns:
    The same as it does, on the default device.

  Raises:
    KeyError: if the variables lack a norm or a convolution of `folds`.
  """
  variables = jax.device_get(variables)
  if not folds:
    return jax.device_put(_fold(variables, folds, []))
  norms = [_norm_of(variables, fold) for fold in folds]
  ends = np.cumsum([norm["bias"].size for norm, _, _ in norms])[:-1]
  joined = _terms_of_vectors(
    {name: np.concatenate([norm[name] for norm, _, _ in norms]) for name in ("scale", "bias")},
    {name: np.concatenate([own[name] for _, own, _ in norms]) for name in ("mean", "var")},
    np.concatenate([np.full(own["var"].shape, epsilon, np.float32) for _, own, epsilon in norms]),
  )
  factors, terms = (np.split(np.asarray(vector), ends) for vector in joined)
  return jax.device_put(_fold(variables, folds, list(zip(factors, terms, strict=True))))


def _norm_of(variables: Mapping[str, Any], fold: Fold) -> tuple[Any, Any, float]:
  return _at(variables["params"], fold.norm), _at(variables["batch_stats"], fold.norm), fold.epsilon


def _terms(norm: Mapping[str, Any], own: Mapping[str, Any], epsilon: Any) -> tuple[Any, Any]:
  """What a norm multiplies each channel by, and what it then adds to it."""
  factor = norm["scale"] * jax.lax.rsqrt(own["var"] + epsilon)
  return factor, norm["bias"] - factor * own["mean"]


_terms_of_vectors = jax.jit(_terms)


def _fold(
  variables: Mapping[str, Any], folds: Sequence[Fold], terms: Sequence[tuple[Any, Any]]
) -> dict[str, Any]:
  # Dicts alone are copied; the arrays are those of the network.
  params, stats = (jax.tree.map(lambda x: x, dict(variables.get(g, {}))) for g in _GROUPS)
  for fold, (factor, term) in zip(folds, terms, strict=True):
    _pop(stats, fold.norm)
    norm, convolution = _at(params, fold.norm), _at(params, fold.convolution)
    del norm["scale"]
    norm["bias"] = term
    convolution.update({name: value * factor for name, value in convolution.items()})
  return {group: tree for group, tree in zip(_GROUPS, (params, stats), strict=True) if tree}


_GROUPS = ("params", "batch_stats")


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
  for name in path:
    tree = tree[name]
  return tree


def _pop(tree: dict[str, Any], path: Sequence[str]) -> Any:
  """Removes and returns a subtree, and removes the branches that this leaves empty."""
  if len(path) == 1:
    return tree.pop(path[0])
  found = _pop(tree[path[0]], path[1:])
  if not tree[path[0]]:
    del tree[path[0]]
  return found
