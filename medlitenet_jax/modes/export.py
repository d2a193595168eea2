"""Export: a trained network as a file that others can use."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from medlitenet_jax.formats.safetensors import STORED_DTYPES, SUFFIX, write_weights
from medlitenet_jax.inference.likeness import fit_to_data
from medlitenet_jax.inference.trained import Trained
from medlitenet_jax.modes.call import Call, begin
from medlitenet_jax.modes.opening import open_single
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.starts import record_start

logger = logging.getLogger(__name__)


def main(call: Call) -> None:
  """Writes the network that the command line names; see `export`."""
  begin(call, call.output, weights=True)
  export(*open_single(call), call.output)


def with_likeness(config: ConfigDict, trained: Trained) -> Trained:
  """Fits what the photographs of a network's data look like to it, see `fit_to_data`.

  Args:
    config: resolved; what the network is evaluated with, and the data.
    trained: the network.

  Returns:
    The network with the fit; as it was where that is not possible, with the reason in the log.
  """
  try:
    return trained._replace(likeness=fit_to_data(trained, config))
  except InputError as error:
    what = "has none" if trained.likeness is None else "keeps its own"
    logger.warning("The likeness of photographs is not fitted, and the file %s: %s", what, error)
    return trained


def export(config: ConfigDict, trained: Trained, output: Path) -> None:
  """Writes a trained network as weights files, in float32 and in float16; see `with_likeness`.

  Args:
    config: resolved; what the network is evaluated with.
    trained: the network.
    output: folder that receives `NAME.safetensors` and `NAME_float16.safetensors`, NAME being that
      of the run's folder or of the weights file.

  Raises:
    InputError: if `output` is a file.
  """
  if output.exists() and not output.is_dir():
    raise InputError(f"{output}: is a file; choose another --output")
  record_start(output)
  trained = with_likeness(config, trained)
  run = Path(trained.origin["run"])
  name = run.stem if run.suffix == SUFFIX else run.resolve().name
  origin = {**trained.origin, "run": name, "network_size": config.eval.image_size}
  origin.pop("weights_sha256", None)  # of the file that was read
  shared = config.copy_and_resolve_references().unlock()
  # Its own data, whichever the likeness was fitted to. Paths mean nothing on another machine.
  shared.data = trained.config.data.copy_and_resolve_references().unlock()
  shared.data.root = Path(shared.data.root).name
  shared.train.start_from = ",".join(Path(part).name for part in config.train.start_from.split(","))
  shared.data.raw = ""
  shared.lock()
  for dtype in STORED_DTYPES:
    path = output / f"{name}{'' if dtype == 'float32' else f'_{dtype}'}{SUFFIX}"
    write_weights(path, trained.variables, shared, origin, trained.seen, dtype, trained.likeness)
    logger.info("%s: %.1f MB", path, path.stat().st_size / 1e6)
