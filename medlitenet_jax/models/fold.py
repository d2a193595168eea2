"""BatchNorm taken into the convolutions before it, for networks that no longer learn."""

from collections.abc import Mapping
from typing import Any

import jax

from medlitenet_jax.models.layers import Norm


def fold_batch_norm(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Gives the same function with one multiplication less for each value that a norm saw.

  With running statistics a norm is a factor and a term for each channel,

    scale (W x - mean) / sqrt(var + epsilon) + bias = (factor W) x + (bias - factor mean),

  so the factor goes into the kernel of the convolution and the term becomes the norm's bias.

  Args:
    variables: {"params", "batch_stats"} of a network whose every norm follows a convolution
      without bias and is called as it is with `_norm` behind, or `norm` after `pointwise`.

  Returns:
    {"params"}, with which the same module computes the same: a norm that finds no statistics adds
    its bias. A network without norms comes back as it is. Float32.

  Raises:
    KeyError: if a norm has no such convolution.
  """

  def fold(params, stats):
    folded = {name: value for name, value in params.items() if name not in stats}
    for name, own in stats.items():
      if set(own) != {"mean", "var"}:
        folded[name] = fold(params[name], own)
        continue
      convolution = name.removesuffix("_norm") if name != "norm" else "pointwise"
      factor = params[name]["scale"] * jax.lax.rsqrt(own["var"] + Norm.epsilon)
      folded[convolution] = {"kernel": params[convolution]["kernel"] * factor}
      folded[name] = {"bias": params[name]["bias"] - factor * own["mean"]}
    return folded

  return {"params": fold(variables.get("params", {}), variables.get("batch_stats", {}))}
