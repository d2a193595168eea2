"""What the machine has left: memory and room on the disk, and refusals where it is too little."""

import logging
import shutil
from pathlib import Path

import jax

from medlitenet_jax.system.errors import InputError

logger = logging.getLogger(__name__)

_MEMINFO, _CGROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Limit, use, and the part of the use that the system can take back: of cgroups version 2 and 1.
_NAMES = (
  ("memory.max", "memory.current", "inactive_file"),
  ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def gib(size: float) -> str:
  """A number of bytes in GiB, as text."""
  return f"{size / 2**30:.3g} GiB" if size < 100 * 2**30 else f"{size / 2**30:.0f} GiB"


def free_memory() -> int | None:
  """Bytes of memory that this process can still take; None where the system does not tell.

  That is what Linux calls available, or what a limit of its control groups (a container, a job of a
  cluster) leaves if that is less.
  """
  left = (_left_in(group, *names) for group in _groups() for names in _NAMES)
  return min((size for size in (_available(), *left) if size is not None), default=None)


def free_device_memory() -> int | None:
  """Bytes free on that device of this process that has the fewest; None where it does not tell."""
  free = []
  for device in jax.local_devices():
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
      free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
  return min(free, default=None)


def free_disk(folder: Path) -> int:
  """Bytes free on the disk of a folder, which need not exist yet."""
  there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
  return shutil.disk_usage(there).free


def refuse_more_than(
  free: int | None, needed: float, what: str, *, of: str, instead: str, force: bool | None = None
) -> None:
  """Refuses what needs more than there is.

  Args:
    free: bytes; None: nothing is known, and nothing refused.
    needed: bytes.
    what: needs them, with its verb.
    of: "of memory" or "of the disk".
    instead: what can be done.
    force: whether to warn only, as --force asks; None where that flag means nothing.

  Raises:
    InputError: if more is needed than is free.
  """
  if free is None or needed <= free:
    return
  line = f"{what} {gib(needed)} {of}, and {gib(free)} are free; {instead}"
  if not force:
    raise InputError(line if force is None else f"{line}, or try it all the same by --force")
  logger.warning("%s", line)


def _available() -> int | None:
  try:
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])
  except (OSError, ValueError, KeyError, IndexError):  # not Linux
    return None


def _groups() -> list[Path]:
  """Folders of the control groups that this process is in, each with those around it."""
  try:
    lines = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
  except OSError:  # not Linux
    return []
  folders: dict[Path, None] = {}
  for _, controllers, name in lines:
    if controllers and "memory" not in controllers.split(","):
      continue
    root = _CGROUPS / "memory" if controllers else _CGROUPS
    own = root / name.lstrip("/")
    folders.update(dict.fromkeys((own, *(f for f in own.parents if f.is_relative_to(root)))))
  return list(folders)


def _left_in(group: Path, limit: str, use: str, idle: str) -> int | None:
  """Bytes that the limit of a control group leaves; None if it has none."""
  try:
    allowed = int((group / limit).read_text())
    used = int((group / use).read_text())
    stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return max(0, allowed - used + int(stats.get(idle, 0)))
  except (OSError, ValueError):  # "max": no limit
    return None
