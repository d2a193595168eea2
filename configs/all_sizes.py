"""Goes on from a run of `mixture.py`, so that one set of weights serves 160x160 to 384x384.

    python launch.py --config=configs/all_sizes.py --config.data.root=FOLDER \
      --config.train.start_from=WEIGHTS --workdir=runs/all_sizes

In training, BatchNorm has the statistics of a batch, which is of one size; in a prediction, those
of all sizes together, which fit none quite. Here it has the latter in training, too. The released
`base` ended so; `docs/results.md` has the commands.
"""

from ml_collections import ConfigDict

from configs import mixture


def get_config() -> ConfigDict:
  """Returns the recipe: an epoch at a third of the rate."""
  config = mixture.get_config()
  config.optim.learning_rate = 3e-4
  config.train.start_from = "base"
  config.train.keep_statistics = True
  config.train.epochs = 1
  config.train.image_sizes = (160, 192, 224, 256, 320, 384)
  return config
