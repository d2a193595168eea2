"""Minimum work of functions whose operations and bytes can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from medlitenet_jax.speed.cost import Cost, Machine, count_cost

X, W = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32)
IN, OUT = 4 * (8 * 16 + 16 * 4), 4 * 8 * 4


def test_a_product_moves_its_operands_and_its_result():
  cost = count_cost(jnp.dot, X, W)
  assert cost == Cost(flops=2 * 8 * 16 * 4, bytes=2 * (IN + OUT))  # function and product


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint], ids=["jit", "remat"])
def test_products_inside_other_functions_count(wrap):
  assert count_cost(lambda x, w: wrap(jnp.dot)(x, w), X, W) == count_cost(jnp.dot, X, W)


def test_operations_that_can_be_fused_move_no_bytes():
  cost = count_cost(lambda x, w: jnp.tanh(jnp.dot(jnp.tanh(x), w)), X, W)
  assert cost.bytes == count_cost(jnp.dot, X, W).bytes


def test_half_precision_moves_half_the_bytes():
  x, w = (jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in (X, W))
  assert 2 * count_cost(jnp.dot, x, w).bytes == count_cost(jnp.dot, X, W).bytes


def test_a_multiply_add_of_a_convolution_is_two_operations():
  x = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)
  w = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)

  def conv(x, w):
    return jax.lax.conv_general_dilated(
      x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  cost = count_cost(conv, x, w)
  assert cost.flops == 2 * (2 * 4 * 4) * 5 * (3 * 3 * 3)
  assert cost.bytes == 2 * 4 * (2 * 6 * 6 * 3 + 3 * 3 * 3 * 5 + 2 * 4 * 4 * 5)


def test_a_gradient_triples_the_cost():
  def loss(x, w):
    return jnp.sum(jnp.dot(x, w) ** 2)

  one = count_cost(jnp.dot, X, W).flops
  three = count_cost(jax.value_and_grad(loss, argnums=(0, 1)), X, W).flops
  assert 3 * one <= three < 3.5 * one


def test_the_floor_is_the_longer_of_computing_and_moving_data():
  machine = Machine(flops_per_second=100.0, bytes_per_second=10.0)
  assert machine.floor(Cost(flops=1000, bytes=1)) == 10
  assert machine.floor(Cost(flops=1, bytes=1000)) == 100
