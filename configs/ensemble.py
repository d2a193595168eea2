"""The paper's ensemble of three variants, weighted by their validation Dice.

The members are released weights that learned from the same photographs:

    python launch.py --config=configs/ensemble.py --mode=evaluate --workdir=runs/ensemble

Use your own runs with `--config.ensemble.members="('runs/one','runs/other')"`. Each member is
rebuilt from the configuration in its folder or file, and keeps the image size and the precision of
its training.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe with the three members."""
  config = base.get_config()
  config.ensemble.members = ("paper_literal", "wide_context", "fine_boundary")
  config.eval.tta = "six"
  return config
