"""The released weights' recipe without the transformer: a third fewer parameters than `base`.

    python launch.py --config=configs/no_mixer.py --config.data.root=FOLDER --workdir=runs/no_mixer

`docs/ablations.md` has the comparison: ahead at 128x128, within noise of two
variants with the transformer after all 40 epochs, one run each.
"""

from ml_collections import ConfigDict

from configs import released


def get_config() -> ConfigDict:
  """Returns that recipe with the encoder's last stage fed directly to the ASPP."""
  config = released.get_config()
  config.model.medlitenet.mixer = False
  return config
