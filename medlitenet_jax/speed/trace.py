"""Profiler traces of the training step, and the table of where its time goes."""

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
# Parts of the training step besides the network's own, by the names of their scopes.
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
  """Traces some of the batches of a loop.

  Args:
    start_step: number of the first batch in the trace, counted from 0.
    num_steps: batches in it; 0 for no trace.
    folder: receives the trace, for xprof or TensorBoard, and the table of `label_seconds`.
    program: gives the text of the compiled step.
    parts: of the network, names of its modules by part.

  Yields:
    A function to call before each batch with its number and the state.
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
  """Writes and prints seconds by part."""
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
    op_name: modules and scopes that it was traced in, as a compiled program gives them.
    parts: names of modules and scopes by the part that they belong to; the first that is found
      decides.

  Returns:
    The part for the forward pass, the same and " gradient" for the backward pass, or `OTHER`.
  """
  words = set(re.findall(r"\w+", op_name))
  for part, names in parts.items():
    if words & set(names):
      return f"{part} gradient" if "transpose(" in op_name else part
  return OTHER


def label_seconds(folder: Path, program: str, label: Callable[[str], str]) -> dict[str, float]:
  """Adds up the time of a program's operations by what each belongs to.

  A trace names operations as the compiler does; the program says from which scope each came.

  Args:
    folder: of traces, whose newest `.xplane.pb` is read.
    program: text of the compiled program, whose operations carry `op_name`.
    label: `op_name` to what the operation belongs to.

  Returns:
    Seconds, of all threads or streams, by label. What the compiler has fused counts for the scope
    that its result belongs to.
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
  """The `op_name` of each operation, but for those that only hold others.

  Args:
    program: text of a compiled program.

  Returns:
    By name of the operation. One that the compiler has left without takes the `op_name` of the
    operation that uses it, be it inside a fusion; "" if there is none either.
  """
  instructions = _parse(program)
  number = {(i.computation, i.name): i.operands[0] for i in instructions if i.kind == "parameter"}
  inside: dict[tuple[str, str], str] = {}  # computation and number of parameter, to its user's
  for i in instructions:
    for operand in i.operands:
      if (i.computation, operand) in number and i.op_name:
        inside.setdefault((i.computation, number[i.computation, operand]), i.op_name)
  found: dict[str, str] = {}
  of_user: dict[str, str] = {}
  for i in reversed(instructions):  # a user stands behind what it uses
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
    # A CPU hands parts of an operation to other threads; "end" says when the last was done.
    ends = {
      stats["_c"]: event.start_ns + event.duration_ns
      for event, stats in events
      if event.name.startswith("end: ") and "_c" in stats
    }
    for event, stats in events:
      if stats.get("hlo_module") == module and "hlo_op" in stats:
        end = max(event.start_ns + event.duration_ns, ends.get(stats.get("_p"), 0))
        yield str(stats["hlo_op"]), (end - event.start_ns) / 1e9
