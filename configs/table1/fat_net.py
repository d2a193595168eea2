"""FAT-Net under the recipe of the paper.

    python launch.py --config=configs/table1/fat_net.py

From scratch; its authors start both encoders from weights trained on ImageNet, and train and test
at 224 pixels a side.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the network."""
  config = base.get_config()
  config.model.name = "fat_net"
  return config
