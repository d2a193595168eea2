"""Counts parameters, output shape and operations of each part of a network."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.forward import normalize
from medlitenet_jax.models.registry import NETWORKS, create_model
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.speed.cost import Cost, count_cost


@dataclasses.dataclass
class Part:
  """One part of a network.

  Attributes:
    name: name of the submodule; inside an expanded one, both names, as in "encoder/stage1".
    shape: shape of its output for one image, without the batch axis.
    params: number of parameters.
    flops: of a forward pass of one image, see `Cost`.
  """

  name: str
  shape: tuple[int, ...] = ()
  params: int = 0
  flops: float = 0.0


def count_parts(fields: dict[str, Any], image_size: int) -> list[Part]:
  """Counts each part of a network, in the order in which they run.

  Operations are counted for plain convolutions, whatever form the configuration runs: they measure
  what a layer computes, not how.

  Args:
    fields: `config.model` as a mapping.
    image_size: side of the input in pixels.

  Returns:
    One `Part` per submodule, or per group inside a submodule that the network's entry expands.
    Operations between submodules are not counted.
  """
  model = create_model({**fields, "form": "library"}, jnp.float32)
  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  variables = inspect_model(model, image_size).shapes
  expanded = [(name,) for name in NETWORKS[fields["name"]].expanded]
  calls: list[tuple[tuple[str, ...], nn.Module, Any, Any, Any]] = []

  def note(next_call, args, kwargs, context):
    output = next_call(*args, **kwargs)
    path = context.module.path
    if context.method_name == "__call__" and len(path) == (2 if path[:1] in expanded else 1):
      shapes = jax.tree.map(_shape_of, (args, jax.tree.leaves(output)[0]))
      calls.append((path, context.module.clone(parent=None), *shapes, kwargs))
    return output

  with nn.intercept_methods(note):
    jax.eval_shape(model.apply, variables, image)

  parts: dict[str, Part] = {}
  for path, module, args, output, kwargs in calls:
    name = path[0] if len(path) == 1 else f"{path[0]}/{path[1].split('_')[0]}"
    part = parts.setdefault(name, Part(name))
    subtree = _subtree(variables, path)
    part.shape = output.shape[1:]
    part.params += sum(leaf.size for leaf in jax.tree.leaves(subtree.get("params", {})))
    part.flops += count_cost(functools.partial(module.apply, **kwargs), subtree, *args).flops
  return list(parts.values())


def count_forward(fields: dict[str, Any], dtype: Any, batch: int, image_size: int) -> Cost:
  """Counts the minimum work of a forward pass in plain convolutions, with folded norms.

  Args:
    fields: `config.model` as a mapping.
    dtype: compute dtype.
    batch: number of photographs.
    image_size: side of each photograph in pixels.

  Returns:
    Cost from uint8 photographs to logits.
  """
  model = create_model({**fields, "form": "library"}, dtype)
  image = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8)
  structure = inspect_model(model, image_size)
  fold = functools.partial(fold_batch_norm, folds=structure.folds)
  variables = jax.eval_shape(fold, structure.shapes)

  def logits(variables, image):
    outputs: Any = model.apply(variables, normalize(image))
    return outputs["mask"]

  return count_cost(logits, variables, image)


def _shape_of(leaf):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _subtree(variables, path):
  found = {}
  for collection, tree in variables.items():
    for name in path:
      tree = tree.get(name, {})
    if tree:
      found[collection] = tree
  return found
