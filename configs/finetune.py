"""Goes on from the released `base` with photographs of one's own.

    python launch.py --config=configs/finetune.py --config.data.root=FOLDER --workdir=runs/mine

The rate is a fifteenth of that of `released.py`, for the weights are nearly right; all layers move.
The first line of scores is what the released weights have on the validation photographs. If nothing
beats it they are kept. `docs/training.md` has what this gives on 20, 100 and 500 photographs.
"""

from ml_collections import ConfigDict

from configs import released


def get_config() -> ConfigDict:
  """Returns the recipe: twelve epochs at 192x192, validated half-way and at the end."""
  config = released.get_config()
  config.train.start_from = "base"
  config.train.epochs = 12
  config.train.image_sizes = (192,)
  # Of many validations with few photographs the best is often an early one, by chance.
  config.train.validate_every_epochs = 6
  config.optim.learning_rate = 2e-4
  return config
