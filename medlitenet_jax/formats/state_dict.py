"""Arrays of networks written elsewhere, brought into the names and layouts of our own."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from medlitenet_jax.system.errors import InputError

Renames = Sequence[tuple[str, str]]
# Names of a module's arrays in PyTorch by those in Flax.
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Arrays that lie on a square grid, and how many rows may stand before those of the grid: a vision
# transformer has a position for its class token, too.
_GRIDS = {"positions": 1, "position_bias": 0}


def foreign_name(place: str, renames: Renames, *, pytorch: bool = True) -> str:
  """The name that an array of ours has elsewhere.

  Args:
    place: of our array, such as "params/encoder/layer1/conv/kernel".
    renames: (pattern, replacement) of `re.sub`, applied in order to the place without "params" or
      "batch_stats". A number of a replacement in angle brackets counts from 1 here and from 0
      there: r"blocks/<\\1>/".
    pytorch: whether that is a state dict of PyTorch. Then patterns see the array's own name as
      PyTorch has it ("weight", "running_mean"), and "/" becomes "." at the end.

  Returns:
    The name.
  """
  *modules, leaf = place.split("/")[1:]
  name = "/".join((*modules, _LEAVES.get(leaf, leaf) if pytorch else leaf))
  for pattern, replacement in renames:
    name = re.sub(pattern, replacement, name)
  name = re.sub(r"<(\d+)>", lambda number: str(int(number[1]) - 1), name)
  return name.replace("/", ".") if pytorch else name


def in_our_layout(
  value: np.ndarray,
  place: str,
  shape: Sequence[int],
  *,
  pytorch: bool = True,
  transposed: bool = False,
) -> np.ndarray:
  """Brings an array from elsewhere into our layout.

  Kernels become [h, w, in, out] for convolutions and [in, out] for linear layers. Axes of length 1
  come and go, and attention heads that have an axis of their own lose it. Positions and their
  biases on another square grid are interpolated linearly, corner to corner.

  Args:
    value: the array.
    place: of our array, as `foreign_name` takes it.
    shape: of our array.
    pytorch: whether it is laid out as in PyTorch; else as in Flax.
    transposed: whether it is the kernel of a transposed convolution of PyTorch, which is turned by
      half a turn.

  Returns:
    The array, float32, of our shape; of another shape if it does not fit.
  """
  value, leaf = np.asarray(value), place.rsplit("/", 1)[-1]
  if leaf in _GRIDS:
    value = _on_grid(value, shape, _GRIDS[leaf])
  if pytorch and leaf == "kernel" and value.ndim == 4:
    value = value.transpose(2, 3, 0, 1)[::-1, ::-1] if transposed else value.transpose(2, 3, 1, 0)
  elif pytorch and leaf == "kernel" and value.ndim == 2:
    value = value.T
  lengths, ours = ([n for n in sides if n > 1] for sides in (value.shape, shape))
  heads = not pytorch and len(lengths) > len(ours) and value.size == math.prod(shape)
  value = value.reshape(shape) if lengths == ours or heads else value
  return value.astype(np.float32, copy=False)


def _on_grid(value: np.ndarray, shape: Sequence[int], most_before: int) -> np.ndarray:
  """Interpolates [..., N, C], row-major over a square, to a grid [..., C]; else gives it back."""
  *sides, channels = shape
  if value.ndim < 2 or value.shape[-1] != channels:
    return value
  rows = value.reshape(-1, channels)
  side = math.isqrt(len(rows))
  before = len(rows) - side**2
  if before > most_before:
    return value
  grid = rows[before:].reshape(side, side, channels)
  rows_and_columns = sides if len(sides) == 2 else [math.isqrt(sides[0])] * 2
  down, along = (
    np.stack([np.interp(np.linspace(0, side - 1, n), range(side), at) for at in np.eye(side)], 1)
    for n in rows_and_columns
  )
  return np.einsum("ia,jb,abc->ijc", down, along, grid, optimize=True).reshape(shape)


def from_pytorch(
  state: Mapping[str, np.ndarray],
  shapes: Mapping[str, Any],
  renames: Renames = (),
  transposed: str = "$^",
) -> dict[str, Any]:
  """Takes a network's variables from a PyTorch state dict.

  Args:
    state: arrays by name, as `state_dict()` of the PyTorch network has them.
    shapes: {"params", "batch_stats"} or a part of them: trees of shapes to be filled.
    renames: as `foreign_name` takes them.
    transposed: pattern that is found in the places of the kernels of transposed convolutions,
      "params" left out.

  Returns:
    Trees like `shapes` of float32 arrays.

  Raises:
    InputError: if an array is missing or has another shape; names it.
  """
  found = {}
  for place, leaf in traverse_util.flatten_dict(dict(shapes), sep="/").items():
    theirs = foreign_name(place, renames)
    if theirs not in state:
      raise InputError(f"{theirs}: missing, for {place}")
    turned = re.search(transposed, place.split("/", 1)[1]) is not None
    value = in_our_layout(state[theirs], place, leaf.shape, transposed=turned)
    if value.shape != leaf.shape:
      raise InputError(f"{theirs}: gives {value.shape}, where {place} is {leaf.shape}")
    found[place] = value
  return traverse_util.unflatten_dict(found, sep="/")
