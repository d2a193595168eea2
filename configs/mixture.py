"""The recipe of the released `base`: from the weights of `paper_literal`, at all sizes in turn.

    python launch.py --config=configs/mixture.py --config.data.root=FOLDER --workdir=runs/mixture

Encoder, decoder and whatever else fits are taken over; the mixer and the boundary maps start at
random. FOLDER mixes crops with whole frames; `docs/results.md` has the commands that make it.
"""

from ml_collections import ConfigDict

from configs import released


def get_config() -> ConfigDict:
  """Returns the recipe: eight epochs at 128x128 to 320x320, validated at 256x256."""
  config = released.get_config()
  config.data.group_column = "group"  # crop and frame of one photograph are in one split
  config.optim.learning_rate = 1e-3
  config.train.start_from = "paper_literal"
  config.train.start_partly = True
  config.train.epochs = 8
  config.train.validate_every_epochs = 1
  # A size for each batch, so that the network serves all of them.
  config.train.image_sizes = (128, 160, 192, 192, 224, 256, 320)
  config.train.mixed_sizes = True
  config.eval.image_size = 256
  return config
