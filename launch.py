"""Starts every mode: `python launch.py --config=configs/base.py --workdir=runs/base`.

Flags are read before JAX is imported, so that `--help` and a mistyped flag answer at once.
"""

import logging
import os
import shlex
import sys
import time
from pathlib import Path

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

ROOT = Path(__file__).resolve().parent
MODES = {
  "prepare": "fetch a public data set, or read it from config.data.raw, and reduce it once; "
  "or write the generated one as files",
  "train": "train, or go on where an earlier call stopped",
  "evaluate": "score the best checkpoint of --workdir, or an ensemble, on config.eval.split",
  "export": "write the network of --workdir as weights files, into --output",
  "predict": "outline the lesions in the photographs of --input, into --output",
  "compare": "set the evaluations in the folders of --input side by side",
  "benchmark": "time the network and its training step against the plain form",
  "describe": "table and picture of the network's parts",
  "check": "read the data set and list what is wrong with it, changing nothing",
  "preview": "sheet of the augmentations beside their originals",
}
SHARED_MODES = ("train", "evaluate")  # that several processes can do together
LONG_COMPILATION_SECONDS = 1  # whose memory is worth the milliseconds of giving it back
BAR_SECONDS = "10"  # between two states of a bar in a file
LAST_WORDS_SECONDS = 2  # in which the other processes can say why they end

NO_MEMORY = (
  "not enough memory; set smaller sizes or batches, config.model.remat=True, "
  "config.data.cache_gib=0, or fewer config.data.num_threads"
)

USING_WEIGHTS = ("evaluate", "predict", "export")
DEFAULT_WEIGHTS = "base"
BASE_RECIPE = ROOT / "configs" / "base.py"

CONFIG = config_flags.DEFINE_config_file(
  "config", None, f"Recipe, {BASE_RECIPE.name} if not given; --config.FIELD=VALUE sets a field."
)
MODE = flags.DEFINE_enum(
  "mode", "train", list(MODES), "; ".join(f"{mode}: {what}" for mode, what in MODES.items()) + "."
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run; default runs/NAME_OF_CONFIG, or runs/NAME_OF_WEIGHTS-weights for scores of a "
  "weights file.",
)
WEIGHTS = flags.DEFINE_string(
  "weights",
  None,
  "Weights file, or name of a released one, in place of the checkpoint of --workdir; "
  "predict takes the released base if neither is given.",
)
INPUT = flags.DEFINE_multi_string(
  "input", None, "Photograph or folder for predict; folder of a run for compare. May be repeated."
)
MM_PER_PIXEL = flags.DEFINE_float(
  "mm_per_pixel", None, "Scale of the photographs; predict then measures in millimetres as well."
)
FORCE = flags.DEFINE_bool(
  "force", False, "Train goes on with the changed fields of a recipe where that is merely odd."
)
DISTRIBUTED = flags.DEFINE_boolean(
  "distributed",
  False,
  "This is one of several processes that train or evaluate together; which, is read from SLURM, "
  "Open MPI, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)
OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "Folder for what the other modes write; default runs/NAME-MODE, NAME being that of "
  "the recipe or weights.",
)


def refuse(reason: object) -> None:
  """Says in one line what is wrong and leaves with status 2."""
  line = " ".join(str(reason).split())
  # What a file's name or content brought along must not steer the terminal.
  shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
  print(f"launch.py: error: {shown}", file=sys.stderr)
  leave(2)


def leave(status: int) -> None:
  """Ends this process; as one of several, without the wait of JAX for all to end alike."""
  if "jax" in sys.modules:
    import jax

    if jax.distributed.is_initialized():
      sys.stdout.flush()
      sys.stderr.flush()
      if jax.process_index() == 0:
        time.sleep(LAST_WORDS_SECONDS)  # its end ends the others
      os._exit(status)
  sys.exit(status)


