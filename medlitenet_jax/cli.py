"""Starts every mode: `medlitenet --config=configs/base.py`; `python launch.py` is the same."""

# Flags are read before JAX is imported, so that `--help` and a mistyped flag answer at once.

import importlib
import logging
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from medlitenet_jax import recipes
from medlitenet_jax.modes import MODES
from medlitenet_jax.modes.call import Call
from medlitenet_jax.system import process
from medlitenet_jax.system.errors import NO_MEMORY, InputError, error_lines
from medlitenet_jax.system.stop import Stopped

DEFAULT_WEIGHTS = "base"
AS_SCRIPT = Path(sys.argv[0]).name == "launch.py"
NAME = "launch.py" if AS_SCRIPT else "medlitenet"
START = ("python", *sys.orig_argv[1:]) if AS_SCRIPT else (NAME, *sys.argv[1:])


def _in_order(arguments: Iterable[str]) -> list[str]:
  """The arguments with `--config` in front, for the library takes no field before its recipe.

  What a shell makes of `--input *.jpg`, one flag and many values, becomes a flag for each.
  """
  given: list[str] = []
  flag = ""
  for argument in arguments:
    if argument.startswith("-") or flag not in ("--config", "--input"):
      given.append(argument)
      flag = argument
      continue
    if given[-1] == flag:  # its first value
      given.pop()
    given.append(f"{flag}={argument}")
    flag = flag if flag == "--input" else ""
  return sorted(given, key=lambda argument: not argument.startswith(("--config=", "-config=")))


