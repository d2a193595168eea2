"""Folds BatchNorm into the convolution before it, for networks that are no longer trained."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax


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
  # The copy is shallow: new dicts, the same arrays.
  params, stats = (jax.tree.map(lambda x: x, dict(variables.get(g, {}))) for g in _GROUPS)
  for fold in folds:
    statistics = _pop(stats, fold.norm)
    norm, convolution = _at(params, fold.norm), _at(params, fold.convolution)
    factor = norm.pop("scale") * jax.lax.rsqrt(statistics["var"] + fold.epsilon)
    norm["bias"] = norm["bias"] - factor * statistics["mean"]
    convolution.update({name: value * factor for name, value in convolution.items()})
  return {group: tree for group, tree in zip(_GROUPS, (params, stats), strict=True) if tree}


_GROUPS = ("params", "batch_stats")


def _at(tree: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
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
