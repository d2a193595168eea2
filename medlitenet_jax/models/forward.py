"""From a photograph's pixels to what the network sees and what it makes of it, on the device."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Mean and standard deviation of ImageNet's photographs, as fractions of full scale (paper IV-A).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(image):
  """Standardises a photograph by ImageNet's statistics.

  Pixels travel to the device as bytes, a quarter of the traffic of floats, and are normalised
  there.

  Args:
    image: [..., 3] uint8 RGB, 0 to 255.

  Returns:
    The same shape, float32, about zero.
  """
  mean, std = jnp.asarray(IMAGENET_MEAN), jnp.asarray(IMAGENET_STD)
  return (image.astype(jnp.float32) / 255 - mean) / std


def lesion_probs(model: nn.Module, variables: Any, image: jax.Array) -> jax.Array:
  """Runs a network on photographs.

  Args:
    model: maps normalised images to {"mask": logits, ...}.
    variables: of the network.
    image: [B, S, S, 3] uint8 RGB.

  Returns:
    [B, S, S] float32, the probability that a pixel is lesion.
  """
  outputs: Any = model.apply(variables, normalize(image))
  return nn.sigmoid(outputs["mask"][..., 0].astype(jnp.float32))
