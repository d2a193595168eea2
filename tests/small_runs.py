"""What several test files share: small networks, a folder of photographs, a finished run."""

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import filelock
import numpy as np
import stub_network  # noqa: F401  which registers it
import warm_start

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = "MEDLITENET_TESTS"  # names the folder to the processes that a call of pytest starts

# MedLiteNet with all of its parts, reduced; for what is about MedLiteNet alone.
MODEL = {
  "encoder_blocks": (1, 1, 1, 1),
  "mixer_layers": 1,
  "mixer_dim": 32,
  "mixer_heads": 2,
  "decoder_dims": (16, 16, 16, 16),
  "aspp_branch_dim": 16,
  "aspp_dilations": (1, 2),
  "gate_stages": (0, 3),
}
REDUCED = {
  "model.name": "medlitenet",
  **{f"model.medlitenet.{name}": value for name, value in MODEL.items()},
}
# Registers the stub in a process that has imported nothing of the tests.
REGISTER = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import stub_network\n"
# 13 cases in batches of 4: validation and checkpoints after batches 3, 6 and 8, the first of them
# between two updates and within an epoch; the size of the images changes at batch 5.
FIELDS = {
  "model.name": "stub",
  "data.source": "synthetic",
  "data.synthetic.num_train": 13,
  "data.synthetic.num_val": 3,
  "data.synthetic.num_test": 6,
  "data.synthetic.image_size": 80,
  "train.image_sizes": (64, 96),
  "train.batch_size": 4,
  "train.max_steps": 8,
  "train.log_every_steps": 1,
  "train.validate_min_steps": 1,
  "eval.batch_size": 4,
  "optim.accumulation": 2,
  "optim.learning_rate": 5e-3,
}
CHECKPOINT_STEPS = (3, 6, 8)


def small_config(**fields):
  """The recipe with the stub and a short run, and these fields: `a__b=1` sets a.b."""
  from configs.base import get_config

  config = get_config()
  with config.unlocked():
    for name, value in {**FIELDS, **fields}.items():
      config.update_from_flattened_dict({name.replace("__", "."): value})
  return config


def resolved(**fields):
  """The same, resolved for the CPU."""
  from medlitenet_jax import config as config_lib

  return config_lib.resolve(small_config(**fields), "cpu")


@functools.cache
def scratch() -> Path:
  """A folder for this call of pytest, shared by all its processes, removed at its end."""
  if SCRATCH not in os.environ:
    os.environ[SCRATCH] = tempfile.mkdtemp(prefix="medlitenet_tests_")
    atexit.register(shutil.rmtree, os.environ[SCRATCH], ignore_errors=True)
  return Path(os.environ[SCRATCH])


@contextlib.contextmanager
def alone(name: str):
  """Lets one process at a time in: what one makes, the others find."""
  with filelock.FileLock(scratch() / f"{name}.lock"):
    yield


# Compiling for speed would take most of the time of these tests.
FAST_COMPILATION = ("jax_disable_most_optimizations", True)
COMPILATION = {"jax_persistent_cache_min_compile_time_secs": 0.5, **dict([FAST_COMPILATION])}


def create_stub():
  """The stub, as the small configuration has it."""
  from medlitenet_jax.models.precision import DTYPES
  from medlitenet_jax.models.registry import create_model

  config = resolved()
  return create_model(config.model.to_dict(), DTYPES[config.precision])


def shapes_of(module, *inputs, **options):
  """Shapes of a module's variables for these inputs; nothing is computed."""
  import jax

  init = functools.partial(module.init, **options)
  return jax.eval_shape(init, jax.random.key(0), *inputs)


