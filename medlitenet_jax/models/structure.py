"""A network's variables and norms, found by tracing it without computing anything."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models.fold import Fold
from medlitenet_jax.models.layers import Norm, only_shapes


class Structure(NamedTuple):
  """The variables and norms of a network.

  Attributes:
    shapes: {"params", "batch_stats"}, each a tree of shapes and dtypes by module; "batch_stats" is
      empty for a network without BatchNorm.
    folds: the norms that can be folded into convolutions.
    paths: of the modules that are called, such as "mixer/layer1/attention", in that order.
  """

  shapes: dict[str, Any]
  folds: Sequence[Fold]
  paths: Sequence[str]


@functools.lru_cache(maxsize=16)
def inspect_model(model: nn.Module, image_size: int) -> Structure:
  """Traces a network's initialisation.

  Args:
    model: maps [B, S, S, 3] images to {"mask": logits, ...}.
    image_size: side in pixels, any that the network accepts.

  Returns:
    The structure of the network.
  """
  folds: dict[tuple[str, ...], Fold] = {}
  paths: dict[str, None] = {}

  def note(next_call, args, kwargs, context):
    norm, path = context.module, context.module.path
    if path:  # that of the network itself is empty
      paths["/".join(path)] = None
    if isinstance(norm, Norm) and norm.folds_into:
      folds[path] = Fold(path, (*path[:-1], norm.folds_into), norm.epsilon)
    return next_call(*args, **kwargs)

  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  with nn.intercept_methods(note), only_shapes():
    shapes = jax.eval_shape(lambda image: model.init(jax.random.key(0), image), image)
  return Structure({"batch_stats": {}, **shapes}, tuple(folds.values()), tuple(paths))
