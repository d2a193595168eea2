"""Opens trained networks, wherever they lie."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medlitenet_jax import config as config_lib
from medlitenet_jax.formats.safetensors import SUFFIX, find_weights, is_released, read_weights
from medlitenet_jax.models.registry import variable_shapes
from medlitenet_jax.scores.likeness import Likeness
from medlitenet_jax.system.errors import InputError


class Trained(NamedTuple):
  """A trained network as it was saved.

  Attributes:
    config: the configuration that it was trained with, locked.
    variables: "params" and "batch_stats" by module, float32: the exponential moving averages.
    origin: where it comes from, for a protocol: "run" (folder, or path of the weights file),
      "model", "variant", "network_size" in pixels, "weights", "step", "selected_by", "validation"
      (scores by name) and, of a weights file, "weights_sha256".
    seen: names of the cases that it was trained on ("train") and selected by ("val").
    likeness: what the photographs that it has learned from look like to it; None: not known.
  """

  config: ConfigDict
  variables: Mapping[str, Any]
  origin: dict[str, Any]
  seen: dict[str, list[str]]
  likeness: Likeness | None = None


def open_trained(place: str | Path, checkpoint: str | None = None) -> Trained:
  """Opens a trained network.

  Args:
    place: name of released weights, path of a weights file, or folder of a run. A `Path` is never
      a name, nor is "./base".
    checkpoint: of a run, "best" or "latest"; None: what the run's configuration says.

  Returns:
    The network.

  Raises:
    InputError: if nothing can be opened there, the run has no such checkpoint, or what is saved is
      damaged or of another network.
  """
  named = isinstance(place, str) and is_released(place)
  if named or str(place).endswith(SUFFIX) or Path(place).is_file():
    return _open_file(find_weights(str(place)) if named else Path(place))
  return _open_run(Path(place), checkpoint)


def _open_file(path: Path) -> Trained:
  weights = read_weights(path)
  origin = {**weights.origin, "run": str(path), "weights_sha256": weights.sha256}
  return Trained(weights.config, weights.variables, origin, weights.seen, weights.likeness)


def _open_run(workdir: Path, checkpoint: str | None) -> Trained:
  config = config_lib.load(workdir)
  try:
    size = config.eval.image_size
    shapes = variable_shapes(config.model.to_dict(), size)
    which = config.eval.checkpoint if checkpoint is None else checkpoint
    origin = {
      "run": str(workdir),
      "model": config.model.name,
      "variant": config.model.variant,
      "network_size": size,
      "weights": "exponential moving average",
    }
  except (InputError, KeyError, AttributeError, TypeError, ValueError) as error:
    raise InputError(
      f"{workdir / config_lib.CONFIG_FILE}: describes no network of this version "
      f"({str(error).splitlines()[0]}); restore the file, or use the version that made the run"
    ) from error
  if rule := config_lib.field_of("eval.checkpoint").rule:
    rule.check("config.eval.checkpoint", which)
  # Orbax takes a second to import, and only a run's checkpoints need it.
  from medlitenet_jax.training.checkpoint import Checkpoints
  from medlitenet_jax.training.workdir import read_cases

  with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
    step = checkpoints.best_step if which == "best" else checkpoints.latest_step
    if step is None and checkpoints.latest_step is not None:
      raise InputError(
        f"{workdir}: none of its checkpoints was validated yet; train on, or take the newest with "
        "--config.eval.checkpoint=latest"
      )
    if step is None:
      raise InputError(f"{workdir}: no checkpoint in it yet; train first")
    origin["step"] = step
    origin["selected_by"] = "highest validation Dice" if which == "best" else "newest"
    origin["validation"] = dict(checkpoints.metrics(step))
    variables = checkpoints.restore_ema(step, shapes)
  return Trained(config, variables, origin, read_cases(workdir))