class _RecipeParser(flags.ArgumentParser):
  """Reads a recipe. The library's own parser takes C: for the name of the file C:\\mine.py."""

  def parse(self, argument: str) -> ConfigDict:
    path = Path(recipes.find_recipe(argument))
    if not path.is_file():
      raise InputError(f"--config={argument}: no such file; recipes lie in {recipes.FOLDER.name}/")
    try:
      config = recipes.load(path)
    except Exception as error:  # whatever the user's file raises; it is Python, and was executed
      raise InputError(f"--config={argument}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
      raise InputError(f"--config={argument}: get_config() returns no ConfigDict")
    return config.lock()


_config = config_flags.DEFINE_config_file(
  "config",
  None,
  f"Recipe, {recipes.BASE.name} if not given; --config.FIELD=VALUE sets a field.",
  sys_argv=[NAME, *_in_order(sys.argv[1:])],
)
flags.FLAGS["config"].parser = _RecipeParser()
_mode = flags.DEFINE_enum(
  "mode", "train", list(MODES), "; ".join(f"{mode}: {what}" for mode, what in MODES.items()) + "."
)
_workdir = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run; default runs/NAME_OF_CONFIG, or runs/NAME_OF_WEIGHTS-weights for scores of a "
  "weights file.",
)
_weights = flags.DEFINE_string(
  "weights",
  None,
  "Weights file, or name of a released one, in place of the checkpoint of --workdir; "
  "predict takes the released base if neither is given.",
)
_input = flags.DEFINE_multi_string(
  "input",
  None,
  "Photographs, folders of them or patterns as 'photos/*.jpg' for predict; folders of runs for "
  "compare. May be repeated.",
)
_mm_per_pixel = flags.DEFINE_string(
  "mm_per_pixel",
  None,
  "Scale of the photographs, or a CSV file with the columns id,mm_per_pixel for several; predict "
  "then measures in millimetres as well.",
)
_seeds = flags.DEFINE_integer(
  "seeds",
  None,
  "Number of seeds that repeat trains with, from config.seed on; default 1.",
)
_force = flags.DEFINE_bool(
  "force",
  False,
  "Train continues a run with changed fields that only this flag lets change, and begins on masks "
  "that look wrong, which check then takes for warnings, and where memory or room on the disk seem "
  "to be short.",
)
_dry_run = flags.DEFINE_bool(
  "dry-run",
  False,
  "Train says what it would do, and what that takes of memory, disk and time, and writes nothing.",
)
_distributed = flags.DEFINE_boolean(
  "distributed",
  False,
  "This is one of several processes that train or evaluate together; which, is read from SLURM, "
  "Open MPI, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)
_output = flags.DEFINE_string(
  "output",
  None,
  "Folder for what the other modes write; default runs/NAME-MODE, NAME being that of "
  "the recipe or weights.",
)


def refuse(reason: object) -> NoReturn:
  """Says in one line what is wrong, and the ways on below it; leaves with status 2."""
  print("\n".join(error_lines(NAME, reason)), file=sys.stderr)
  process.leave(2)


def parse(arguments: list[str]) -> Call:
  """Reads a command line; answers `--help` and an empty one, and refuses what it does not know."""
  if not arguments or {"-h", "--help", "-help"} & set(arguments):
    print(f"{__doc__}\n{flags.FLAGS.module_help(__name__)}")
    sys.exit(0)
  recipes.make_importable()
  named = any(arg.lstrip("-").split("=")[0] == "config" for arg in arguments)
  # Not the flag's default: overrides of a default are parsed while the flag is being defined.
  recipe = [] if named else [f"--config={recipes.BASE}"]
  try:
    rest = flags.FLAGS([NAME, *recipe, *_in_order(arguments)])[1:]
    path = Path(recipes.find_recipe(config_flags.get_config_filename(flags.FLAGS["config"])))
  except (AttributeError, KeyError) as error:
    # The library's message comes quoted once or twice over.
    reason = str(error.args[0] if error.args else error).replace("\\n", " ")
    refuse("no such config field: " + reason.replace("\\", "").replace("'", ""))
  except (flags.Error, InputError) as error:
    refuse(error)
  if rest:
    refuse(f"unexpected argument {rest[0]!r}; flags are written --name=value")
  return _call(path, named)


def _call(path: Path, named: bool) -> Call:
  """What the flags ask for, with the default folders."""
  unnamed = _mode.value == "predict" and not named and _workdir.value is None
  weights = _weights.value or (DEFAULT_WEIGHTS if unnamed else None)
  name = Path(weights or path).stem
  default = f"{name}-weights" if weights else name  # not the folder of a run
  return Call(
    mode=_mode.value,
    recipe=_config.value,
    recipe_file=path,
    recipe_named=named,
    overrides=config_flags.get_override_values(flags.FLAGS["config"]),
    workdir=Path(_workdir.value or recipes.RUNS / default),
    workdir_named=_workdir.value is not None,
    output=Path(_output.value or recipes.RUNS / f"{name}-{_mode.value}"),
    inputs=tuple(map(Path, _input.value or ())),
    weights=weights,
    mm_per_pixel=_mm_per_pixel.value,
    seeds=_seeds.value,
    force=_force.value,
    dry_run=_dry_run.value,
    distributed=_distributed.value,
    start="python launch.py" if AS_SCRIPT else NAME,
    command=shlex.join(START),
  )


def main() -> None:
  """Reads the flags and runs the mode."""
  process.keep_printing()
  call = parse(sys.argv[1:])
  process.restart_with_allocator()
  process.set_up_compiler()
  process.collect_garbage_rarely()
  process.set_up_bars()
  logging.basicConfig(format="%(message)s", stream=sys.stdout)
  logging.getLogger("medlitenet_jax").setLevel(logging.INFO)
  absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs what it raises as well
  try:
    importlib.import_module(f"medlitenet_jax.modes.{call.mode}").main(call)
  except InputError as error:
    refuse(error)
  except OSError as error:  # a full disk, a folder that may not be written
    refuse(f"{error.filename or call.workdir}: {error.strerror or error}")
  except Stopped as stopped:
    print(f"{NAME}: {stopped}", file=sys.stderr)
    process.leave(128 + stopped.signal)
  except MemoryError:
    refuse(NO_MEMORY)
  except RuntimeError as error:  # of XLA, on whatever device
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    refuse(NO_MEMORY)
  except KeyboardInterrupt:
    again = "; the same command goes on from the newest checkpoint" if call.mode == "train" else ""
    print(f"{NAME}: interrupted{again}", file=sys.stderr)
    process.leave(130)
