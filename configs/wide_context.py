"""The ensemble's second member: a deeper mixer and a wider ASPP with larger middle dilations.

python launch.py --config=configs/wide_context.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the wide_context variant."""
  config = base.get_config()
  config.model.variant = "wide_context"
  config.seed = 1  # so that members differ from their first weights on
  return config
