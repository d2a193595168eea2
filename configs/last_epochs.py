"""Fine-tunes trained weights on photographs without augmentation except flips.

    python launch.py --config=configs/last_epochs.py --config.train.start_from=WEIGHTS \
      --config.data.root=FOLDER --workdir=runs/last_epochs

WEIGHTS are those of a network trained with crops, rotations and changes of light; this adapts it to
unchanged photographs. Too many epochs overfit and lower the Dice on `val`, so use the best
checkpoint. `docs/ablations.md` has the gain.
"""

from ml_collections import ConfigDict

from configs import released


def get_config() -> ConfigDict:
  """Returns the released weights' recipe for six epochs at 192x192, with flips only."""
  config = released.get_config()
  for name in config.augment:
    if name.endswith("_probability") and not name.startswith("flip"):
      config.augment[name] = 0.0
  config.optim.learning_rate = 1e-3
  config.train.image_sizes = (192,)
  config.train.epochs = 6
  config.train.validate_every_epochs = 1
  return config
