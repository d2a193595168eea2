"""Swin-Unet under the recipe of the paper, at its published input size.

    python launch.py --config=configs/table1/swin_unet.py

From scratch, which makes it much weaker than published: its authors start encoder and decoder from
weights trained on ImageNet. For 256 pixels a side: `--config.model.variant=window_8` and
`--config.train.image_sizes="(256,)"`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the network."""
  config = base.get_config()
  config.model.name = "swin_unet"
  config.train.image_sizes = (224,)
  return config
