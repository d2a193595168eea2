"""Profiler traces of the training step, and a table of the time by part."""

import contextlib
import functools
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

from medlitenet_jax.system import tables

logger = logging.getLogger(__name__)

TABLE_FILE = "scopes.csv"
# Parts of the training step outside the network, each with the names of its scopes.
STEP_PARTS = {
  "loss": ("loss",),
  "augmentation": ("augment",),
  "optimizer": ("optimizer",),
}
OTHER = "other"


@contextlib.contextmanager
def profile_window(
  *,
  start_step: int,
  num_steps: int,
  folder: Path,
  program: Callable[[], str],
  parts: Mapping[str, Sequence[str]],
) -> Iterator[Callable[[int, Any], None]]:
  """Traces a range of batches of a training loop.

  Args:
    start_step: number of the first traced batch, counted from 0.
    num_steps: number of traced batches; 0 for no trace.
    folder: receives the trace, for xprof or TensorBoard, and the table of seconds by part.
    program: returns the text of the compiled step.
    parts: names of the network's modules by part.

  Yields:
    A function to call before each batch with the number of the batch and the training state.
  """
  first: int | None = None

  def stop(last: str) -> None:
    jax.profiler.stop_trace()
    logger.info("Wrote the trace of batches %d to %s to %s.", first, last, folder)
    _write_table(folder, program(), parts)

  def at(step: int, state) -> None:
    nonlocal first
    inside = start_step <= step < start_step + num_steps
    if inside and first is None:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(folder))
      first = step
    elif first is not None and not inside:
      jax.block_until_ready(state)
      stop(str(step - 1))
      first = None

  try:
    yield at
  except BaseException:
    if first is not None:
      jax.profiler.stop_trace()
    raise
  if first is not None:
    stop("the last")


def _write_table(folder: Path, program: str, parts: Mapping[str, Sequence[str]]) -> None:
  """Writes and logs the seconds by part."""
  seconds = label_seconds(
    folder, program, functools.partial(part_of, parts={**parts, **STEP_PARTS})
  )
  total = sum(seconds.values()) or 1.0
  ranked = sorted(seconds.items(), key=lambda item: -item[1])
  cells = [(scope, f"{value:.4f}", f"{100 * value / total:.1f}%") for scope, value in ranked]
  columns = ("scope", "seconds", "share")
  tables.write_csv(
    folder / TABLE_FILE, [dict(zip(columns, row, strict=True)) for row in cells], columns
  )
  logger.info("%s", tables.table(columns, cells))


def part_of(op_name: str, parts: Mapping[str, Sequence[str]]) -> str:
  """Part of the step that an operation belongs to.

  Args:
    op_name: the operation's module and scope path, as in the metadata of a compiled program.
    parts: {part: names of its modules and scopes}; the first part that matches is returned.

  Returns:
    The part, with " gradient" appended for an operation of the backward pass, or `OTHER`.
  """
  words = set(re.findall(r"\w+", op_name))
  for part, names in parts.items():
    if words & set(names):
      return f"{part} gradient" if "transpose(" in op_name else part
  return OTHER


def label_seconds(folder: Path, program: str, label: Callable[[str], str]) -> dict[str, float]:
  """Adds up the time of a program's operations by label.

  A trace only has the compiler's names of operations; the program's text maps them to scopes.

  Args:
    folder: folder of traces; the newest `.xplane.pb` is read.
    program: text of the compiled program, whose operations carry `op_name`.
    label: maps an `op_name` to a label.

  Returns:
    Seconds by label, summed over threads or streams. A fusion counts for the scope of its result.
  """
  trace = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
  module = re.match(r"HloModule ([^\s,]+)", program)
  scopes = {name: label(op_name) for name, op_name in op_names(program).items()}
  seconds: defaultdict[str, float] = defaultdict(float)
  for operation, duration in _operations(trace, module.group(1) if module else ""):
    if operation in scopes:
      seconds[scopes[operation]] += duration
  return dict(seconds)


class _Instruction(NamedTuple):
  """A line of a compiled program: %NAME = TYPE KIND(%OPERAND, ...), ..., calls=%CALLED."""

  computation: str
  name: str
  kind: str
  operands: list[str]
  called: str
  op_name: str


def _parse(program: str) -> list[_Instruction]:
  line = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(([^)]*)\)(.*)$")
  found, computation = [], ""
  for text in program.splitlines():
    if head := re.match(r"(?:ENTRY )?%?([\w.-]+) \(", text):
      computation = head.group(1)
    elif match := line.match(text):
      name, kind, operands, rest = match.groups()
      called = re.search(r"calls=%?([\w.-]+)", rest)
      op_name = re.search(r'op_name="([^"]*)"', rest)
      words = re.findall(r"[\w.-]+", operands)
      ends = (group.group(1) if group else "" for group in (called, op_name))
      found.append(_Instruction(computation, name, kind, words, *ends))
  return found


def op_names(program: str) -> dict[str, str]:
  """The `op_name` of each operation, except those that only contain others (while, call, ...).

  Args:
    program: text of a compiled program.

  Returns:
    {operation: op_name}. An operation without one gets that of the operation that uses it, also
    inside a fusion, or "" if that has none either.
  """
  instructions = _parse(program)
  number = {(i.computation, i.name): i.operands[0] for i in instructions if i.kind == "parameter"}
  # {(computation, parameter number): op_name of the operation that uses the parameter}
  inside: dict[tuple[str, str], str] = {}
  for i in instructions:
    for operand in i.operands:
      if (i.computation, operand) in number and i.op_name:
        inside.setdefault((i.computation, number[i.computation, operand]), i.op_name)
  found: dict[str, str] = {}
  of_user: dict[str, str] = {}
  for i in reversed(instructions):  # users come after the operations they use
    op_name = i.op_name or of_user.get(i.name, "")
    for place, operand in enumerate(i.operands):
      of_user.setdefault(operand, inside.get((i.called, str(place)), op_name))
    if i.kind not in ("while", "call", "conditional"):
      found[i.name] = op_name
  return found


def _operations(trace: Path, module: str) -> Iterator[tuple[str, float]]:
  """Yields the name and seconds of each operation of a module in a trace."""
  planes = list(ProfileData.from_file(str(trace)).planes)
  devices = [plane for plane in planes if plane.name.startswith("/device:")]
  for plane in devices or planes:
    events = [(event, dict(event.stats)) for line in plane.lines for event in line.events]
    # On a CPU other threads do parts of an operation; "end: " events mark when the last finished.
    ends = {
      stats["_c"]: event.start_ns + event.duration_ns
      for event, stats in events
      if event.name.startswith("end: ") and "_c" in stats
    }
    for event, stats in events:
      if stats.get("hlo_module") == module and "hlo_op" in stats:
        end = max(event.start_ns + event.duration_ns, ends.get(stats.get("_p"), 0))
        yield str(stats["hlo_op"]), (end - event.start_ns) / 1e9
