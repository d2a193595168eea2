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


def expand(knockouts: Mapping[str, Knockout], paths: Sequence[str]) -> dict[str, Knockout]:
  """Adds a knock-out of each single module to those that silence several.

  Args:
    knockouts: by name.
    paths: of the network's modules.

  Returns:
    The knock-outs that silence a module of the network, each followed by those of its modules under
    their paths. A module of several stands with the one that silences the fewest; one that has a
    knock-out of its own has no other.
  """
  matches = {name: _matches(knockout, paths) for name, knockout in knockouts.items()}
  matches = {name: modules for name, modules in matches.items() if modules}
  home = {
    path: min((name for name in matches if path in matches[name]), key=lambda n: len(matches[n]))
    for path in paths
    if any(path in modules for modules in matches.values())
  }
  found: dict[str, Knockout] = {}
  for name, modules in matches.items():
    found[name] = knockouts[name]
    if len(modules) > 1:
      found |= {path: {path: modules[path]} for path in modules if home[path] == name}
  return found


def is_module(name: str, knockout: Knockout) -> bool:
  """Whether `expand` has added this knock-out: that of one module, named by its path."""
  return list(knockout) == [name]


def _matches(knockout: Knockout, paths: Sequence[str]) -> dict[str, Silent]:
  """The modules that a knock-out silences."""
  return {
    path: silent
    for path in paths
    for pattern, silent in knockout.items()
    if fnmatch.fnmatchcase(path, pattern)
  }
