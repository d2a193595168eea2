"""U-Net++ under the recipe of the paper.

    python launch.py --config=configs/table1/unet_plus_plus.py

Without a norm, the authors' dropout of a half in every node doubles the second moment at each of up
to 18 convolutions in training, and not in evaluation: it learns slowly, and validation lags behind.
`--config.model.variant=batch_norm` is the port that most comparisons use, and
`--config.model.unet_plus_plus.deep_supervision=True` adds the authors' further masks.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the network."""
  config = base.get_config()
  config.model.name = "unet_plus_plus"
  return config
