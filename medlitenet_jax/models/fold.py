"""BatchNorm taken into the convolutions before it, for networks that no longer learn."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Fold(NamedTuple):
  """A norm and the convolution that it can be folded into.

  Attributes:
    norm: names of the modules from the network down to the norm.
    convolution: the same of the convolution whose result is all that the norm sees.
    epsilon: that the norm adds to the variance.
  """

  norm: tuple[str, ...]
  convolution: tuple[str, ...]
  epsilon: float


def fold_batch_norm(variables: Mapping[str, Any], folds: Sequence[Fold]) -> dict[str, Any]:
  """Gives the same function with one multiplication less for each value that a norm saw.

  With running statistics a norm is a factor and a term for each channel,

    scale (W x + b - mean) / sqrt(var + epsilon) + bias = (factor W) x + factor b + (bias - factor
    mean),

  so the factor goes into the convolution and the term becomes the norm's bias.

  Args:
    variables: {"params", "batch_stats"} of a network; one without norms may lack the latter.
    folds: of the network's structure. A norm that is in none is left as it is.

  Returns:
    Variables with which the same module computes the same, float32: a norm that finds no statistics
    adds its bias. "batch_stats" is left out where no norm keeps any.

  Raises:
    KeyError: if the variables lack a norm or a convolution of `folds`.
  """
  # Dicts alone are copied; the arrays are those of the network.
  params, stats = (jax.tree.map(lambda x: x, dict(variables.get(g, {}))) for g in _GROUPS)
  for fold in folds:
    own = _pop(stats, fold.norm)
    norm, convolution = _at(params, fold.norm), _at(params, fold.convolution)
    factor = norm.pop("scale") * jax.lax.rsqrt(own["var"] + fold.epsilon)
    norm["bias"] = norm["bias"] - factor * own["mean"]
    convolution.update({name: value * factor for name, value in convolution.items()})
  return {group: tree for group, tree in zip(_GROUPS, (params, stats), strict=True) if tree}


_GROUPS = ("params", "batch_stats")


def _at(tree: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
  for name in path:
    tree = tree[name]
  return tree


def _pop(tree: dict[str, Any], path: Sequence[str]) -> Any:
  """Takes a subtree out, and the branches that are empty without it."""
  if len(path) == 1:
    return tree.pop(path[0])
  found = _pop(tree[path[0]], path[1:])
  if not tree[path[0]]:
    del tree[path[0]]
  return found
