"""Minimum work of functions whose operations and bytes can be counted by hand."""

import functools

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


def strided(x, w, groups=1):
  """3x3 convolution with stride 2 and a pixel of zeros around the map."""
  return jax.lax.conv_general_dilated(
    *(x, w, (2, 2), ((1, 1), (1, 1))),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


@pytest.mark.parametrize("groups", [1, 3])
def test_taps_on_the_zeros_around_a_map_count(groups):
  x = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)
  w = jax.ShapeDtypeStruct((3, 3, 3 // groups, 6), jnp.float32)
  cost = count_cost(functools.partial(strided, groups=groups), x, w)
  assert cost.flops == 2 * (2 * 3 * 3) * 6 * (3 * 3 * 3 // groups)


@pytest.mark.parametrize("groups", [0, 1, 3])
def test_a_gradient_triples_the_cost(groups):
  function, x, w = jnp.dot, X, W
  if groups:
    function = functools.partial(strided, groups=groups)
    x = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 3 // groups, 6), jnp.float32)
  step = jax.value_and_grad(lambda x, w: jnp.sum(function(x, w) ** 2), argnums=(0, 1))
  assert count_cost(step, x, w).flops == 3 * count_cost(function, x, w).flops


def test_products_that_resize_or_that_nothing_needs_are_not_counted():
  x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)

  def loss(x):
    return jnp.sum(jax.image.resize(x, (1, 8, 8, 3), "bilinear") ** 2)

  around = 4 * (2 * 48 + 1)  # the function's own argument and results
  assert count_cost(jax.value_and_grad(loss), x) == Cost(0, around)
  assert count_cost(lambda x, w: (jnp.dot(x, w), x + 1)[1], X, W).flops == 0


def test_the_floor_is_the_longer_of_computing_and_moving_data():
  machine = Machine(flops_per_second=100.0, bytes_per_second=10.0)
  assert machine.floor(Cost(flops=1000, bytes=1)) == 10
  assert machine.floor(Cost(flops=1, bytes=1000)) == 100
