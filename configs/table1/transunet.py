"""TransUNet under the recipe of the paper, at its published input size.

    python launch.py --config=configs/table1/transunet.py

From scratch; its authors start from weights trained on ImageNet-21k. For 256 pixels a side:
`--config.model.variant=size_256` and `--config.train.image_sizes="(256,)"`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the network."""
  config = base.get_config()
  config.model.name = "transunet"
  config.train.image_sizes = (224,)
  return config
