"""DeepLabV3+ on MobileNetV2 under the recipe of the paper.

    python launch.py --config=configs/table1/deeplab_v3_plus.py

From scratch; most users start the encoder from weights trained on ImageNet.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the network."""
  config = base.get_config()
  config.model.name = "deeplab_v3_plus"
  return config
