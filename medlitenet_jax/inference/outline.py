"""The outline of a lesion: mask, uncertainty and measurements of one photograph."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.inference.ensemble import Maps
from medlitenet_jax.inference.networks import Network, create_predict
from medlitenet_jax.scores.confidence import entropy_bits, expected_dice
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.scores.measure import measure_lesion


class Outline(NamedTuple):
  """What networks find in a photograph of height H and width W, from maps of S by S pixels.

  Attributes:
    mask: [H, W] uint8, 1 where there is lesion, else 0.
    probs: [S, S] float32, probability of lesion.
    disagreement: [S, S] float32, standard deviation of it over networks and views.
    entropy: [S, S] float32, uncertainty of each pixel in bits, 0 to 1.
    confidence: the Dice that the mask is expected to reach, 0 to 1, see `expected_dice`.
    likeness: how much the photograph looks like those that the networks have learned from, 0 to 1,
      see `likeness_of`; None if no network says.
    measurements: of the mask, by the names of `measure_lesion`.
    boundary: [S, S] float32, probability that the lesion's border is there, by the boundary maps of
      the networks, not by the mask; None if they have none.
  """

  mask: np.ndarray
  probs: np.ndarray
  disagreement: np.ndarray
  entropy: np.ndarray
  confidence: float
  likeness: float | None
  measurements: dict[str, float | int | str | None]
  boundary: np.ndarray | None = None


def mask_rule(evaluation: ConfigDict, threshold: float) -> MaskRule:
  """The rule of `config.eval`.

  Args:
    evaluation: `config.eval`, resolved.
    threshold: in force: its own, or where that is 0 the one that was chosen on validation cases.

  Returns:
    The rule.
  """
  return MaskRule(threshold, evaluation.hysteresis_low, tuple(evaluation.postprocess))


def maps_of(
  photograph: np.ndarray,
  networks: Sequence[Network],
  *,
  preprocessing: Preprocessing | None = None,
  tta: str = "none",
) -> Maps:
  """Runs networks on one photograph.

  Args:
    photograph: [H, W, 3] uint8 RGB.
    networks: with weights of sum 1.
    preprocessing: cleans what the networks see; None: nothing is cleaned.
    tta: test-time augmentation, "none" or "six".

  Returns:
    What they give, on the host; S is the largest size of the networks.

  Raises:
    AssertionError: if the photograph is not [H, W, 3] uint8.
  """
  chex.assert_shape(photograph, (None, None, 3))
  chex.assert_type(photograph, np.uint8)
  clean = (preprocessing or Preprocessing())(photograph)
  sizes = {network.image_size for network in networks}
  images = {size: resize_image(clean, size, size)[None] for size in sizes}
  return jax.tree.map(lambda array: np.asarray(array)[0], create_predict(networks, tta)(images))


def outline(
  photograph: np.ndarray,
  networks: Sequence[Network],
  rule: MaskRule,
  mm_per_pixel: float | None = None,
  *,
  preprocessing: Preprocessing | None = None,
  tta: str = "none",
) -> Outline:
  """Outlines the lesion in a photograph.

  Args:
    photograph: [H, W, 3] uint8 RGB.
    networks: as in `maps_of`.
    rule: makes the mask.
    mm_per_pixel: side of a pixel on the skin, or None if it is not known.
    preprocessing: as in `maps_of`.
    tta: as in `maps_of`.

  Returns:
    The outline; S is the largest size of the networks.

  Raises:
    AssertionError: if the photograph is not [H, W, 3] uint8.
    ValueError: if mm_per_pixel is not above 0.
  """
  maps = maps_of(photograph, networks, preprocessing=preprocessing, tta=tta)
  height, width = photograph.shape[:2]
  return outline_of_maps(maps, height, width, rule, mm_per_pixel)


def outline_of_maps(
  maps: Maps,
  height: int,
  width: int,
  rule: MaskRule,
  mm_per_pixel: float | None = None,
) -> Outline:
  """Outlines the lesion in a photograph that networks have seen.

  Args:
    maps: what they give for this photograph, on the host.
    height: of the photograph, in pixels.
    width: of the photograph, in pixels.
    rule: makes the mask.
    mm_per_pixel: side of a pixel on the skin, or None if it is not known.

  Returns:
    The outline.

  Raises:
    AssertionError: if the maps are not of one shape [S, S].
    ValueError: if mm_per_pixel is not above 0.
  """
  probs, disagreement, likeness, boundary = maps
  chex.assert_rank([probs, disagreement], 2)
  chex.assert_equal_shape([probs, disagreement])
  mask = rule.mask(probs, height, width)
  return Outline(
    mask=mask,
    probs=probs,
    disagreement=disagreement,
    entropy=entropy_bits(probs),
    confidence=expected_dice(probs, rule.mask(probs, *probs.shape)),
    likeness=None if likeness is None else float(likeness),
    measurements=measure_lesion(mask, mm_per_pixel),
    boundary=boundary,
  )
