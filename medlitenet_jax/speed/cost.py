"""Lower bound on the time of a computation: a roofline from its operations and its bytes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.extend import core


class Cost(NamedTuple):
  """Minimum work of a function.

  Attributes:
    flops: floating-point operations as XLA counts them; a multiply-add is two.
    bytes: bytes moved even if everything else is fused: arguments and results of the function, and
      operands and results of its convolutions and matrix products.
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
    The cost of one call.
  """
  traced = jax.jit(function).trace(*args)
  flops = (traced.lower().cost_analysis() or {}).get("flops", 0.0)
  jaxpr = traced.jaxpr
  return Cost(flops, sum(map(_size, (*jaxpr.in_avals, *jaxpr.out_avals))) + _moved(jaxpr.jaxpr))


def _moved(jaxpr: core.Jaxpr) -> float:
  """Bytes of the operands and results of convolutions and matrix products, at any depth."""
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("conv_general_dilated", "dot_general"):
      total += sum(_size(each.aval) for each in (*equation.invars, *equation.outvars))
    total += sum(map(_moved, core.jaxprs_in_params(equation.params)))
  return total


def _size(aval) -> float:
  return math.prod(aval.shape) * aval.dtype.itemsize
