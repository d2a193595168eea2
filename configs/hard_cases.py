"""Augmentations that make photographs harder: hairs, rulers, poor light, faint borders.

python launch.py --config=configs/hard_cases.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe with augmentations for the difficulties that the paper names."""
  config = base.get_config()
  config.augment.hairs_probability = 0.25
  config.augment.ruler_probability = 0.1
  config.augment.shadow_probability = 0.15
  config.augment.uneven_light_probability = 0.25
  config.augment.skin_tone_probability = 0.4
  config.augment.faint_border_probability = 0.25
  return config
