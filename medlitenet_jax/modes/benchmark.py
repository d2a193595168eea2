"""Speed of a recipe, beside the rates of the machine that are measured in the same run."""

import contextlib
import functools
import json
import logging
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.augment.on_device import pack_view
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.cases import CLASS
from medlitenet_jax.inference.networks import Network, create_predict
from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.forward import lesion_probs
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model, model_parts
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.modes.benchmark_loop import (
  open_source,
  time_evaluation,
  time_loop,
  time_pipeline,
  with_data_at_hand,
)
from medlitenet_jax.modes.call import Call, begin, resolve_recipe
from medlitenet_jax.modes.opening import open_networks
from medlitenet_jax.pages.benchmark import page
from medlitenet_jax.speed.cost import Cost, Machine, count_cost
from medlitenet_jax.speed.parts import count_forward, count_parts
from medlitenet_jax.speed.timing import time_interleaved
from medlitenet_jax.speed.trace import label_seconds, part_of
from medlitenet_jax.system import devices, process
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file
from medlitenet_jax.system.starts import record_start
from medlitenet_jax.training.run import create_initialise
from medlitenet_jax.training.step import create_train_step, recipe_numbers

logger = logging.getLogger(__name__)

MATRIX_SIDE = 2048
COPIED_FLOATS = 2**26
TRACED_CALLS = 20


class Task(NamedTuple):
  """Something that is timed.

  Attributes:
    name: of the table.
    image_size: pixels a side.
    batch: photographs a call.
    form: of the operations, see `medlitenet_jax.models.ops`.
    call: runs it once and returns arrays to wait for.
    program: returns the text of the compiled program.
    cost: the least work that it can take.
    memory: bytes that the compiled program holds while it runs.
    compile_seconds: to trace and compile it, with an empty cache.
    cached_seconds: the same in a later process, with the persistent cache; None if not measured.
  """

  name: str
  image_size: int
  batch: int
  form: str
  call: Callable[[], Any]
  program: Callable[[], str]
  cost: Cost
  memory: int
  compile_seconds: float
  cached_seconds: float | None

  @property
  def key(self) -> str:
    """Unique name."""
    return f"{self.name} {self.image_size} {self.batch} {self.form}"


def main(call: Call) -> None:
  """Measures the recipe, or the run that the command line names; see `benchmark`."""
  begin(call, call.output)
  if not call.workdir_named:
    benchmark(resolve_recipe(call), call.output)
    return
  trained, networks = open_networks(call)
  config = config_lib.resolve(call.recipe, devices.platform()) if call.recipe_named else trained
  benchmark(config, call.output, (trained, networks))


def benchmark(
  config: ConfigDict,
  output: Path,
  trained: tuple[ConfigDict, Sequence[Network]] | None = None,
) -> dict[str, Any]:
  """Measures forward passes, the training step and loop and, of a trained run, its evaluation.

  Args:
    config: resolved; `config.benchmark` says at which sizes and how often.
    output: folder that receives `benchmark.json`.
    trained: networks whose evaluation is timed, after the configuration that they are evaluated
      with; or None.

  Returns:
    What `benchmark.json` holds.

  Raises:
    InputError: if the data cannot be used, the devices cannot share a batch, or the configuration
      is that of an ensemble.
  """
  if config.ensemble.members:
    raise InputError("config.ensemble.members: members are measured one by one")
  devices.check_shares("train.batch_size", config.train.batch_size)
  with tempfile.TemporaryDirectory() as scratch, _empty_cache(Path(scratch) / "xla"):
    # Everything is opened first, so that a mistake does not come up after minutes of timing.
    short, data = with_data_at_hand(config, Path(scratch))
    source = open_source(trained[0]) if trained else None
    record_start(output)
    # Apart from the training step: its plain form takes seconds, in which other caches go cold.
    forward, (first, *_) = _measure(config, "forward passes", _forward_tasks(config))
    profile = _profile(config, first, forward, Path(scratch) / "trace")
    step, _ = _measure(config, "training step", _train_tasks(config))
    pipeline = time_pipeline(short)
    loop = time_loop(short, Path(scratch))
    evaluation = None
    if trained and source:
      evaluation = time_evaluation(*trained, source, Path(scratch) / "eval")
  size = config.benchmark.image_sizes[0]
  result = {
    "device": jax.devices()[0].device_kind,
    "machine": platform.machine(),
    "cores": devices.available_cores(),
    "model": f"{config.model.name} {config.model.variant}",
    "precision": config.precision,
    "parts": [part.__dict__ for part in count_parts(config.model.to_dict(), size)],
    "parts_image_size": size,
    "groups": [forward, step],
    "profile": profile,
    "ratios": _ratios(forward["rows"]),
    "data": data,
    "pipeline": pipeline,
    "loop": loop,
    "evaluation": evaluation,
    "peak_memory": _peak_memory(),
  }
  path = output / "benchmark.json"
  replace_file(path, json.dumps(result, indent=2) + "\n")
  print(page(result))
  print(f"Figures: {path}")
  return result


