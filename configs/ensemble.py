"""The paper's ensemble of three variants, weighted by their validation Dice.

Train the members first, each with its own recipe, then score them together:

    python launch.py --config=configs/ensemble.py --mode=evaluate --workdir=runs/ensemble \
      --config.data.root=FOLDER

Each member is rebuilt from the `config.json` of its own folder and sees the size of image that it
was trained for.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe with the three members."""
  config = base.get_config()
  config.ensemble.members = ("runs/base", "runs/wide_context", "runs/fine_boundary")
  config.eval.tta = "six"
  return config
