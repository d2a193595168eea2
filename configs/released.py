"""The recipe that the released weights started from: the paper's, with more and larger steps.

    python launch.py --config=configs/released.py --config.data.root=FOLDER --workdir=runs/released

`docs/ablations.md` has the experiments behind it. Train the other variants with
`--config.model.variant=NAME`, and fine_boundary also with `--config.loss.bce.boundary_weight=2.0`.
`docs/results.md` has the commands, and the weights that `base` was started from.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe with an update every eight images: some hours on two CPU cores."""
  config = base.get_config()
  config.data.source = "folder"
  config.optim.accumulation = 1
  config.optim.learning_rate = 3e-3
  config.train.batch_size = 8
  config.train.image_sizes = (128, 128, 192)
  config.train.epochs = 40
  config.train.validate_every_epochs = 2
  return config
