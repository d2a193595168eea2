"""Checks that the norms of a network name the convolutions whose results they take."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models.layers import Norm
from medlitenet_jax.models.structure import inspect_model


def check_folds(model: nn.Module, size: int = 32) -> None:
  """Fails if a norm's input is not the result of the convolution that it names, or is used twice.

  Args:
    model: a network.
    size: pixels a side of a photograph that it takes.
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

  structure = inspect_model(model, size)
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  with nn.intercept_methods(note):
    jax.eval_shape(functools.partial(model.apply), structure.shapes, image)
  for fold in structure.folds:
    assert readers[id(results[fold.convolution])] == [fold.norm], fold
