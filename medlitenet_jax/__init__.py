"""MedLiteNet: a lightweight CNN-Transformer hybrid for skin-lesion segmentation.

import medlitenet_jax
segment = medlitenet_jax.load("base")   # a released name, or the path of a weights file
probs = segment(photograph)             # [H, W, 3] uint8 RGB to [H, W] float32
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from medlitenet_jax.formats.safetensors import Segmenter

__version__ = "0.1.0"


def load(name: str) -> "Segmenter":
  """Opens a trained network.

  JAX is imported here and not with the package, which costs nothing to import.

  Args:
    name: of released weights, or the path of a weights file.

  Returns:
    What `medlitenet_jax.formats.safetensors.load` gives: a function from photograph to
    probabilities.

  Raises:
    InputError: if there is no such file, or it cannot be used.
  """
  from medlitenet_jax.formats import safetensors

  return safetensors.load(name)
