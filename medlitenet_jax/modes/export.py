"""Export: a trained network as a file that others can use."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from medlitenet_jax.formats.safetensors import (
  STORED_DTYPES,
  SUFFIX,
  read_weights,
  write_weights,
)
from medlitenet_jax.inference.networks import load_averaged
from medlitenet_jax.modes.call import Call, begin, find_trained
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.workdir import read_cases

logger = logging.getLogger(__name__)


def main(call: Call) -> None:
  """Writes the network that the command line names; see `export`."""
  begin(call, call.output, weights=True)
  config, weights = find_trained(call)
  export(config, call.workdir, weights, call.output)


def export(config: ConfigDict, workdir: Path, weights: Path | None, output: Path) -> None:
  """Writes the averaged network of a run as weights files, in float32 and in float16.

  Args:
    config: resolved; of the run.
    workdir: folder of the run.
    weights: a weights file that is read in place of the run, or None.
    output: receives `NAME.safetensors` and `NAME_float16.safetensors`, NAME being that of the run.

  Raises:
    InputError: if the run has no checkpoint, or `output` is a file.
  """
  if config.ensemble.members:
    raise InputError("config.ensemble.members: members are exported one by one")
  if output.exists() and not output.is_dir():
    raise InputError(f"{output}: is a file; choose another --output")
  output.mkdir(parents=True, exist_ok=True)
  name, variables, origin, seen = _network(config, workdir, weights)
  shared = config.copy_and_resolve_references().unlock()
  # Folders of this machine mean nothing elsewhere.
  shared.data.root = Path(config.data.root).name
  shared.train.start_from = Path(config.train.start_from).name
  shared.data.raw = ""
  for dtype in STORED_DTYPES:
    path = output / f"{name}{'' if dtype == 'float32' else f'_{dtype}'}{SUFFIX}"
    write_weights(path, variables, shared.lock(), {**origin, "run": name}, seen, dtype)
    logger.info("%s: %.1f MB", path, path.stat().st_size / 1e6)


def _network(config: ConfigDict, workdir: Path, weights: Path | None):
  """Name, variables, origin and seen cases of what is exported."""
  if weights is None:
    variables, origin = load_averaged(config, workdir)
    return workdir.resolve().name, variables, origin, read_cases(workdir)
  content = read_weights(weights)
  return weights.stem, content.variables, content.origin, content.seen
