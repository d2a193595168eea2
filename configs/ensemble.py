"""The paper's ensemble of three variants, weighted by their validation Dice.

The members are the released weights:

    python launch.py --config=configs/ensemble.py --mode=evaluate --workdir=runs/ensemble

Runs of your own take their place by `--config.ensemble.members="('runs/one','runs/other')"`. Each
member is rebuilt from the configuration that lies in its folder or file, and sees the size of image
and computes in the precision that it was trained with.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe with the three members."""
  config = base.get_config()
  config.ensemble.members = ("base", "wide_context", "fine_boundary")
  config.eval.tta = "six"
  return config
