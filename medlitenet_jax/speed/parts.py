"""A network part by part: parameters, output and operations."""

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
    name: a submodule's; within an expanded one both names, as "encoder/stage1".
    shape: of its output for one image, without the batch.
    params: number of parameters.
    flops: floating-point operations of a forward pass of one image, a multiply-add being two.
  """

  name: str
  shape: tuple[int, ...] = ()
  params: int = 0
  flops: float = 0.0


def count_parts(fields: dict[str, Any], image_size: int) -> list[Part]:
  """Counts a network's parts in the order in which they run.

  Operations are those of the plain convolutions, whatever form the configuration runs: the sum
  that a layer stands for, not the way it is computed.

  Args:
    fields: `config.model` as a mapping.
    image_size: pixels a side of the input.

  Returns:
    One `Part` a submodule, or a submodule of one that the network's entry expands; what is computed
    between them is in none.
  """
  model = create_model({**fields, "form": "library"}, jnp.float32)
  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
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
    own = _subtree(variables, path)
    apply = functools.partial(module.apply, **kwargs)
    cost = jax.jit(apply).lower(own, *args).cost_analysis() or {}
    part.shape = output.shape[1:]
    part.params += sum(leaf.size for leaf in jax.tree.leaves(own.get("params", {})))
    part.flops += cost.get("flops", 0.0)
  return list(parts.values())


def count_forward(fields: dict[str, Any], dtype: Any, batch: int, image_size: int) -> Cost:
  """Counts the least work of a forward pass, norms folded, in plain convolutions.

  Args:
    fields: `config.model` as a mapping.
    dtype: compute dtype.
    batch: photographs.
    image_size: pixels a side of each.

  Returns:
    Cost from photographs of 8 bits to logits.
  """
  model = create_model({**fields, "form": "library"}, dtype)
  image = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8)
  blank = jax.ShapeDtypeStruct(image.shape, jnp.float32)
  folds = inspect_model(model, image_size).folds
  variables = jax.eval_shape(
    lambda image: fold_batch_norm(model.init(jax.random.key(0), image), folds), blank
  )

  def logits(own, image):
    outputs: Any = model.apply(own, normalize(image))
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