@contextlib.contextmanager
def compiled_as_by_launch():
  """Lets this process compile as those of `launch` do, and use what they have compiled."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  def update(settings):
    for name, value in settings.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()  # which otherwise keeps the folder of its first use

  cache = str(scratch() / "medlitenet_jax" / "xla")
  settings = {"jax_compilation_cache_dir": cache, **COMPILATION}
  before = {name: jax.config.values[name] for name in settings}
  update(settings)
  try:
    yield
  finally:
    update(before)


def arguments(**fields) -> list[str]:
  """Fields as the command line takes them."""
  return [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]


def small_arguments(**fields) -> list[str]:
  """The stub and a short run, and these fields, as the command line takes them."""
  return arguments(**{**FIELDS, **{name.replace("__", "."): v for name, v in fields.items()}})


def launch(*args: str, patch: str = "", timeout: int = 300, anew: bool = False, **environment):
  """Runs `launch.py` as from a shell, in a folder that is not the project's.

  Args:
    *args: the command line.
    patch: Python that is executed before it in the same process.
    timeout: in seconds.
    anew: whether Python imports everything in that process, and is not a fork of one that has; for
      variables that are read when JAX or another library is imported.
    **environment: further variables.
  """
  script = str(ROOT / "launch.py")
  usual = {
    **{
      k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "GLIBC_TUNABLES", "XLA_FLAGS")
    },
    "XDG_CACHE_HOME": str(scratch()),
    **{name.upper(): str(value) for name, value in COMPILATION.items()},
  }
  if warm_start.POSSIBLE and not anew:
    return warm_start.run(
      script,
      args,
      patch=patch,
      folder=scratch(),
      environment=usual,
      further=environment,
      timeout=timeout,
    )
  if patch:
    patch += f"\nimport runpy; runpy.run_path({script!r}, run_name='__main__')"
    environment = {"PYTHONPATH": str(ROOT), **environment}
  return subprocess.run(
    [sys.executable, *(("-c", patch) if patch else (script,)), *args],
    cwd=scratch(),
    env={**usual, **environment},
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


@functools.cache
def finished_run() -> Path:
  """The workdir of a short run from its first batch to its last; tests must not change it."""
  return _run_once("finished", small_arguments())


@functools.cache
def medlitenet_run() -> Path:
  """The same of MedLiteNet, reduced, for three batches of one size, with a trace."""
  own = {"train.max_steps": 3, "train.image_sizes": (64,), "profile.start_step": 1}
  # The library's form compiles fastest; that all forms agree is tested elsewhere.
  fields = small_arguments(**REDUCED, **own, profile__num_steps=1, model__form="library")
  return _run_once("medlitenet", fields, anew=True)  # a fork is not to be profiled


def _run_once(name: str, fields: list[str], **how) -> Path:
  """The workdir of a run that one process makes and all use."""
  workdir = scratch() / name
  with alone(name):
    if not (workdir / "figures").exists():
      done = launch(*fields, f"--workdir={workdir}", **how)
      assert done.returncode == 0, done.stderr
  return workdir


def network_of(workdir: Path, config):
  """The network of a run, as a resolved configuration has it."""
  from medlitenet_jax.inference.networks import create_network
  from medlitenet_jax.inference.trained import open_trained

  return create_network(open_trained(workdir, config.eval.checkpoint), config)


def copy_of_run(folder: Path) -> Path:
  """A copy of the finished run that a test may change."""
  return Path(shutil.copytree(finished_run(), folder / "copy"))


def contents(folder: Path) -> dict[str, bytes | None]:
  """Every file and folder below a folder, to tell whether anything changed there."""
  return {
    str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
    for path in sorted(folder.rglob("*"))
  }


def draw_case(number: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """A photograph of a dark spot, and its mask of 0 and 1."""
  rng = np.random.default_rng(number)
  center = (int(width * rng.uniform(0.35, 0.65)), int(height * rng.uniform(0.35, 0.65)))
  axes = (int(width * rng.uniform(0.15, 0.3)), int(height * rng.uniform(0.15, 0.3)))
  mask = cv2.ellipse(np.zeros((height, width), np.uint8), center, axes, 0, 0, 360, 1, -1)
  image = np.where(mask[..., None] == 1, (110, 70, 50), (220, 180, 160))
  return np.clip(image + rng.integers(-9, 10, image.shape), 0, 255).astype(np.uint8), mask


def write_case(root: Path, case_id: str, number: int = 0, size=(70, 90), suffix: str = "png"):
  """Writes a photograph and its mask as ISIC names them."""
  image, mask = draw_case(number, *size)
  for folder in ("images", "masks"):
    (root / folder).mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(root / "images" / f"{case_id}.{suffix}"), image[..., ::-1])
  cv2.imwrite(str(root / "masks" / f"{case_id}_segmentation.png"), mask * np.uint8(255))
  return image, mask


# None of the reduced network's size and none like another; batches of 4 do not divide them.
SIZES = {"c": (70, 90), "a": (130, 60), "f": (96, 200), "b": (61, 61), "e": (64, 45), "d": (99, 98)}


def write_sizes(root: Path) -> Path:
  """Writes a test split of photographs of `SIZES`, and a training case."""
  for number, (case_id, size) in enumerate(SIZES.items()):
    write_case(root, case_id, number, size)
  write_case(root, "other", 9)
  write_splits(root, dict.fromkeys(SIZES, "test") | {"other": "train"})
  return root


def write_splits(root: Path, splits: dict[str, str]) -> None:
  """Writes `splits.csv`."""
  lines = [f"{case_id},{split}" for case_id, split in splits.items()]
  (root / "splits.csv").write_text("\n".join(["id,split", *lines]) + "\n")
