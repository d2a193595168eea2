"""Attention U-Net under the recipe of the paper.

    python launch.py --config=configs/table1/attention_unet.py

`--config.model.variant=oktay` is the network as its authors have it.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the network."""
  config = base.get_config()
  config.model.name = "attention_unet"
  return config
