"""Six-fold test-time augmentation keeps what is symmetric and makes symmetric what is not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from medlitenet_jax.inference.tta import VIEWS, six_views


@pytest.fixture
def image():
  return jnp.asarray(np.random.default_rng(0).random((2, 12, 12, 3)), jnp.float32)


def six_fold(predict, image):
  """The augmented prediction: the mean over the views."""
  return six_views(predict, image).mean(axis=0)


def convolving(kernel):
  """A network of one convolution and a sigmoid."""

  def predict(image):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return jax.nn.sigmoid(y[..., 0])

  return predict


def random_kernel():
  return jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 1)), jnp.float32)


def test_six_different_views_each_turned_back(image):
  seen = {np.asarray(view(image)).tobytes() for view, _ in VIEWS}
  assert len(seen) == len(VIEWS) == 6
  for view, back in VIEWS:
    np.testing.assert_array_equal(back(view(image)), image)


def test_an_equivariant_network_is_left_as_it_is(image):
  ring = jnp.asarray([[1.0, 2, 1], [2, -5, 2], [1, 2, 1]])[:, :, None, None]
  predict = convolving(ring * jnp.asarray([1.0, -0.5, 0.3])[None, None, :, None])
  np.testing.assert_allclose(six_fold(predict, image), predict(image), atol=1e-5)


def test_it_is_the_mean_of_the_views_turned_back_one_by_one(image):
  predict = convolving(random_kernel())
  one_by_one = [
    predict(image),
    predict(image[:, ::-1])[:, ::-1],
    predict(image[:, :, ::-1])[:, :, ::-1],
    *(np.rot90(predict(np.rot90(image, k, (1, 2))), -k, (1, 2)) for k in (1, 2, 3)),
  ]
  np.testing.assert_allclose(six_fold(predict, image), np.mean(one_by_one, 0), atol=1e-6)


class EveryVariant(chex.TestCase):
  """The same result inside a compiled function, outside one, and in NumPy."""

  @chex.variants(with_jit=True, without_jit=True)
  def test_it_can_be_compiled_into_a_larger_program(self):
    image = jnp.asarray(np.random.default_rng(0).random((2, 12, 12, 3)), jnp.float32)
    predict = convolving(random_kernel())
    maps = self.variant(lambda image: six_views(predict, image))(image)
    expected = [back(predict(view(image))) for view, back in VIEWS]
    chex.assert_shape(maps, (6, 2, 12, 12))
    np.testing.assert_allclose(maps, np.stack(expected), atol=1e-6)


def test_a_network_outside_jax_is_run_on_six_views(image):
  predict = convolving(random_kernel())
  maps = six_views(lambda view: np.asarray(predict(view)), np.asarray(image))
  np.testing.assert_allclose(maps, six_views(predict, image), atol=1e-6)


def test_the_network_is_traced_once(image):
  predict = jax.jit(chex.assert_max_traces(convolving(random_kernel()), 1))
  six_views(predict, image)
  six_views(predict, image + 1)


def test_other_shapes_are_refused():
  for shape in ((12, 12, 3), (1, 12, 8, 3), (1, 12, 12, 1)):
    with pytest.raises(AssertionError):
      six_views(convolving(random_kernel()), jnp.zeros(shape))
  with pytest.raises(AssertionError):
    six_views(lambda image: image, jnp.zeros((1, 12, 12, 3)))


def test_a_half_turn_commutes_with_it(image):
  # The half turn only permutes the views: flips and turns change places.
  predict = convolving(random_kernel())
  turned = six_fold(predict, jnp.rot90(image, 2, (1, 2)))
  np.testing.assert_allclose(turned, jnp.rot90(six_fold(predict, image), 2, (1, 2)), atol=1e-6)
  assert np.abs(six_fold(predict, image) - predict(image)).max() > 1e-3
