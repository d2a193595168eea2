"""Networks made of trained ones: folded, compiled once a size, joined whatever computes them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from small_runs import REDUCED, compiled_as_by_launch, finished_run, network_of, resolved

from medlitenet_jax.inference import networks as networks_module
from medlitenet_jax.inference.networks import Network, create_network, create_predict, precision_of
from medlitenet_jax.inference.trained import Trained, open_trained
from medlitenet_jax.models import ops
from medlitenet_jax.models.forward import lesion_probs, look, normalize
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.models.structure import inspect_model


def photographs(count=2, size=96):
  return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_it_computes_what_the_trained_module_does():
  trained = open_trained(finished_run())
  network = create_network(trained, resolved())
  assert network.weight == 1 and network.image_size == 96 and network.precision == "float32"
  assert network.origin == trained.origin and network.seen == trained.seen
  model = create_model(trained.config.model.to_dict(), jnp.float32)
  with compiled_as_by_launch():
    expected = jax.jit(functools.partial(lesion_probs, model))(trained.variables, photographs())
    probs = network.probs(photographs())
  assert probs.shape == (2, 96, 96) and probs.dtype == jnp.float32
  np.testing.assert_allclose(probs, expected, atol=1e-5)


def test_it_is_compiled_once_for_a_size_whatever_runs_it(monkeypatch):
  """Six views, several batches and an ensemble's weight all use one executable."""
  monkeypatch.setattr(networks_module, "look", chex.assert_max_traces(look, 1))
  network = network_of(finished_run(), resolved())
  with compiled_as_by_launch():
    for tta in ("none", "six"):
      predict = create_predict([network], tta)
      for image in (photographs(), jax.device_put(photographs())):
        predict({96: image})


def test_the_boundary_is_that_of_the_last_of_the_finest_maps(randomise):
  fields = {"model__medlitenet__boundary_magnitude": True}
  config = resolved(**REDUCED, eval__image_size=64, **fields)
  model = create_model(config.model.to_dict(), jnp.float32)
  image = photographs(size=64)
  variables = randomise(inspect_model(model, 64).shapes)
  trained = Trained(config, variables, {}, {"train": [], "val": []})
  maps = create_predict([create_network(trained, config)], "six")({64: image})
  logits = jax.jit(model.apply)(variables, normalize(image))["boundaries"]
  sides = {place: found.shape[1] for place, found in logits.items()}
  assert sides == {"bias": 16, "encoder": 2, "decoder3": 16}
  finest = jax.nn.sigmoid(logits["decoder3"])
  np.testing.assert_allclose(maps.boundary, ops.enlarge(finest, 64, 64)[..., 0], atol=1e-4)
  assert (
    create_predict([Network(lambda x: np.zeros(x.shape[:3]), 64)])({64: image}).boundary is None
  )


def test_a_network_may_be_a_numpy_function():
  def half(image):
    return np.full(image.shape[:3], 0.5, np.float32)

  one = Network(half, 32, weight=0.25)
  other = Network(
    lambda image: jnp.ones(image.shape[:3], jnp.bfloat16), 16, "bfloat16", weight=0.75
  )
  images = {32: photographs(3, 32), 16: photographs(3, 16)}
  for tta in ("none", "six"):
    maps = create_predict([one, other], tta)(images)
    assert maps.probs.shape == (3, 32, 32)
    assert maps.probs.dtype == maps.disagreement.dtype == jnp.float32
    np.testing.assert_allclose(maps.probs, 0.875, atol=1e-6)
    np.testing.assert_allclose(maps.disagreement, np.sqrt(0.25 * 0.75) / 2, atol=1e-6)
  assert precision_of([one, other]) == "bfloat16, float32"
