"""A trained network as a Python function. Neither Orbax, Grain nor TFDS is needed for a file.

import medlitenet_jax
segment = medlitenet_jax.load("base")   # a released name, a weights file, or the folder of a run
probs = segment(photograph)             # [H, W, 3] uint8 RGB to [H, W] float32
found = segment.outline(photograph)     # mask, uncertainty and measurements
"""

from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.formats.safetensors import find_weights
from medlitenet_jax.inference.ensemble import Maps
from medlitenet_jax.inference.networks import Network, create_network
from medlitenet_jax.inference.outline import Outline, maps_of, mask_rule, outline_of_maps
from medlitenet_jax.inference.trained import open_trained


class Segmenter:
  """A network that finds the lesion in a photograph, as `--mode=predict` does.

  Attributes:
    config: the configuration that the network was trained with.
    image_size: side of the square that the network sees, in pixels.
    rule: makes the mask.
  """

  def __init__(self, network: Network, config: ConfigDict, threshold: float):
    """Takes a network; it is compiled when it is first called.

    Args:
      network: to be run.
      config: resolved; `preprocess` and `eval` are used.
      threshold: probability at or above which a pixel of the mask is lesion.
    """
    self.config = config
    self.image_size = network.image_size
    self.rule = mask_rule(config.eval, threshold)
    self._network = network
    self._preprocessing = Preprocessing(**config.preprocess)

  def _maps(self, photograph: np.ndarray) -> Maps:
    own = {"preprocessing": self._preprocessing, "tta": self.config.eval.tta}
    return maps_of(photograph, [self._network], **own)

  def __call__(self, photograph: np.ndarray) -> np.ndarray:
    """Maps where the lesion is.

    Args:
      photograph: [H, W, 3] uint8 RGB, of any size.

    Returns:
      [H, W] float32, the probability that a pixel is lesion.
    """
    probs = self._maps(photograph).probs
    return cv2.resize(probs, photograph.shape[1::-1], interpolation=cv2.INTER_LINEAR)

  def outline(self, photograph: np.ndarray, mm_per_pixel: float | None = None) -> Outline:
    """Outlines the lesion.

    Args:
      photograph: [H, W, 3] uint8 RGB, of any size.
      mm_per_pixel: side of a pixel on the skin, or None if it is not known.

    Returns:
      The outline: `mask` at the photograph's own size; `probs`, `disagreement` and `entropy` of
      `image_size` pixels a side, as the network gives them.
    """
    maps = self._maps(photograph)
    height, width = photograph.shape[:2]
    return outline_of_maps(maps, height, width, self.rule, mm_per_pixel)


def load(place: str | Path, threshold: float | None = None) -> Segmenter:
  """Opens a trained network.

  Args:
    place: name of released weights, path of a weights file, or folder of a run.
    threshold: of the mask, above 0; None: that of the configuration or, where it leaves the choice
      to the validation cases, the one that an evaluation in the run's folder has chosen.

  Returns:
    A function from photograph to probabilities.

  Raises:
    InputError: if there is nothing of the kind, it cannot be used, or no threshold was chosen.
  """
  trained = open_trained(place if Path(place).is_dir() else find_weights(str(place)))
  network = create_network(trained, trained.config)
  threshold = threshold or trained.config.eval.threshold
  if not threshold:
    from medlitenet_jax.inference.threshold import read_threshold  # imports Grain

    threshold = read_threshold([network], trained.config, Path(place))
  return Segmenter(network, trained.config, threshold)
