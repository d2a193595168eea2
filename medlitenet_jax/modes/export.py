"""Export: a trained network as a file that others can use."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from medlitenet_jax.formats.safetensors import STORED_DTYPES, SUFFIX, write_weights
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


def export(config: ConfigDict, trained: Trained, output: Path) -> None:
  """Writes a trained network as weights files, in float32 and in float16.

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
  run = Path(trained.origin["run"])
  name = run.stem if run.suffix == SUFFIX else run.resolve().name
  origin = {**trained.origin, "run": name, "network_size": config.eval.image_size}
  origin.pop("weights_sha256", None)  # of the file that was read
  shared = config.copy_and_resolve_references().unlock()
  # Paths of this machine mean nothing on another.
  shared.data.root = Path(config.data.root).name
  shared.train.start_from = Path(config.train.start_from).name
  shared.data.raw = ""
  shared.lock()
  for dtype in STORED_DTYPES:
    path = output / f"{name}{'' if dtype == 'float32' else f'_{dtype}'}{SUFFIX}"
    write_weights(path, trained.variables, shared, origin, trained.seen, dtype)
    logger.info("%s: %.1f MB", path, path.stat().st_size / 1e6)
