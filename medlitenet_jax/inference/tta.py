"""Test-time augmentation: six views of a photograph, by flips and quarter turns."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

# Each view of a photograph, with the function that turns a map of that view back.
VIEWS: tuple[tuple[Callable, Callable], ...] = (
  (lambda x: x, lambda y: y),
  (lambda x: jnp.flip(x, 1), lambda y: jnp.flip(y, 1)),
  (lambda x: jnp.flip(x, 2), lambda y: jnp.flip(y, 2)),
  *(
    (lambda x, k=k: jnp.rot90(x, k, (1, 2)), lambda y, k=k: jnp.rot90(y, -k, (1, 2)))
    for k in (1, 2, 3)
  ),
)


def six_views(probs: Callable[[jax.Array], Any], image: Any) -> jax.Array:
  """Runs a network on six views of each photograph.

  The network is called six times with images of one shape, so it is compiled once and needs the
  memory of one view. It may compute outside JAX.

  Args:
    probs: the network, [B, S, S, 3] images to [B, S, S] float32 probabilities.
    image: [B, S, S, 3], any dtype.

  Returns:
    [6, B, S, S] float32 probabilities, each turned back to the photograph's own orientation; their
    mean is the augmented prediction.

  Raises:
    AssertionError: if the image or a result of `probs` has another shape.
  """
  chex.assert_shape(image, (None, None, image.shape[1], 3))
  maps = tuple(probs(view) for view in _turned(image))
  chex.assert_shape(maps, image.shape[:3])
  return _turned_back(maps)


@jax.jit
def _turned(image):
  return tuple(view(image) for view, _ in VIEWS)


@jax.jit
def _turned_back(maps):
  return jnp.stack([back(probs) for (_, back), probs in zip(VIEWS, maps, strict=True)])
