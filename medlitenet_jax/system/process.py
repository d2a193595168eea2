"""How this process runs: its allocator, its progress bars, its compilation cache and its end."""

import ctypes
import gc
import importlib.metadata
import io
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

# For glibc's malloc: huge pages, which save most page faults of large arrays, and memory that is
# freed stays with the process, which saves the rest from the second batch on. One arena, for only
# that one may hold arrays of any size.
ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:" + ":".join(
  f"glibc.malloc.{name}_threshold={2**40}" for name in ("mmap", "trim")
)
BAR_SECONDS = "10"  # between two states of a progress bar in a file
CACHED_SECONDS = 0.2  # of compiling; by JAX's own 1 s it would do the smaller programs every time
COMPILED = "/jax/core/compile/backend_compile_duration"  # what JAX calls it to its listeners
LONG_COMPILATION_SECONDS = 1  # after which giving memory back is worth its milliseconds
LAST_WORDS_SECONDS = 2  # in which the other processes can say why they end


def restart_with_allocator() -> None:
  """Restarts Python once with `ALLOCATOR` in force, which only the start can switch on.

  A GLIBC_TUNABLES of the user's own, even an empty one, is left as it is. To be called before
  anything heavy is imported, which would have to be imported again.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = ALLOCATOR
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def set_up_compiler() -> None:
  """Has XLA compile for a CPU with its older emitters: in less time, to programs as fast.

  XLA_FLAGS of the user's own are left as they are. To be called before JAX compiles anything. Later
  versions of jaxlib have these emitters no more, and end a process that names an unknown option.
  """
  if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")


def set_up_bars() -> None:
  """Has progress bars written to a file every few seconds, where a terminal sees each step."""
  if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", BAR_SECONDS)  # read by tqdm


def collect_garbage_rarely() -> None:
  """Lets Python look for unreachable cycles a hundredth as often as it does by default.

  Importing JAX and tracing a network make millions of small objects that stay; looking through them
  over and over takes a tenth of the start. Arrays are freed as before, when nothing refers to them.
  """
  gc.set_threshold(100 * gc.get_threshold()[0], *gc.get_threshold()[1:])


def set_up_cache() -> str:
  """Has compiled programs kept in the user's cache folder, unless JAX was told otherwise.

  Returns:
    The folder; "" if there is none.
  """
  import jax

  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "medlitenet_jax" / "xla"))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHED_SECONDS)
  return jax.config.values["jax_compilation_cache_dir"] or ""


def return_memory_after_compiling() -> None:
  """Has what a long compilation took given back to the system when it ends.

  XLA fills one to two GiB with the small objects of a training step; glibc would keep them, and the
  arrays of the run would come on top.
  """
  import jax

  trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
  if trim is None:  # not glibc
    return

  def after(event: str, duration_secs: float, **_) -> None:
    if event == COMPILED and duration_secs > LONG_COMPILATION_SECONDS:
      trim(0)

  jax.monitoring.register_event_duration_secs_listener(after)


def peak_memory() -> int | None:
  """The most bytes that this process has held so far; None on Windows, which does not tell."""
  try:
    import resource
  except ImportError:
    return None
  unit = 1 if sys.platform == "darwin" else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def keep_printing() -> None:
  """Has letters that the terminal or file cannot show printed as escapes, not raised as errors.

  Where output goes to a file, Windows takes the few letters of its old code page alone.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


def leave(status: int) -> NoReturn:
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
