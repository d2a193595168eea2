"""Six-fold test-time augmentation: identity, two flips and three quarter turns."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Each view of a photograph with what turns a map of that view back.
VIEWS: tuple[tuple[Callable, Callable], ...] = (
  (lambda x: x, lambda y: y),
  (lambda x: jnp.flip(x, 1), lambda y: jnp.flip(y, 1)),
  (lambda x: jnp.flip(x, 2), lambda y: jnp.flip(y, 2)),
  *(
    (lambda x, k=k: jnp.rot90(x, k, (1, 2)), lambda y, k=k: jnp.rot90(y, -k, (1, 2)))
    for k in (1, 2, 3)
  ),
)


def six_views(predict: Callable[[jax.Array], jax.Array], image: jax.Array) -> jax.Array:
  """Runs a network on six views of each photograph; their mean is the augmented prediction.

  The views run one after another through one compiled network, so memory and compile time are
  those of a single view.

  Args:
    predict: [B, S, S, 3] image to [B, S, S] probabilities.
    image: [B, S, S, 3], any dtype.

  Returns:
    [6, B, S, S] probabilities, each turned back to the photograph's own orientation.
  """
  views = jnp.stack([view(image) for view, _ in VIEWS])
  probs = jax.lax.map(predict, views)
  return jnp.stack([back(p) for (_, back), p in zip(VIEWS, probs, strict=True)])
