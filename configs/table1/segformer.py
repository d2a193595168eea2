"""SegFormer-B0 under the recipe of the paper.

    python launch.py --config=configs/table1/segformer.py

From scratch; its authors start the encoder from weights trained on ImageNet.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the network."""
  config = base.get_config()
  config.model.name = "segformer"
  return config