def parse_flags() -> bool:
  """Reads the command line; answers `--help`, and refuses what it does not know.

  Returns:
    Whether a recipe was named.
  """
  if {"-h", "--help", "-help"} & set(sys.argv[1:]):
    print(f"{__doc__}\n{flags.FLAGS.main_module_help()}")
    sys.exit(0)
  named = any(arg.lstrip("-").split("=")[0] == "config" for arg in sys.argv[1:])
  if not named:
    # Not the flag's default: overrides of a default are parsed while the flag is being defined.
    sys.argv.insert(1, f"--config={BASE_RECIPE}")
  try:
    rest = flags.FLAGS(sys.argv)[1:]
    path = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not path.is_file():
      refuse(f"--config={path}: no such file; recipes lie in {BASE_RECIPE.parent.name}/")
    # A file that failed to load says so only when it is used.
    if not isinstance(CONFIG.value, ConfigDict):
      refuse(f"--config={path}: get_config() returns no ConfigDict")
  except (AttributeError, KeyError) as error:
    # The library's message comes quoted once or twice over.
    reason = str(error.args[0] if error.args else error).replace("\\n", " ")
    refuse("no such config field: " + reason.replace("\\", "").replace("'", ""))
  except flags.Error as error:
    refuse(error)
  except Exception as error:  # whatever the user's file raises; it is Python, and was executed
    recipe = next(arg for arg in sys.argv if arg.lstrip("-").startswith("config"))
    refuse(f"{recipe}: {type(error).__name__}: {error}")
  if rest:
    refuse(f"unexpected argument {rest[0]!r}; flags are written --name=value")
  return named


# For glibc's malloc: huge pages, which save most page faults of large arrays, and memory that is
# freed stays with the process, which saves the rest from the second batch on. One arena, for only
# that one may hold arrays of any size.
ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:" + ":".join(
  f"glibc.malloc.{name}_threshold={2**40}" for name in ("mmap", "trim")
)


def set_up_allocator() -> None:
  """Restarts Python once with `ALLOCATOR` in force, which only the start can switch on.

  A GLIBC_TUNABLES of the user's own, even an empty one, is left as it is.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = ALLOCATOR
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def set_up_bars() -> None:
  """Has bars of progress written to a file every few seconds, where a terminal sees each step."""
  if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", BAR_SECONDS)  # read by tqdm


def set_up_cache() -> str:
  """Has compiled programs kept in the user's cache folder, unless JAX was told otherwise.

  Returns:
    The folder; "" if there is none.
  """
  import jax

  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "medlitenet_jax" / "xla"))
  return jax.config.values["jax_compilation_cache_dir"] or ""


def return_memory_after_compiling() -> None:
  """Has what a long compilation took given back to the system when it ends.

  XLA fills one to two GiB with the small objects of a training step; glibc would keep them, and the
  arrays of the run would come on top.
  """
  import ctypes

  import jax

  trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
  if trim is None:  # not glibc
    return

  def after(event: str, duration_secs: float, **_) -> None:
    compiled = event == "/jax/core/compile/backend_compile_duration"
    if compiled and duration_secs > LONG_COMPILATION_SECONDS:
      trim(0)

  jax.monitoring.register_event_duration_secs_listener(after)


def run(mode: str, workdir: Path, output: Path, recipe_named: bool) -> None:
  """Imports what the mode needs and starts it."""
  import jax

  from medlitenet_jax.system import devices
  from medlitenet_jax.system.errors import InputError
  from medlitenet_jax.system.files import refuse_links

  cache = set_up_cache()
  return_memory_after_compiling()
  if DISTRIBUTED.value:
    if mode not in SHARED_MODES:
      raise InputError(f"--distributed: --mode={mode} runs in one process; leave the flag out")
    devices.connect()
  refuse_links(workdir if mode in ("train", "evaluate") else output)
  inputs = [Path(name) for name in INPUT.value or ()]
  if mode in ("predict", "compare") and not inputs:
    raise InputError(f"--mode={mode} needs --input")
  if mode == "compare":
    from medlitenet_jax.modes.compare import compare

    compare(inputs, output)
    return
  weights = choose_weights(mode, recipe_named)
  config = read_config(mode, workdir, weights, recipe_named, jax.default_backend())
  logger = logging.getLogger("medlitenet_jax")
  if not devices.is_main_process():
    logger.setLevel(logging.WARNING)
  what = f"{config.model.name} {config.model.variant}, {config.precision}"
  if config.ensemble.members:
    what = f"an ensemble of {len(config.ensemble.members)}"
  logger.info(
    "%s: %s, %d x %s%s",
    *(mode, what),
    *(jax.device_count(), jax.devices()[0].device_kind),
    f" in {jax.process_count()} processes" if DISTRIBUTED.value else "",
  )
  for name, value in (
    ("GLIBC_TUNABLES", os.environ.get("GLIBC_TUNABLES")),
    ("XLA_FLAGS", os.environ.get("XLA_FLAGS")),
    ("JAX_COMPILATION_CACHE_DIR", cache),
  ):
    logger.info("  %s=%s", name, value or "")
  if mode == "prepare":
    from medlitenet_jax.modes.prepare import prepare

    prepare(config)
  elif mode == "evaluate":
    from medlitenet_jax.modes.evaluate import evaluate

    evaluate(config, workdir, " ".join(["python", *map(shlex.quote, sys.orig_argv[1:])]), weights)
  elif mode == "predict":
    from medlitenet_jax.modes.predict import predict

    predict(config, workdir, inputs, output, MM_PER_PIXEL.value, weights)
  elif mode == "export":
    from medlitenet_jax.modes.export import export

    export(config, workdir, weights, output)
  elif mode == "benchmark":
    from medlitenet_jax.modes.benchmark import benchmark

    if not WORKDIR.value:
      benchmark(config, output)
    else:
      trained = read_config("evaluate", workdir, None, recipe_named, jax.default_backend())
      benchmark(config if recipe_named else trained, output, (trained, workdir))
  elif mode == "describe":
    from medlitenet_jax.modes.describe import describe

    describe(config, output)
  elif mode == "check":
    from medlitenet_jax.modes.check import check

    check(config, output)
  elif mode == "preview":
    from medlitenet_jax.modes.preview import preview

    preview(config, output)
  else:
    from medlitenet_jax.modes.train import train

    train(config, workdir, force=FORCE.value)


def weights_name(mode: str, recipe_named: bool) -> str | None:
  """The weights that --weights names, or that predict takes where nothing names a network."""
  unnamed = mode == "predict" and not recipe_named and WORKDIR.value is None
  return WEIGHTS.value or (DEFAULT_WEIGHTS if unnamed else None)


def choose_weights(mode: str, recipe_named: bool) -> Path | None:
  """Finds the weights file that is used in place of a run, if one is."""
  from medlitenet_jax.system.errors import InputError

  if WEIGHTS.value is not None:
    if mode not in USING_WEIGHTS:
      raise InputError(f"--weights: --mode={mode} uses none; leave it out")
    if WORKDIR.value is not None and mode != "evaluate":  # which writes there
      raise InputError("--weights and --workdir both name a network; give one of them")
  name = weights_name(mode, recipe_named)
  if name is None:
    return None
  from medlitenet_jax.formats.safetensors import find_weights

  return find_weights(name)


def read_config(mode: str, workdir: Path, weights: Path | None, recipe_named: bool, platform: str):
  """Resolves the recipe, or what a trained network's folder or file says in its place."""
  from medlitenet_jax import config as config_lib

  recipe = CONFIG.value
  trained = mode in ("evaluate", "predict", "export")
  if not trained or (recipe_named and recipe.ensemble.members):
    return config_lib.resolve(recipe, platform)
  if weights is None:
    saved = config_lib.load(workdir)
  else:
    from medlitenet_jax.formats.safetensors import read_weights

    saved = read_weights(weights).config
  if recipe_named:
    config_lib.refuse_other_network(weights or workdir, saved, config_lib.resolve(recipe, platform))
  overrides = config_flags.get_override_values(flags.FLAGS["config"])
  return config_lib.for_evaluation(saved, overrides, platform, recipe)


