"""Normalises photographs and runs a network on them, on the device."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models import ops

# RGB mean and standard deviation of ImageNet, as fractions of full scale (paper IV-A).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(image):
  """Normalises photographs with ImageNet's mean and standard deviation.

  Done on the device: sending uint8 pixels there takes a quarter of the traffic of float32.

  Args:
    image: [..., 3] uint8 RGB, 0 to 255.

  Returns:
    The same shape, float32, centred near zero.
  """
  chex.assert_axis_dimension(image, -1, 3)
  mean, std = jnp.asarray(IMAGENET_MEAN), jnp.asarray(IMAGENET_STD)
  return (image.astype(jnp.float32) / 255 - mean) / std


def look(model: nn.Module, variables: Any, image: jax.Array) -> dict[str, jax.Array]:
  """Runs a network on photographs, in inference mode.

  Args:
    model: maps normalised images to {"mask": logits, ...}.
    variables: the network's variables.
    image: [B, S, S, 3] uint8 RGB.

  Returns:
    "probs": [B, S, S] float32, the probability that a pixel is lesion.
    What else the network says:
      "features": [B, D] float32, what it sees in each photograph;
      "boundary": [B, S, S] float32, the probability that the lesion's border is there, by the
        last of its finest boundary maps;
      "class": [B, K] float32 logits of the classes.
  """
  chex.assert_shape(image, (None, None, None, 3))
  outputs: Any = model.apply(variables, normalize(image))
  found = {"probs": nn.sigmoid(outputs["mask"][..., 0].astype(jnp.float32))}
  found |= {name: outputs[name] for name in ("features", "class") if name in outputs}
  if outputs.get("boundaries"):
    finest = max(reversed(outputs["boundaries"].values()), key=lambda logits: logits.shape[1])
    found["boundary"] = ops.enlarge(nn.sigmoid(finest), *image.shape[1:3])[..., 0]
  return found


def lesion_probs(model: nn.Module, variables: Any, image: jax.Array) -> jax.Array:
  """The "probs" of `look`."""
  return look(model, variables, image)["probs"]
