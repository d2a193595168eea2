"""Notes in a folder what was started to write to it: when, by which command, with what."""

import datetime
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import jax

from medlitenet_jax.system.devices import is_main_process
from medlitenet_jax.system.version import __version__

logger = logging.getLogger(__name__)

STARTS_FILE = "starts.jsonl"
# Variables that change how a run computes; others, which may hold secrets, are not written.
VARIABLES = (
  *("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD", "OMP_", "TQDM_"),
  *("JAX_", "XLA_", "CUDA_", "NVIDIA_", "NCCL_", "TF_CPP_", "SLURM_JOB_ID", "SLURM_PROCID"),
)
LIBRARIES = ("jax", "jaxlib", "flax", "numpy")


def record_start(folder: Path, *, computes: bool = True) -> None:
  """Appends a line to `starts.jsonl` in a folder, to be called when the work there begins.

  Of several processes only process 0 writes. A line is written at once, so that those of two
  processes do not mix. Where it cannot be written, the log says so and the work goes on, which
  does not depend on it.

  Args:
    folder: that a mode writes to; is made if it is missing.
    computes: whether the device is used; a mode that only reads files opens none.

  Raises:
    OSError: if the folder cannot be made.
  """
  if computes and not is_main_process():
    return
  line = json.dumps(_start(computes)) + "\n"
  path = folder / STARTS_FILE
  folder.mkdir(parents=True, exist_ok=True)
  try:
    with path.open("ab", buffering=0) as file:
      file.write(line.encode())
  except OSError as error:
    logger.warning("%s: cannot be written (%s)", path, error.strerror or error)


def _start(computes: bool) -> dict[str, Any]:
  """What is written of this process."""
  kinds = [device.device_kind for device in jax.devices()] if computes else []
  return {
    "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    "command": shlex.join(sys.orig_argv),
    "folder": os.getcwd(),
    "host": socket.gethostname(),
    "process": os.getpid(),
    "system": platform.platform(),
    "versions": {
      "python": platform.python_version(),
      "medlitenet_jax": __version__,
      **{name: importlib.metadata.version(name) for name in LIBRARIES},
    },
    "devices": {kind: kinds.count(kind) for kind in kinds},
    "compilation_cache": jax.config.values["jax_compilation_cache_dir"] or "",
    "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
  }