@contextlib.contextmanager
def _empty_cache(folder: Path) -> Iterator[None]:
  """Uses an empty folder as the compilation cache, and then the user's again."""
  usual = jax.config.values["jax_compilation_cache_dir"]

  def use(path: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", path)
    compilation_cache.reset_cache()  # which otherwise keeps the folder of its first use

  use(str(folder))
  try:
    yield
  finally:
    use(usual)


def _compile(function, *args, again: bool) -> tuple[Any, dict[str, Any]]:
  """Compiles a jitted function; with `again`, also from the cache, as a later process does."""
  seconds: list[float] = []
  for _ in range(1 + again):
    jax.clear_caches()
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    seconds.append(time.perf_counter() - start)
  usage = compiled.memory_analysis()
  return compiled, {
    "program": compiled.as_text,
    "memory": usage.argument_size_in_bytes
    + usage.output_size_in_bytes
    - usage.alias_size_in_bytes
    + usage.temp_size_in_bytes,
    "compile_seconds": seconds[0],
    "cached_seconds": seconds[1] if again else None,
  }


def _forms(config: ConfigDict) -> tuple[str, ...]:
  return ("platform", "library") if config.benchmark.compare_plain else ("platform",)


def _model(config: ConfigDict, form: str):
  return create_model({**config.model.to_dict(), "form": form}, DTYPES[config.precision])


def photographs(config: ConfigDict, batch: int, size: int) -> np.ndarray:
  """Random [batch, size, size, 3] uint8 pixels, the same for one seed."""
  rng = np.random.default_rng(config.seed)
  return rng.integers(0, 256, (batch, size, size, 3), np.uint8)


def _forward_tasks(config: ConfigDict) -> Iterator[Task]:
  """One view of one photograph, of a training batch, and six views of one, at every size."""
  model = _model(config, "library")
  size = min(config.benchmark.image_sizes)
  blank = jnp.zeros((1, size, size, 3), jnp.float32)
  fold = functools.partial(fold_batch_norm, folds=inspect_model(model, size).folds)
  variables = jax.jit(fold)(jax.jit(model.init)(jax.random.key(config.seed), blank))
  for size in config.benchmark.image_sizes:
    for batch, form in (
      *((1, form) for form in _forms(config)),
      (config.train.batch_size, "platform"),
    ):
      image = photographs(config, batch, size)
      cost = count_forward(config.model.to_dict(), DTYPES[config.precision], batch, size)
      run = jax.jit(functools.partial(lesion_probs, _model(config, form)))
      compiled, facts = _compile(run, variables, image, again=form == "platform")
      probs = functools.partial(compiled, variables)
      yield Task("forward", size, batch, form, functools.partial(probs, image), cost=cost, **facts)
      if (batch, form) == (1, "platform"):
        # The same program, called once for each view.
        predict = create_predict([Network(probs, size)], "six")
        call = functools.partial(predict, {size: image})
        six_cost = Cost(*(6 * value for value in cost))
        six = Task("six views", size, batch, form, call, cost=six_cost, **facts)
    yield six


def train_batch(config: ConfigDict, count: int, size: int) -> dict[str, Any]:
  """A batch in the form in which the training step takes it."""
  image = photographs(config, count, size)
  mask = (image[..., :1] > 127).astype(np.uint8)
  targets = {CLASS: np.zeros(count, np.int32)} if config.data.class_column else {}
  if config.data.augment_on != "device":
    return {"image": image, "targets": {**targets, "mask": mask}}
  policy, rng = AugmentPolicy(**config.augment), np.random.default_rng(config.seed)
  views = [pack_view(rng, *pair, size, policy) for pair in zip(image, mask[..., 0], strict=True)]
  packed = {name: np.stack([view[name] for view in views]) for name in views[0]}
  return {"views": packed, "targets": targets}


def _train_tasks(config: ConfigDict) -> Iterator[Task]:
  """The training step at the first size, each form with a state of its own."""
  size, count = config.benchmark.image_sizes[0], config.train.batch_size
  batch = train_batch(config, count, size)
  numbers = recipe_numbers(config, total_steps=1000)

  def start(form: str):
    model = _model(config, form)
    initialise = create_initialise(config, model, min(config.benchmark.image_sizes))
    return create_train_step(config, model), initialise

  def calls(compiled, initialise) -> Iterator[Any]:
    state = initialise()
    while True:
      state, figures = compiled(state, batch, numbers)
      yield figures

  step, initialise = start("library")
  whole = count_cost(step.__wrapped__, jax.eval_shape(initialise), batch, numbers)
  cost = Cost(*(value / jax.device_count() for value in whole))  # rates are those of one device
  for form in _forms(config):
    step, initialise = start(form)
    args = (jax.eval_shape(initialise), batch, numbers)
    compiled, facts = _compile(step, *args, again=form == "platform")
    call = functools.partial(next, calls(compiled, initialise))
    yield Task("training step", size, count, form, call, cost=cost, **facts)


def _measure(
  config: ConfigDict, title: str, tasks: Iterator[Task]
) -> tuple[dict[str, Any], list[Task]]:
  """Times tasks and, between them, the rates of the machine, which give their least times."""
  logger.info("Compiling the %s.", title)
  made = [*tqdm(tasks, unit="program", leave=False, dynamic_ncols=True)]
  logger.info("Timing the %s.", title)
  matrices = {
    name: jnp.ones((MATRIX_SIDE, MATRIX_SIDE), DTYPES[name])
    for name in {"float32", config.precision}
  }
  products = {
    f"product {name}": functools.partial(
      jax.jit(jnp.matmul).lower(matrix, matrix).compile(), matrix, matrix
    )
    for name, matrix in matrices.items()
  }
  floats = jnp.zeros(COPIED_FLOATS, jnp.float32)
  add_one = jax.jit(lambda x: x + 1, donate_argnums=0).lower(floats).compile()

  def copy():
    nonlocal floats
    floats = add_one(floats)
    return floats

  calls = {**products, "copy": copy, **{task.key: task.call for task in made}}
  seconds = time_interleaved(calls, config.benchmark.rounds)
  flops = 2 * MATRIX_SIDE**3
  machine = Machine(
    flops / seconds[f"product {config.precision}"], 2 * 4 * COPIED_FLOATS / seconds["copy"]
  )
  rows = []
  for task in made:
    if task.form == "platform":
      plain = seconds.get(task._replace(form="library").key)
      rows.append(_row(task, seconds[task.key], plain, machine))
  group = {
    "title": title,
    "float32_matmul_gflops": flops / seconds["product float32"] / 1e9,
    "matmul_gflops": machine.flops_per_second / 1e9,
    "copy_gb_per_second": machine.bytes_per_second / 1e9,
    "rows": rows,
  }
  return group, made


def _row(task: Task, seconds: float, plain: float | None, machine: Machine) -> dict[str, Any]:
  floor = machine.floor(task.cost)
  return {
    "task": task.name,
    "image_size": task.image_size,
    "batch": task.batch,
    "ms": 1e3 * seconds,
    "images_per_second": task.batch / seconds,
    "gflop": task.cost.flops / 1e9,
    "gb_moved": task.cost.bytes / 1e9,
    "floor_ms": 1e3 * floor,
    "floor_share": floor / seconds,
    "matmul_rate_share": task.cost.flops / machine.flops_per_second / seconds,
    "plain_ms": None if plain is None else 1e3 * plain,
    "times_plain": None if plain is None else plain / seconds,
    "memory_bytes": task.memory,
    "compile_seconds": task.compile_seconds,
    "cached_compile_seconds": task.cached_seconds,
  }


def _profile(config: ConfigDict, task: Task, group: dict[str, Any], folder: Path) -> dict[str, Any]:
  """Splits the time of a forward pass by part, into products of matrices and the rest.

  Times of the trace are scaled so that their sum is the time measured without one.
  """

  named = model_parts(config.model.to_dict(), task.image_size)

  def label(op_name: str) -> str:
    product = op_name.endswith(("/dot_general", "/conv_general_dilated"))
    return f"{part_of(op_name, named)} {'products' if product else 'rest'}"

  jax.block_until_ready(task.call())
  with jax.profiler.trace(str(folder)):
    for _ in range(TRACED_CALLS):
      jax.block_until_ready(task.call())
  seconds = label_seconds(folder, task.program(), label)
  row = next(r for r in group["rows"] if (r["task"], r["batch"]) == (task.name, task.batch))
  scale = row["ms"] / (sum(seconds.values()) or 1)
  flops: dict[str, float] = defaultdict(float)
  for part in count_parts(config.model.to_dict(), task.image_size):
    flops[part_of(part.name, named)] += part.flops
  scopes = {name.rsplit(" ", 1)[0] for name in seconds} | flops.keys()
  parts = []
  for scope in sorted(scopes, key=lambda scope: -flops[scope]):
    products, rest = (scale * seconds.get(f"{scope} {kind}", 0.0) for kind in ("products", "rest"))
    parts.append(
      {
        "part": scope,
        "mflop": flops[scope] / 1e6,
        "products_ms": products,
        "rest_ms": rest,
        "at_matmul_rate_ms": flops[scope] / group["matmul_gflops"] / 1e6,
      }
    )
  return {"image_size": task.image_size, "ms": row["ms"], "parts": parts}


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """How the forward pass grows with pixels, with photographs and with views."""
  ms = {(row["task"], row["image_size"], row["batch"]): row["ms"] for row in rows}
  small, *larger = sorted({row["image_size"] for row in rows})
  batch = max(row["batch"] for row in rows)
  found = [
    (
      f"{large}x{large} over {small}x{small}, batch {n}",
      ("forward", large, n),
      ("forward", small, n),
    )
    for large in larger
    for n in (1, batch)
  ]
  found += [
    (f"batch {batch} over 1, {small}x{small}", ("forward", small, batch), ("forward", small, 1)),
    (f"six views over one, {small}x{small}", ("six views", small, 1), ("forward", small, 1)),
  ]
  return [{"what": what, "times": ms[above] / ms[below]} for what, above, below in found]


def _peak_memory() -> dict[str, int | None]:
  """The most bytes that the process and the device have held, in either form."""
  stats = jax.devices()[0].memory_stats() or {}
  return {
    "host_bytes": process.peak_memory(),
    "device_bytes": stats.get("peak_bytes_in_use"),
  }
