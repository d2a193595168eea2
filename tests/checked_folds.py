"""Checks that the norms of a network name the convolutions whose results they take."""

import functools
from typing import Any

import flax.linen as nn
import jax

from medlitenet_jax.models.layers import Norm
from medlitenet_jax.models.structure import Structure


def check_folds(model: nn.Module, structure: Structure, image: jax.ShapeDtypeStruct) -> Any:
  """Fails if a norm's input is not the result of the convolution that it names, or is used twice.

  Args:
    model: a network.
    structure: of it.
    image: [B, H, W, 3] photographs that it takes.

  Returns:
    Shapes of its outputs in inference.
  """
  results, readers = {}, {}

  def note(next_call, args, kwargs, context):
    module, path = context.module, context.module.path
    for value in args:
      readers.setdefault(id(value), []).append(path)
    if isinstance(module, Norm) and module.folds_into:
      convolution = (*path[:-1], module.folds_into)
      assert args[0] is results[convolution], f"{path} does not take what {convolution} gives"
    results[path] = next_call(*args, **kwargs)  # kept, so that no two share an id
    return results[path]

  with nn.intercept_methods(note):
    outputs = jax.eval_shape(functools.partial(model.apply), structure.shapes, image)
  for fold in structure.folds:
    assert readers[id(results[fold.convolution])] == [fold.norm], fold
  return outputs
