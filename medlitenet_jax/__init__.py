"""MedLiteNet: a lightweight CNN-Transformer hybrid for skin-lesion segmentation.

import medlitenet_jax
segment = medlitenet_jax.load("base")   # a released name, a weights file, or the folder of a run
probs = segment(photograph)             # [H, W, 3] uint8 RGB to [H, W] float32
found = segment.outline(photograph)     # mask, uncertainty and measurements
"""

from typing import TYPE_CHECKING

from medlitenet_jax.system.version import __version__ as __version__

if TYPE_CHECKING:
  from pathlib import Path

  from medlitenet_jax.inference.segmenter import Segmenter


def load(place: "str | Path", threshold: float | None = None) -> "Segmenter":
  """Opens a trained network.

  JAX is imported here and not with the package, which costs nothing to import.

  Args:
    place: name of released weights, path of a weights file, or folder of a run.
    threshold: probability at or above which a pixel of a mask is lesion; None: the network's own.

  Returns:
    A function from photograph to probabilities, which also has `outline`; see
    `medlitenet_jax.inference.segmenter`.

  Raises:
    InputError: if there is nothing of the kind, or it cannot be used.
  """
  from medlitenet_jax.inference import segmenter

  return segmenter.load(place, threshold)
