"""The ensemble's third member: gates everywhere, a wider decoder, borders weighted in the loss.

python launch.py --config=configs/fine_boundary.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the fine_boundary variant and its loss."""
  config = base.get_config()
  config.model.variant = "fine_boundary"
  config.seed = 2  # so that members differ from their first weights on
  config.loss.bce.boundary_weight = 2.0
  return config
