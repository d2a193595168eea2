"""Boundary map and gate against equations 6 to 9, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import shapes_of

from medlitenet_jax.models.medlitenet.boundary import (
  START,
  BoundaryGate,
  BoundaryMap,
  BoundaryScores,
  classical_edges,
  laplacian_init,
)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def interpolation(size, larger):
  """Weights [larger, size] of linear interpolation between pixel centres, clamped at the edges."""
  centres = np.clip((np.arange(larger) + 0.5) * size / larger - 0.5, 0, size - 1)
  return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))


def boundary_map(x, params, magnitude=False):
  """A 1x1 projection, then a 3x3 convolution padded with its border pixels; maybe standardised."""
  x = x @ params["project"]["kernel"][0, 0]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
  kernel = params["laplacian"]["kernel"][:, :, 0, 0]
  if magnitude:
    kernel = kernel - kernel.mean()
  _, h, w, _ = x.shape
  y = sum(kernel[u, v] * padded[:, u : u + h, v : v + w] for u, v in np.ndindex(3, 3))
  if not magnitude:
    return y
  y = np.abs(y)
  mean, variance = y.mean((1, 2), keepdims=True), y.var((1, 2), keepdims=True)
  return (y - mean) / np.sqrt(variance + 1e-5)


def test_the_laplacian_adds_up_to_zero():
  kernel = laplacian_init(None, (3, 3, 1, 4))
  assert kernel.shape == (3, 3, 1, 4)
  np.testing.assert_allclose(kernel.sum((0, 1)), 0, atol=1e-6)
  np.testing.assert_allclose(np.abs(kernel).sum((0, 1)), 2, atol=1e-6)
  np.testing.assert_allclose(kernel, np.transpose(kernel, (1, 0, 2, 3)))


@pytest.mark.parametrize("shape", [(5, 5, 1, 4), (3, 3, 4, 4)])
def test_the_laplacian_is_3x3_and_depthwise(shape):
  with pytest.raises(ValueError, match=r"\(3, 3, 1, C\)"):
    laplacian_init(None, shape)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("form", ["platform", "library"])
def test_a_constant_map_has_no_boundary_not_even_at_the_frame(form, magnitude):
  x = jnp.full((2, 5, 7, 3), 12.5)
  response, _ = BoundaryMap(magnitude, form=form).init_with_output(jax.random.key(0), x)
  assert response.shape == (2, 5, 7, 1)
  np.testing.assert_allclose(response, 0, atol=1e-5)


def test_a_magnitude_stays_an_edge_detector_of_one_strength_whatever_is_learned(randomise):
  x = np.zeros((1, 6, 8, 3), np.float32)
  x[:, :, 4:] = 1
  layer = BoundaryMap(magnitude=True)
  variables = randomise(shapes_of(layer, x))
  response = np.asarray(layer.apply(variables, x))
  assert np.all(response[0, :, 3:5] > 0)
  assert response[0, :, [0, 1, 2, 5, 6, 7]].max() < 0
  np.testing.assert_allclose(response.mean(), 0, atol=1e-5)
  np.testing.assert_allclose(response.std(), 1, atol=1e-2)
  for other in (100 * x, -x, x + 3):  # the same edge
    np.testing.assert_allclose(layer.apply(variables, other), response, atol=1e-2)


def test_a_new_map_responds_on_both_sides_of_an_edge_and_nowhere_else():
  x = np.zeros((1, 6, 8, 3), np.float32)
  x[:, :, 4:] = 1
  response, _ = BoundaryMap().init_with_output(jax.random.key(0), x)
  np.testing.assert_allclose(response[0, :, 3, 0], -3 / 8, atol=1e-6)
  np.testing.assert_allclose(response[0, :, 4, 0], 3 / 8, atol=1e-6)
  np.testing.assert_allclose(np.delete(response, [3, 4], axis=2), 0, atol=1e-6)


def test_a_magnitude_in_half_precision_is_nearly_that_in_float32(randomise):
  even = np.full((1, 16, 16, 8), 7.3, np.float32)
  y, x = np.mgrid[:16, :16] / 16
  smooth = np.stack([np.sin(3 * x + i) + y * i for i in range(8)], axis=-1)[None].astype(np.float32)
  variables = randomise(shapes_of(BoundaryMap(magnitude=True), even))
  wide, half = (BoundaryMap(magnitude=True, dtype=d) for d in (jnp.float32, jnp.bfloat16))
  np.testing.assert_allclose(half.apply(variables, even.astype(jnp.bfloat16)), 0, atol=1e-3)
  rounded = smooth.astype(jnp.bfloat16)
  maps = [m.apply(variables, rounded).ravel() for m in (wide, half)]
  assert np.corrcoef(*maps)[0, 1] > 0.9


@pytest.mark.parametrize("magnitude", [False, True])
def test_map_is_equation_6(randomise, magnitude):
  x = normal(2, 5, 4, 3)
  layer = BoundaryMap(magnitude)
  variables = randomise(shapes_of(layer, x))
  expected = boundary_map(x, variables["params"], magnitude)
  np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("grid", [None, (4, 6), (2, 3), (1, 1)])
def test_gate_is_equations_6_to_9(randomise, grid, magnitude):
  x = normal(2, 4, 6, 5)
  context = None if grid is None else normal(2, *grid, 7, seed=1)
  layer = BoundaryGate(magnitude)
  variables = randomise(shapes_of(layer, x, context))
  p = variables["params"]
  assert ("context" in p) == (context is not None)
  response = boundary = boundary_map(x, p["boundary"], magnitude)
  if context is not None:
    projected = context @ p["context"]["kernel"][0, 0] + p["context"]["bias"]
    rows, columns = interpolation(grid[0], 4), interpolation(grid[1], 6)
    boundary = boundary + np.einsum("ih,jw,bhwc->bijc", rows, columns, projected)
  stacked = np.concatenate([x, boundary], axis=-1)
  gate = 1 / (1 + np.exp(-(stacked @ p["gate"]["kernel"][0, 0] + p["gate"]["bias"])))
  assert gate.shape == (2, 4, 6, 1)
  gated, found = layer.apply(variables, x, context)
  np.testing.assert_allclose(gated, x * (1 + gate), rtol=1e-4)
  np.testing.assert_allclose(found, response, rtol=1e-3, atol=1e-4)


def test_a_new_gate_of_a_magnitude_opens_at_boundaries_alone():
  x = np.ones((1, 8, 8, 4), np.float32)
  x[:, :, 4:] = 3
  context = normal(1, 2, 2, 5)
  (gated, response), _ = BoundaryGate(magnitude=True).init_with_output(
    jax.random.key(0), x, context
  )
  expected = 1 + 1 / (1 + np.exp(-(np.asarray(response) + START)))
  np.testing.assert_allclose(gated / x, np.broadcast_to(expected, x.shape), rtol=1e-4)
  assert np.all((gated / x)[:, :, 3:5] > 1.3) and np.all((gated / x)[:, :, :3] < 1.15)


@pytest.mark.parametrize("form", ["platform", "library"])
def test_classical_edges_are_sobels_and_the_laplacian_of_a_gaussian(form):
  image = normal(2, 12, 16, 3)
  grey = image.mean(-1).reshape(2, 6, 2, 8, 2).mean((2, 4))

  def convolved(x, kernel):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return sum(kernel[u, v] * padded[:, u : u + 6, v : v + 8] for u, v in np.ndindex(3, 3))

  smooth, slope = np.array([1, 2, 1]) / 4, np.array([-1, 0, 1]) / 2
  across, down = (convolved(grey, np.outer(*pair)) for pair in ((smooth, slope), (slope, smooth)))
  laplacian = np.full((3, 3), -1 / 8)
  laplacian[1, 1] = 1
  blurred = convolved(grey, np.outer(smooth, smooth))
  expected = np.stack([np.sqrt(across**2 + down**2), np.abs(convolved(blurred, laplacian))], -1)
  expected = expected - expected.mean((1, 2), keepdims=True)
  expected /= np.sqrt((expected**2).mean((1, 2), keepdims=True) + 1e-5)
  np.testing.assert_allclose(classical_edges(image, form), expected, rtol=1e-3, atol=1e-4)


def test_edges_join_the_features_in_equation_8(randomise):
  x, edges = normal(2, 4, 6, 5), normal(2, 8, 12, 2, seed=1)
  layer = BoundaryGate(magnitude=True)
  variables = randomise(shapes_of(layer, x, None, edges))
  p = variables["params"]
  pooled = edges.reshape(2, 4, 2, 6, 2, 2).mean((2, 4))
  stacked = np.concatenate([x, pooled, boundary_map(x, p["boundary"], magnitude=True)], axis=-1)
  gate = 1 / (1 + np.exp(-(stacked @ p["gate"]["kernel"][0, 0] + p["gate"]["bias"])))
  np.testing.assert_allclose(layer.apply(variables, x, None, edges)[0], x * (1 + gate), rtol=1e-4)


def test_scores_of_a_boundary_are_a_line():
  first, second = normal(2, 3, 4, 1), normal(2, 6, 8, 1)
  params = {"scale": np.float32([2, 5]), "bias": np.float32([-3, 1])}
  found = BoundaryScores().apply({"params": params}, {"a": first, "b": second})
  np.testing.assert_allclose(found["a"], 2 * first - 3, rtol=1e-6)
  np.testing.assert_allclose(found["b"], 5 * second + 1, rtol=1e-6)


def test_the_gate_only_amplifies_and_at_most_doubles(randomise):
  x = 3 * normal(2, 6, 6, 4)
  layer = BoundaryGate()
  variables = randomise(shapes_of(layer, x), seed=3)
  factor = np.asarray(layer.apply(variables, x)[0]) / x
  assert factor.min() > 1 and factor.max() < 2
  np.testing.assert_allclose(
    factor, factor[..., :1] * np.ones(4), rtol=1e-4
  )  # one for all channels
