"""A small run on generated photographs that needs no download.

make quickstart
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns a short version of the base recipe: small pictures, few steps, a fast EMA."""
  config = base.get_config()
  config.data.source = "synthetic"
  config.data.synthetic.image_size = 160
  config.train.image_sizes = (96,)
  config.train.max_steps = 400
  config.train.validate_every_epochs = 3
  config.optim.accumulation = 1
  config.optim.ema_decay = 0.99
  config.optim.warmup_updates = 40
  return config
