"""Every device of every process as one: the batch is shared out among them, the state is not.

A program is compiled for all devices at once and computes what one device would of the whole batch,
so means over a batch, BatchNorm's among them, need no attention anywhere else. A process brings and
takes away the rows of its own devices; process 0 alone keeps the books.
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

_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# What a process that fails alone waits for the others before it ends them too.
_SHUTDOWN_SECONDS = 10


def connect() -> None:
  """Makes this process one of several; to be called before anything else is asked of JAX.

  Which one of how many is read from `JAX_COORDINATOR_ADDRESS` (HOST:PORT of process 0),
  `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` or, without them, from SLURM or Open MPI.

  Raises:
    InputError: if neither says so, or the other processes do not answer.
  """
  address, count, number = (os.environ.get(name, "") for name in _BY_HAND)
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
      f"mpirun, or set all of {', '.join(_BY_HAND)} ({error})"
    ) from error
  except RuntimeError as error:
    raise InputError(f"--distributed: the processes did not find each other ({error})") from error


def available_cores() -> int:
  """Cores that this process may use, which can be fewer than the machine has."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def is_main_process() -> bool:
  """Whether this process keeps the books: logs, tables, pictures."""
  return jax.process_index() == 0


@functools.cache
def _mesh() -> Mesh:
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated() -> NamedSharding:
  """Whole on every device, as the state is."""
  return NamedSharding(_mesh(), PartitionSpec())


def batch_sharding() -> NamedSharding:
  """An equal share of the first axis on each device, as a batch is, process after process."""
  return NamedSharding(_mesh(), PartitionSpec("data"))


def check_shares(field: str, batch_size: int) -> None:
  """Refuses a batch that the devices cannot share equally.

  Args:
    field: of the configuration, that says the size.
    batch_size: in rows.

  Raises:
    InputError: names the next size that can be shared.
  """
  count = jax.device_count()
  if batch_size % count:
    raise InputError(
      f"config.{field} is {batch_size}, which {count} devices cannot share equally; set a multiple "
      f"of {count}, as --config.{field}={rows_for(batch_size)}, or let fewer devices be seen "
      "(CUDA_VISIBLE_DEVICES)"
    )


def rows_for(count: int) -> int:
  """The fewest rows, `count` or more, that the devices can share equally."""
  return -(-count // jax.device_count()) * jax.device_count()


def local_rows(batch_size: int) -> range:
  """Which rows of a batch of `batch_size` this process brings."""
  rows = batch_size // jax.device_count()
  processes = [device.process_index for device in _mesh().devices]
  first = processes.index(jax.process_index())
  return range(first * rows, (first + jax.local_device_count()) * rows)


def shard_batch(rows: Any) -> Any:
  """Puts this process's rows of a batch onto its devices.

  Args:
    rows: a tree of arrays whose first axis is that of `local_rows`.

  Returns:
    The tree of arrays of the whole batch.
  """
  return jax.make_array_from_process_local_data(batch_sharding(), rows)


def local_values(array: jax.Array) -> np.ndarray:
  """Takes this process's rows of an array of `batch_sharding` back from its devices."""
  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
  parts = [np.asarray(shard.data) for shard in shards]
  return parts[0] if len(parts) == 1 else np.concatenate(parts)


def gather(value: Any) -> list[Any]:
  """Tells every process what each has; all must call it together.

  Args:
    value: anything that JSON can hold, the same in the number of its letters or not.

  Returns:
    The values of all processes, in their order.
  """
  if jax.process_count() == 1:
    return [value]
  letters = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(letters)))
  padded = np.pad(letters, (0, max(lengths) - len(letters)))
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def gather_cases(of_cases: Iterable[tuple[int, Any]]) -> list[Any]:
  """Brings what each process has found out about its cases together.

  Args:
    of_cases: (index of the case in its source, anything that JSON can hold).

  Returns:
    What was found out, in the order of the source; the same in every process.
  """
  found = [pair for part in gather(list(of_cases)) for pair in part]
  return [value for _, value in sorted(found, key=lambda pair: pair[0])]


def on_main_process(action: Callable[[], Any]) -> None:
  """Has process 0 do what only one may while the others wait; all must call it together.

  Args:
    action: whose result is dropped.

  Raises:
    InputError: in the other processes, with the message of whatever process 0 has raised.
  """
  error: Exception | None = None
  if is_main_process():
    try:
      action()
    except Exception as raised:  # goes on below, once the others know
      error = raised
  message = gather(str(error) or type(error).__name__ if error else "")[0]
  if error:
    raise error
  if message:
    raise InputError(message)
