"""Times one program of MedLiteNet on the device at hand, and says where its time goes.

    PYTHONPATH=. python tests/slow/gpu.py train --precision=float16 --batch=16 --form=gpu

Prints milliseconds a call, as the median of eight rows of eight calls; that of single calls, each
waited for; and the kernels of one call with their time, by part. XLA may join kernels to a CUDA
graph, which a trace shows as one: `XLA_FLAGS=--xla_gpu_enable_command_buffer=` tells them apart.
"""

import argparse
import functools
import re
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp

from configs import released
from medlitenet_jax import config as config_lib
from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.forward import lesion_probs
from medlitenet_jax.models.medlitenet.network import VARIANTS
from medlitenet_jax.models.ops import FORMS
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model, model_parts
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.modes.benchmark import photographs, train_batch
from medlitenet_jax.speed.trace import STEP_PARTS, label_seconds, op_names, part_of
from medlitenet_jax.system import devices, tables
from medlitenet_jax.training.run import create_initialise
from medlitenet_jax.training.step import create_train_step, recipe_numbers

CALLS, ROWS = 8, 8


def parse():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("program", choices=("forward", "train"))
  parser.add_argument("--variant", choices=sorted(VARIANTS), default="base")
  parser.add_argument("--precision", choices=sorted(DTYPES), default="bfloat16")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--size", type=int, default=192)
  parser.add_argument("--form", choices=FORMS, default="platform")
  parser.add_argument("--augment_on", choices=("host", "device"), default="device")
  return parser.parse_args()


def create_call(options):
  """The compiled program, and a function that starts it once on a batch that is on the device."""
  config = released.get_config()
  config.model.variant = options.variant
  config.precision, config.data.augment_on = options.precision, options.augment_on
  config.train.batch_size, config.train.image_sizes = options.batch, (options.size,)
  config = config_lib.resolve(config, devices.platform())
  model = create_model({**config.model.to_dict(), "form": options.form}, DTYPES[config.precision])
  if options.program == "forward":
    blank = jnp.zeros((1, options.size, options.size, 3), jnp.float32)
    fold = functools.partial(fold_batch_norm, folds=inspect_model(model, options.size).folds)
    variables = jax.jit(fold)(jax.jit(model.init)(jax.random.key(0), blank))
    image = jax.device_put(photographs(config, options.batch, options.size))
    compiled = jax.jit(functools.partial(lesion_probs, model)).lower(variables, image).compile()
    return config, compiled, lambda: compiled(variables, image)
  initialise = create_initialise(config, model, options.size)
  batch = jax.device_put(train_batch(config, options.batch, options.size))
  numbers = recipe_numbers(config, total_steps=100_000)
  step = create_train_step(config, model)
  compiled = step.lower(jax.eval_shape(initialise), batch, numbers).compile()
  state = initialise()

  def call():
    nonlocal state
    state, figures = compiled(state, batch, numbers)
    return figures

  return config, compiled, call


def time_calls(call):
  """Median seconds of a call in a row of them, and of one that is waited for."""
  for _ in range(3):
    jax.block_until_ready(call())
  rows, single = [], []
  for _ in range(ROWS):
    start = time.perf_counter()
    for _ in range(CALLS):
      result = call()
    jax.block_until_ready(result)
    rows.append((time.perf_counter() - start) / CALLS)
    start = time.perf_counter()
    jax.block_until_ready(call())
    single.append(time.perf_counter() - start)
  return statistics.median(rows), statistics.median(single)


def launched_by(program):
  """Names of the kernels that a compiled program starts, those of CUDA graphs included."""
  found, inside = [], False
  for line in program.splitlines():
    if line.endswith("{") and not line.startswith(" "):
      inside = line.startswith(("ENTRY", "%command_buffer"))
    elif inside and (
      name := re.match(r"\s+(?:ROOT )?%([\w.-]+) = .*? (?:fusion|copy|custom-call)\(", line)
    ):
      found.append(name.group(1))
  return found


def main():
  options = parse()
  start = time.perf_counter()
  config, compiled, call = create_call(options)
  compiling = time.perf_counter() - start
  seconds, single = time_calls(call)
  print(
    f"{jax.devices()[0].device_kind}, JAX {jax.__version__}: {options.program}, "
    f"{options.precision}, batch {options.batch}, {options.size} pixels, form {options.form}: "
    f"{1e3 * seconds:.2f} ms a call in a row, {1e3 * single:.2f} ms alone, "
    f"{options.batch / seconds:.0f} images/s; compiled in {compiling:.0f} s"
  )
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(call())
    program = compiled.as_text()
    parts = {**model_parts(config.model.to_dict(), options.size), **STEP_PARTS}
    label = functools.partial(part_of, parts=parts)
    found = label_seconds(Path(folder), program, label)
  launched = launched_by(program)
  names = op_names(program)
  kernels = Counter(label(names.get(name, "")) for name in launched)
  rows = [
    (part, f"{1e3 * value:.3f}", kernels[part])
    for part, value in sorted(found.items(), key=lambda item: -item[1])
  ]
  rows.append(("all", f"{1e3 * sum(found.values()):.3f}", len(launched)))
  print(tables.table(("part", "ms", "kernels"), rows))


if __name__ == "__main__":
  main()
