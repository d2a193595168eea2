"""Lower bound on the time of a computation: a roofline from its operations and its bytes.

Both are those of convolutions and matrix products, *products* here; whatever stands between them
can be fused and is taken to be free. So operations are what papers and other tools count.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval


class Cost(NamedTuple):
  """Minimum work of a function.

  Attributes:
    flops: floating-point operations of products, two for each multiply-add. A tap that lies on the
      zeros around a map counts.
    bytes: bytes moved even if everything else is fused: arguments and results of the function, and
      operands and results of its products.
  """

  flops: float
  bytes: float


class Machine(NamedTuple):
  """Rates of a machine.

  Attributes:
    flops_per_second: rate of matrix products.
    bytes_per_second: rate between memory and processor.
  """

  flops_per_second: float
  bytes_per_second: float

  def floor(self, cost: Cost) -> float:
    """Minimum seconds for a cost: the longer of computing and moving data, which may overlap.

    Reference: Williams et al., Roofline, 2009.
    """
    return max(cost.flops / self.flops_per_second, cost.bytes / self.bytes_per_second)


def count_cost(function: Callable, *args) -> Cost:
  """Counts the minimum work of a function without running it.

  Args:
    function: function of arrays, without loops. It is counted as written, so pass a network in
      plain convolutions (form "library"), whatever form will run.
    *args: arrays or their shapes.

  Returns:
    The cost of one call, without the products whose results nothing needs.
  """
  traced = jax.make_jaxpr(function)(*args)
  jaxpr, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals))
  flops, moved = 0.0, sum(map(_size, (*traced.in_avals, *traced.out_avals)))
  for product in _products(jaxpr):
    flops += 2 * _multiply_adds(product)
    moved += sum(_size(each.aval) for each in (*product.invars, *product.outvars))
  return Cost(flops, moved)


def _products(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """Convolutions and matrix products at any depth, but for those that resize maps.

  JAX resizes by products with matrices that are nearly all zeros, in place of which a few
  multiply-adds a pixel do (`ops.upsample2x`).
  """
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("conv_general_dilated", "dot_general"):
      yield equation
    elif equation.params.get("name") != "_resize":
      for inner in core.jaxprs_in_params(equation.params):
        yield from _products(inner)


def _multiply_adds(product: core.JaxprEqn) -> float:
  avals: list[Any] = [each.aval for each in (*product.invars, *product.outvars)]
  left, right, result = (aval.shape for aval in avals)
  if product.primitive.name == "dot_general":
    (contracted, _), _ = product.params["dimension_numbers"]
    each = math.prod(left[axis] for axis in contracted)
  else:
    outputs = right[product.params["dimension_numbers"].rhs_spec[0]]
    # In the gradient of a stride, most taps lie on the zeros between the values.
    each = math.prod(right) / outputs / math.prod(product.params["lhs_dilation"])
  return math.prod(result) * each


def _size(aval) -> float:
  return math.prod(aval.shape) * aval.dtype.itemsize
