"""Goes on from a run of `mixture.py` at 160x160 to 384x384, the ends of that range most often.

    python launch.py --config=configs/all_sizes.py --config.data.root=FOLDER \
      --config.train.start_from=WEIGHTS --workdir=runs/all_sizes

The released `base` was trained so; `docs/results.md` has the commands.
"""

from ml_collections import ConfigDict

from configs import mixture


def get_config() -> ConfigDict:
  """Returns the recipe: two epochs at half the rate."""
  config = mixture.get_config()
  config.optim.learning_rate = 5e-4
  config.train.start_from = "base"
  config.train.epochs = 2
  config.train.image_sizes = (160, 384, 192, 160, 256, 384, 160, 320)
  return config
