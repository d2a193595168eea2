"""What the released weights are trained with: the paper's network and loss, more and larger steps.

    python launch.py --config=configs/released.py --config.data.root=FOLDER --workdir=runs/released

`docs/ablations.md` says what was tried to find it. The other variants by their
`--config.model.variant=NAME`; fine_boundary with `--config.loss.bce.boundary_weight=2.0` besides.
`docs/results.md` has the commands, and from what `base` went on.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the base recipe with an update every eight images, for some hours on two CPU cores."""
  config = base.get_config()
  config.data.source = "folder"
  config.optim.accumulation = 1
  config.optim.learning_rate = 3e-3
  config.train.batch_size = 8
  config.train.image_sizes = (128, 128, 192)
  config.train.epochs = 40
  config.train.validate_every_epochs = 2
  return config
