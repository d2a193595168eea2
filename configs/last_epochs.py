"""The last epochs of a training, on photographs as they are but for flips.

    python launch.py --config=configs/last_epochs.py --config.train.start_from=WEIGHTS \
      --config.data.root=FOLDER --workdir=runs/last_epochs

WEIGHTS are those of a network that has long learned from crops, turns and other lights; here it
gets used to what it will see. Where that goes on for too long it overfits and Dice on `val` falls
again, so the best checkpoint counts. `docs/ablations.md` has what it gains.
"""

from ml_collections import ConfigDict

from configs import released


def get_config() -> ConfigDict:
  """Returns the released weights' recipe for six epochs at 192x192, flips alone."""
  config = released.get_config()
  for name in config.augment:
    if name.endswith("_probability") and not name.startswith("flip"):
      config.augment[name] = 0.0
  config.optim.learning_rate = 1e-3
  config.train.image_sizes = (192,)
  config.train.epochs = 6
  config.train.validate_every_epochs = 1
  return config
