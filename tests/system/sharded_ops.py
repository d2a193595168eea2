"""Shares operations out among eight devices; `test_sharding.py` runs it in a process of its own.

Prints {name: [communications, error]}: what the devices tell each other, and how far the results
lie from those of one device, relative to the largest number of each.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from drawn_pairs import POLICY, SIZE, pairs

from medlitenet_jax.data.augment.on_device import pack_view, unpack_views
from medlitenet_jax.models import ops
from medlitenet_jax.system import devices

ROWS, CHANNELS = 16, 4


def with_gradients(function):
  """(x, kernel) to what the function gives and the gradients of a number made of it."""

  def loss(x, kernel):
    y = function(x, kernel)
    return jnp.sum(jnp.sin(y)) / ROWS, y

  def call(x, kernel):
    (_, y), (of_x, of_kernel) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
    return (y, of_x), of_kernel

  return call


def operations(rng):
  """Name, function and kernel of each."""
  depthwise = rng.normal(size=(3, 3, 1, CHANNELS)).astype(np.float32)
  dense = rng.normal(size=(3, 3, CHANNELS, 5)).astype(np.float32)
  for form in ops.FORMS[1:]:  # the first is one of the others
    for stride, dilation in ((1, 1), (1, 3), (2, 1)):
      options = {"stride": stride, "dilation": dilation, "form": form}

      def function(x, kernel, options=options):
        return ops.depthwise_conv(x, kernel, *options.values())

      yield f"depthwise {options}", function, depthwise
    downsampling = functools.partial(_call, ops.downsampling_conv, form)
    pointwise = functools.partial(_call, ops.pointwise_conv, form)
    yield f"downsampling {form}", downsampling, dense
    yield f"pointwise {form}", pointwise, dense[1:2, 1:2]
    yield f"upsample {form}", functools.partial(_upsample, form), depthwise
  yield (
    "batch norm",
    lambda x, k: ops.batch_norm(x, k[0, 0, 0], k[1, 1, 0], 1e-3, True)[0],
    depthwise,
  )


def _call(function, form, x, kernel):
  return function(x, kernel, form)


def _upsample(form, x, kernel):
  return ops.upsample2x(x, form) * kernel[0, 0, 0]


def compare(function, in_shardings, out_shardings, args):
  """Communications between the devices, and the largest relative error."""
  shared = jax.jit(function, in_shardings=in_shardings, out_shardings=out_shardings)
  program = shared.lower(*args).compile()
  kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
  said = re.findall(rf" ({kinds})(?:-start)?\(", program.as_text())
  found = jax.tree.leaves(shared(*args))
  expected = jax.tree.leaves(jax.jit(function)(*args))
  error = max(
    np.max(np.abs(np.float64(one) - np.float64(other))) / np.max(np.abs(np.float64(other)))
    for one, other in zip(found, expected, strict=True)
  )
  return said, float(error)


def main():
  """Compares every operation, then the augmentations on the device."""
  whole, shared = devices.replicated(), devices.batch_sharding()
  rng = np.random.default_rng(0)
  x = rng.normal(size=(ROWS, 9, 10, CHANNELS)).astype(np.float32)
  results = {
    name: compare(with_gradients(function), (shared, whole), (shared, whole), (x, kernel))
    for name, function, kernel in operations(rng)
  }
  views = [pack_view(rng, image, mask, SIZE, POLICY) for image, mask in pairs([(70, 90)] * 8)]
  packed = {name: np.stack([view[name] for view in views]) for name in views[0]}
  augment = functools.partial(unpack_views, policy=POLICY)
  results["augment"] = compare(augment, (shared,), shared, (packed,))
  print(json.dumps(results))


if __name__ == "__main__":
  main()
