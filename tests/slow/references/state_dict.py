"""Parameters of networks written in PyTorch, brought into the names and layouts of Flax."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from medlitenet_jax.system.errors import InputError

# Names of a module's arrays in PyTorch by those in Flax.
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def from_pytorch(
  state: Mapping[str, np.ndarray],
  shapes: Mapping[str, Any],
  renames: Sequence[tuple[str, str]] = (),
  transposed: str = "$^",
) -> dict[str, Any]:
  """Takes a network's variables from a PyTorch state dict.

  Args:
    state: arrays by name, as `state_dict()` of the PyTorch network has them.
    shapes: {"params", "batch_stats"} or a part of them: trees of shapes to be filled.
    renames: (pattern, replacement) of `re.sub`, applied in order to the name of each of our arrays,
      such as "encoder/layer1/conv/weight", to give the name in PyTorch; "/" then becomes ".".
    transposed: pattern that is found in the names, as above, of the kernels of transposed
      convolutions.

  Returns:
    Trees like `shapes` of float32 arrays. Kernels are laid out as Flax has them: [h, w, in, out]
    for convolutions, turned by half a turn for transposed ones, and [in, out] for linear layers.

  Raises:
    InputError: if an array is missing or has another shape; names it.
  """

  def take(path, leaf):
    *modules, name = [key.key for key in path[1:]]
    ours = "/".join((*modules, _LEAVES.get(name, name)))
    theirs = ours
    for pattern, replacement in renames:
      theirs = re.sub(pattern, replacement, theirs)
    theirs = theirs.replace("/", ".")
    if theirs not in state:
      raise InputError(f"{theirs}: missing, for {ours}")
    value = np.asarray(state[theirs], np.float32)
    if name == "kernel" and value.ndim == 4:
      turned = re.search(transposed, ours) is not None
      value = value.transpose(2, 3, 0, 1)[::-1, ::-1] if turned else value.transpose(2, 3, 1, 0)
    elif name == "kernel" and value.ndim == 2:
      value = value.T.reshape(leaf.shape) if value.size == np.prod(leaf.shape) else value
    elif value.size == np.prod(leaf.shape):
      value = value.reshape(leaf.shape)
    if value.shape != leaf.shape:
      raise InputError(f"{theirs}: has shape {value.shape}, where {ours} has {leaf.shape}")
    return np.ascontiguousarray(value)

  return jax.tree_util.tree_map_with_path(take, dict(shapes))
