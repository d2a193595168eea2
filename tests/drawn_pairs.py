"""Drawings for what is augmented on the device."""

import cv2

from configs.base import get_config
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.synthetic import draw_dermoscopy

SIZE = 96
POLICY = AugmentPolicy(**get_config().augment)


def pairs(sizes):
  """Drawings as smooth as photographs, whose detail is coarser than their pixels."""
  drawn = (draw_dermoscopy(3, number, max(size)) for number, size in enumerate(sizes))
  return [
    (cv2.GaussianBlur(image, (0, 0), 1.5)[:height, :width], mask[:height, :width])
    for (image, mask), (height, width) in zip(drawn, sizes, strict=True)
  ]
