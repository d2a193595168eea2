"""Silences parts of a network, to see what a trained one loses without them."""

import contextlib
import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

# What stands in for the output of a silenced module: (its first input, its output) to that.
Silent = Callable[[Any, Any], Any]
# Modules to silence, by a pattern of their path ("*/attention", with * for any number of levels).
Knockout = Mapping[str, Silent]


def zero(x, y):
  """Zeros in place of the output."""
  del x
  return jax.tree.map(jnp.zeros_like, y)


def unchanged(x, y):
  """The input in place of the output, where the two have the same shape."""
  chex.assert_equal_shape([x, y])
  return x.astype(y.dtype)


def even(x, y):
  """The output's mean over the frame, at each pixel of [B, H, W, C]."""
  del x
  mean = jnp.mean(y, axis=(1, 2), keepdims=True, dtype=jnp.float32)
  return jnp.broadcast_to(mean, y.shape).astype(y.dtype)


def uniform_queries_and_keys(x, y):
  """Queries and keys of zero in the joint projection [B, N, 3 D]; a bias alone guides attention."""
  del x
  return y.at[..., : 2 * y.shape[-1] // 3].set(0)


@contextlib.contextmanager
def silencing(knockouts: Sequence[Knockout], on: jax.Array):
  """Has every module that is called within it silenced or not, by a switch for each knock-out.

  The switches may be traced, so that one compiled program serves for all knock-outs.

  Args:
    knockouts: what each switch silences.
    on: [K] bool, whether the parts of each knock-out are left as they are.
  """
  chex.assert_shape(on, (len(knockouts),))
  switches = list(on)

  def call(next_call, args, kwargs, context):
    y = next_call(*args, **kwargs)
    if context.method_name != "__call__":
      return y
    path = "/".join(context.module.path)
    for is_on, knockout in zip(switches, knockouts, strict=True):
      for pattern, silent in knockout.items():
        if fnmatch.fnmatchcase(path, pattern):
          choose = functools.partial(jnp.where, is_on)
          y = jax.tree.map(choose, y, silent(args[0] if args else None, y))
    return y

  with nn.intercept_methods(call):
    yield


def module_paths(model: nn.Module, image_size: int) -> list[str]:
  """Paths of the modules that a network calls, such as "mixer/layer1/attention", in that order.

  Args:
    model: maps [B, S, S, 3] images to {"mask": logits, ...}.
    image_size: side in pixels, any that the network accepts.
  """
  paths: dict[str, None] = {}

  def note(next_call, args, kwargs, context):
    paths["/".join(context.module.path)] = None
    return next_call(*args, **kwargs)

  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  with nn.intercept_methods(note):
    jax.eval_shape(lambda image: model.init(jax.random.key(0), image), image)
  return [path for path in paths if path]


def expand(knockouts: Mapping[str, Knockout], paths: Sequence[str]) -> dict[str, Knockout]:
  """Adds a knock-out of each single module to those that silence several.

  Args:
    knockouts: by name.
    paths: of the network's modules.

  Returns:
    The knock-outs that silence a module of the network. One that silences several is followed by
    those of its modules, under their paths, except for a module that has a name of its own.
  """
  own = [set(_matches(knockout, paths)) for knockout in knockouts.values()]
  found: dict[str, Knockout] = {}
  for name, knockout in knockouts.items():
    matches = _matches(knockout, paths)
    if matches:
      found[name] = knockout
    if len(matches) > 1:
      found |= {path: {path: silent} for path, silent in matches.items() if {path} not in own}
  return found


def _matches(knockout: Knockout, paths: Sequence[str]) -> dict[str, Silent]:
  """The modules that a knock-out silences."""
  return {
    path: silent
    for path in paths
    for pattern, silent in knockout.items()
    if fnmatch.fnmatchcase(path, pattern)
  }
