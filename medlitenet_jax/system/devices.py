"""All devices of all processes used as one: they split each batch and all hold the whole state.

A program is compiled for all devices at once and computes what one device would compute from the
whole batch, so means over a batch, as in BatchNorm, need no special code. Each process reads and
returns the rows of its own devices; only process 0 writes logs, tables and pictures.
"""

import functools
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medlitenet_jax.system.errors import InputError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A process that fails alone waits so long for the others to end before it ends them too.
_SHUTDOWN_SECONDS = 10


def connect() -> None:
  """Makes this process one of several; call it before JAX does anything else.

  The number of processes and the number of this one are read from `JAX_COORDINATOR_ADDRESS`
  (HOST:PORT of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` or, if none is set, from SLURM
  or Open MPI.

  Raises:
    InputError: if these numbers are found nowhere, or the other processes do not answer.
  """
  address, count, number = (os.environ.get(name, "") for name in _VARIABLES)
  options: dict[str, Any] = {}
  try:
    if address or count or number:
      options = {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(number),
        "cluster_detection_method": "deactivate",
      }
    jax.distributed.initialize(**options, shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
  except (ValueError, TypeError) as error:
    raise InputError(
      "--distributed: neither SLURM nor Open MPI says which process this is; start it by srun or "
      f"mpirun, or set all of {', '.join(_VARIABLES)} ({error})"
    ) from error
  except RuntimeError as error:
    raise InputError(
      f"--distributed: the processes did not find each other ({error}); check that all were "
      "started and can reach the coordinator's address"
    ) from error


def platform() -> str:
  """Name of the platform that JAX uses, as it calls it: cpu, gpu or tpu.

  Raises:
    InputError: if JAX_PLATFORMS asks for one that is not there.
  """
  try:
    return jax.default_backend()
  # A missing plugin fails an assertion of JAX without a word.
  except (RuntimeError, AssertionError) as error:
    asked = jax.config.values["jax_platforms"]
    if not asked:
      raise
    reason = f"; JAX says: {str(error).splitlines()[0]}" if str(error) else ""
    raise InputError(
      f"JAX_PLATFORMS={asked}: no such device can be used here; leave the variable out to take "
      "what there is, or set up the device (for an NVIDIA GPU its driver and "
      f"requirements-cuda12.txt){reason}"
    ) from error


def available_cores() -> int:
  """Number of cores that this process may use, which can be fewer than the machine has."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def is_main_process() -> bool:
  """Whether this is process 0, the only one that writes logs, tables and pictures."""
  return jax.process_index() == 0


@functools.cache
def _mesh() -> Mesh:
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated() -> NamedSharding:
  """Sharding of an array that every device holds whole, as it does the state."""
  return NamedSharding(_mesh(), PartitionSpec())


def batch_sharding() -> NamedSharding:
  """Sharding of a batch: an equal share of the rows on each device, in the order of processes."""
  return NamedSharding(_mesh(), PartitionSpec("data"))


def check_shares(field: str, batch_size: int) -> None:
  """Refuses a batch size that is no multiple of the number of devices.

  Args:
    field: name of the field of the configuration that sets the size.
    batch_size: in rows, over all devices.

  Raises:
    InputError: names the next size that is possible.
  """
  count = jax.device_count()
  if batch_size % count:
    raise InputError(
      f"config.{field} is {batch_size}, which {count} devices cannot share equally; set a multiple "
      f"of {count}, as --config.{field}={rows_for(batch_size)}, or make fewer devices visible "
      "(CUDA_VISIBLE_DEVICES)"
    )


def rows_for(count: int) -> int:
  """The smallest multiple of the number of devices that is at least `count`."""
  return -(-count // jax.device_count()) * jax.device_count()


def local_rows(batch_size: int) -> range:
  """The rows of a batch of `batch_size` that this process reads: those of its own devices."""
  rows = batch_size // jax.device_count()
  processes = [device.process_index for device in _mesh().devices]
  first = processes.index(jax.process_index())
  return range(first * rows, (first + jax.local_device_count()) * rows)


def shard_batch(rows: Any) -> Any:
  """Moves this process's rows of a batch to its devices.

  Args:
    rows: tree of NumPy arrays [R, ...], R being the number of `local_rows`.

  Returns:
    The tree of arrays [B, ...] of the whole batch, under `batch_sharding`.
  """
  return jax.make_array_from_process_local_data(batch_sharding(), rows)


def local_values(array: jax.Array) -> np.ndarray:
  """Copies this process's rows of an array under `batch_sharding` from its devices.

  Args:
    array: [B, ...].

  Returns:
    [R, ...], R being the number of `local_rows`, of the same dtype.
  """
  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
  parts = [np.asarray(shard.data) for shard in shards]
  return parts[0] if len(parts) == 1 else np.concatenate(parts)


def gather(value: Any) -> list[Any]:
  """Sends a value of each process to all processes; all must call it together.

  Args:
    value: anything that JSON can hold; its length may differ between processes.

  Returns:
    The values of all processes, by the number of the process.
  """
  if jax.process_count() == 1:
    return [value]
  letters = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(letters)))
  padded = np.pad(letters, (0, max(lengths) - len(letters)))
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def gather_cases(of_cases: Iterable[tuple[int, Any]]) -> list[Any]:
  """Collects the results that each process has for its own cases; all must call it together.

  Args:
    of_cases: pairs (index of the case in its source, result), results being what JSON can hold.

  Returns:
    The results of all processes, in the order of the source; the same in every process.
  """
  found = [pair for part in gather(list(of_cases)) for pair in part]
  return [value for _, value in sorted(found, key=lambda pair: pair[0])]


def on_main_process(action: Callable[[], Any]) -> None:
  """Runs `action` in process 0 while the other processes wait; all must call it together.

  Args:
    action: called without arguments; its result is dropped.

  Raises:
    InputError: in the other processes if `action` raises in process 0, with the same message.
      Process 0 raises the error itself.
  """
  error: Exception | None = None
  if is_main_process():
    try:
      action()
    except Exception as raised:  # raised again below, once the other processes know
      error = raised
  message = gather(str(error) or type(error).__name__ if error else "")[0]
  if error:
    raise error
  if message:
    raise InputError(message)
