"""Programs lowered for CUDA and inspected as text, without a GPU."""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import REDUCED, resolved

from medlitenet_jax.data.augment.on_device import pack_view
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.forward import lesion_probs
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.training.run import create_initialise
from medlitenet_jax.training.step import create_train_step, recipe_numbers

PRODUCTS = ("stablehlo.convolution", "stablehlo.dot_general")
HALF = {"bfloat16": "bf16", "float16": "f16"}
SIZE, BATCH = 64, 2


class Operation(NamedTuple):
  """An operation: its name, element types of operands and results, scope, and more.

  `shrinks`: whether the first result has fewer elements than the first operand. `precision`: the
  precision that a product requests.
  """

  name: str
  operands: list[str]
  results: list[str]
  scope: str
  shrinks: bool
  precision: str


def element_type(value) -> str:
  return str(value.type.element_type) if hasattr(value.type, "element_type") else str(value.type)


def number_of_elements(value) -> int:
  return math.prod(value.type.shape) if hasattr(value.type, "shape") else 0


@functools.cache
def operations(lowered) -> list[Operation]:
  """All operations of a lowered program, including nested ones."""
  found: list[Operation] = []

  def visit(blocks):
    for block in blocks:
      for operation in block.operations:
        operation = operation.operation
        operands = [element_type(v) for v in operation.operands]
        results = [element_type(v) for v in operation.results]
        shrinks = bool(operands and results) and (
          number_of_elements(operation.operands[0]) > number_of_elements(operation.results[0])
        )
        scope, attributes = str(operation.location), operation.attributes
        asked = str(attributes["precision_config"]) if "precision_config" in attributes else ""
        found.append(Operation(operation.name, operands, results, scope, shrinks, asked))
        for region in operation.regions:
          visit(region.blocks)

  visit([lowered.compiler_ir("stablehlo").body])
  return found


def photographs():
  return jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.uint8)


@functools.cache
def train_program(precision):
  """The lowered step of the reduced network, and the shapes of its state."""
  config = resolved(**REDUCED, precision=precision, data__augment_on="device", model__form="gpu")
  model = create_model(config.model.to_dict(), DTYPES[precision])
  state = jax.eval_shape(create_initialise(config, model, SIZE))
  policy = AugmentPolicy(**config.augment)
  blank = np.zeros((SIZE, SIZE), np.uint8)
  packed = pack_view(np.random.default_rng(0), np.dstack([blank] * 3), blank, SIZE, policy)
  views = {n: jax.ShapeDtypeStruct((BATCH, *a.shape), a.dtype) for n, a in packed.items()}
  batch = {"views": views, "targets": {}}
  traced = create_train_step(config, model).trace(state, batch, recipe_numbers(config, 100))
  return traced.lower(lowering_platforms=("cuda",)), state


@functools.cache
def forward_program(precision):
  config = resolved(**REDUCED, precision=precision, model__form="gpu")
  model = create_model(config.model.to_dict(), DTYPES[precision])
  blank = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  variables = jax.eval_shape(
    lambda key, image: fold_batch_norm(model.init(key, image), inspect_model(model, SIZE).folds),
    jax.random.key(0),
    blank,
  )
  traced = jax.jit(functools.partial(lesion_probs, model)).trace(variables, photographs())
  return traced.lower(lowering_platforms=("cuda",))


def programs(precision):
  return {"train": train_program(precision)[0], "forward": forward_program(precision)}


@pytest.mark.parametrize("program", ["train", "forward"])
@pytest.mark.parametrize("precision", HALF)
def test_every_product_takes_half_precision_operands(precision, program):
  found = operations(programs(precision)[program])
  # Half precision could not distinguish the positions of a photograph's pixels.
  products = [o for o in found if o.name in PRODUCTS and not re.search(r"\baugment\b", o.scope)]
  assert {o.name for o in products} == set(PRODUCTS)
  assert len(products) > (60 if program == "train" else 30)
  for product in products:
    assert set(product.operands) == {HALF[precision]}, product


@pytest.mark.parametrize("precision", DTYPES)
def test_no_product_of_the_augmentation_may_be_rounded_to_tf32(precision):
  found = operations(train_program(precision)[0])
  products = [o for o in found if o.name in PRODUCTS and re.search(r"\baugment\b", o.scope)]
  assert len(products) > 3
  for product in products:
    assert "HIGHEST" in product.precision and "DEFAULT" not in product.precision, product


@pytest.mark.parametrize("program", ["train", "forward"])
@pytest.mark.parametrize("precision", DTYPES)
def test_nothing_is_float64_and_nothing_calls_the_host(precision, program):
  lowered = programs(precision)[program]
  types = {kind for o in operations(lowered) for kind in (*o.operands, *o.results)}
  assert "f32" in types and "f64" not in types
  text = lowered.as_text()
  assert not re.search("callback|infeed|outfeed|stablehlo.send|stablehlo.recv", text)


@pytest.mark.parametrize("precision", HALF)
def test_loss_norms_and_all_sums_are_float32(precision):
  """A sum over thousands of pixels would be wrong in half precision."""
  half = HALF[precision]
  found = operations(train_program(precision)[0])
  computing = [o for o in found if o.results and o.name != "stablehlo.convert"]
  for scope in (r"\bloss\b", r"\boptimizer\b"):
    inside = [o for o in computing if re.search(scope, o.scope)]
    assert inside and not any(half in (*o.operands, *o.results) for o in inside), scope
  sums = [o for o in found if o.name == "stablehlo.reduce" and o.shrinks]
  norms = [o for o in sums if re.search(r"norm\b", o.scope)]
  assert len(norms) > 40
  assert not [o for o in sums if half in o.operands]


@pytest.mark.parametrize("precision", DTYPES)
def test_the_state_is_donated(precision):
  """All its arrays, so that parameters and optimizer state are never in memory twice."""
  lowered, state = train_program(precision)
  arguments = lowered.args_info[0]
  given, kept = (
    [info.donated for info in jax.tree.leaves(part)] for part in (arguments[0], arguments[1:])
  )
  count = len(jax.tree.leaves(state))
  assert given == [True] * count and len(kept) > 2 and not any(kept)
  assert len(re.findall(r"tf.aliasing_output|jax.buffer_donor", lowered.as_text())) == count


def test_a_platforms_program_has_no_depthwise_convolution_of_the_library():
  """And the GPU's has the library's for the stem, which the CPU's has not."""
  config = resolved(**REDUCED)
  blank = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)

  def groups(form, platform):
    model = create_model({**config.model.to_dict(), "form": form}, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), blank)
    traced = jax.jit(functools.partial(lesion_probs, model)).trace(variables, photographs())
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return [int(count) for count in re.findall(r"feature_group_count = (\d+)", text)]

  assert sum(count > 1 for count in groups("library", "cuda")) > 10
  assert groups("gpu", "cuda") == [1]
  assert groups("platform", "cpu") == []
