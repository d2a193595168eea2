"""What the command line asks of a mode, and what several modes make of it."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlitenet_jax.system import process
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import refuse_links

if TYPE_CHECKING:
  from ml_collections import ConfigDict

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Call:
  """A command line, read.

  Attributes:
    mode: what is asked for.
    recipe: the configuration of the recipe with `overrides`, as written.
    recipe_file: the recipe's path.
    recipe_named: whether the command line names it; otherwise it is the base recipe.
    overrides: fields that the command line sets, by dotted name.
    workdir: folder of the run, the default one if none is named.
    workdir_named: whether the command line names it.
    output: folder for what is written, the default one if none is named.
    inputs: files, folders or patterns.
    weights: name or path of a weights file that is used in place of a run; None: the run is used.
    mm_per_pixel: scale of the photographs, a number or the path of a table of them, or None.
    seeds: number of seeds, for `repeat`; None if it is not given.
    force: whether a run may go on with changed fields, or start on masks that look wrong or where
      memory or room seem to be short.
    dry_run: whether only to say what would be done.
    distributed: whether this is one of several processes.
    start: how a command of this program begins.
    command: the whole command line, as a shell takes it.
  """

  mode: str
  recipe: "ConfigDict"
  recipe_file: Path
  recipe_named: bool
  overrides: Mapping[str, Any]
  workdir: Path
  workdir_named: bool
  output: Path
  inputs: tuple[Path, ...] = ()
  weights: str | None = None
  mm_per_pixel: str | None = None
  seeds: int | None = None
  force: bool = False
  dry_run: bool = False
  distributed: bool = False
  start: str = "medlitenet"
  command: str = ""


def begin(
  call: Call,
  folder: Path,
  *,
  shared: bool = False,
  weights: bool = False,
  inputs: bool = False,
  rehearsed: bool = False,
) -> None:
  """Refuses flags that mean nothing to a mode, and prepares JAX for it.

  Args:
    call: the command line.
    folder: that the mode writes to.
    shared: whether several processes can do it together; they are connected here.
    weights: whether it uses weights files.
    inputs: whether it needs --input.
    rehearsed: whether it can say what it would do.

  Raises:
    InputError: if a flag means nothing here or is missing, the processes do not find each other, or
      the folder has links in it.
  """
  process.set_up_cache()
  process.return_memory_after_compiling()
  if call.distributed:
    if not shared:
      raise InputError(f"--distributed: --mode={call.mode} runs in one process; leave the flag out")
    from medlitenet_jax.system import devices

    devices.connect()
  if call.dry_run and not rehearsed:
    raise InputError(f"--dry-run: --mode={call.mode} has none; leave the flag out")
  if call.seeds is not None and call.mode != "repeat":
    raise InputError(f"--seeds: --mode={call.mode} takes config.seed; leave the flag out")
  refuse_links(folder)
  if inputs and not call.inputs:
    raise InputError(f"--mode={call.mode} needs --input")
  if call.weights is not None and not weights:
    raise InputError(f"--weights: --mode={call.mode} uses none; leave it out")


def resolve_recipe(call: Call) -> "ConfigDict":
  """The recipe, resolved for the machine at hand; says what it is of.

  Raises:
    InputError: names the field whose value cannot be used, or the device that is not there.
  """
  from medlitenet_jax import config as config_lib
  from medlitenet_jax.system import devices

  config = config_lib.resolve(call.recipe, devices.platform())
  announce(call, config)
  return config


def announce(call: Call, config: "ConfigDict") -> None:
  """Logs what is run on what, once for all processes."""
  import jax

  if jax.process_index() != 0:
    logging.getLogger("medlitenet_jax").setLevel(logging.WARNING)
  what = f"{config.model.name} {config.model.variant}, {config.precision}"
  if config.ensemble.members:
    what = f"an ensemble of {len(config.ensemble.members)}"
  logger.info(
    "%s: %s, %d x %s%s",
    *(call.mode, what),
    *(jax.device_count(), jax.devices()[0].device_kind),
    f" in {jax.process_count()} processes" if call.distributed else "",
  )
