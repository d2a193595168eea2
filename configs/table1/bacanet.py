"""BACANet, as a reconstruction after its abstract, under the recipe of the paper.

    python launch.py --config=configs/table1/bacanet.py

Its authors publish no code: the wiring and the decoder's widths are ours, so its scores are not
theirs. From scratch, as they train it.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe for the network."""
  config = base.get_config()
  config.model.name = "bacanet"
  return config