def main() -> None:
  """Reads the flags and runs the mode."""
  recipe_named = parse_flags()
  set_up_allocator()
  set_up_bars()
  logging.basicConfig(format="%(message)s", stream=sys.stdout)
  logging.getLogger("medlitenet_jax").setLevel(logging.INFO)
  absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs what it raises as well
  weights = weights_name(MODE.value, recipe_named)
  name = Path(weights or config_flags.get_config_filename(flags.FLAGS["config"])).stem
  default = f"{name}-weights" if weights else name  # not the folder of a run
  workdir = Path(WORKDIR.value or ROOT / "runs" / default)
  output = Path(OUTPUT.value or ROOT / "runs" / f"{name}-{MODE.value}")
  from medlitenet_jax.system.errors import InputError
  from medlitenet_jax.system.stop import Stopped

  try:
    run(MODE.value, workdir, output, recipe_named)
  except InputError as error:
    refuse(error)
  except OSError as error:  # a full disk, a folder that may not be written
    refuse(f"{error.filename or workdir}: {error.strerror or error}")
  except Stopped as stopped:
    print(f"launch.py: {stopped}", file=sys.stderr)
    leave(128 + stopped.signal)
  except MemoryError:
    refuse(NO_MEMORY)
  except RuntimeError as error:  # of XLA, on whatever device
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    refuse(NO_MEMORY)
  except KeyboardInterrupt:
    again = "; the same command goes on from the newest checkpoint" if MODE.value == "train" else ""
    print(f"launch.py: interrupted{again}", file=sys.stderr)
    leave(130)


if __name__ == "__main__":
  main()
