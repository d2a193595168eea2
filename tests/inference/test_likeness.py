"""Likeness from a network's data to its predictions."""

import jax
import numpy as np
import pytest
from small_runs import create_stub, resolved

from medlitenet_jax.data.synthetic import draw_dermoscopy
from medlitenet_jax.inference import likeness as fitting
from medlitenet_jax.inference.likeness import fit_to_data
from medlitenet_jax.inference.networks import (
  Network,
  create_network,
  create_predict,
  lowest_likeness_bound,
)
from medlitenet_jax.inference.trained import Trained
from medlitenet_jax.models.forward import look

SIDE = 64


def config_of(num_train=180, num_val=20):
  return resolved(
    data__synthetic__num_train=num_train,
    data__synthetic__num_val=num_val,
    data__synthetic__image_size=SIDE,
    eval__image_size=SIDE,
    eval__batch_size=50,
  )


@pytest.fixture
def trained():
  """A network of a few parameters, as it was drawn."""
  variables = create_stub().init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
  return Trained(config_of(), variables, {"network_size": SIDE}, {"train": [], "val": []})


def drawn(seed, first, count):
  return np.stack([draw_dermoscopy(seed, first + index, SIDE)[0] for index in range(count)])


def test_it_is_fitted_to_the_data_and_goes_with_the_network(trained):
  config = config_of()
  fitted = fit_to_data(trained, config)
  seen = np.concatenate([drawn(config.seed, 0, 180), drawn(config.seed, 1_000_000, 20)])
  features = look(create_stub(), trained.variables, seen)["features"]
  np.testing.assert_allclose(fitted.mean, features.mean(0), rtol=1e-3, atol=1e-4)

  network = create_network(trained._replace(likeness=fitted), config)
  assert network.likeness_bound == pytest.approx(float(fitted.bound))
  fresh = drawn(config.seed + 1, 0, 40)
  noise = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
  others = np.concatenate([noise, *(np.full_like(noise, level) for level in (0, 128, 255))])
  every = np.concatenate([fresh, others])
  likeness = {
    tta: create_predict([network], tta)({SIDE: every}).likeness for tta in ("none", "six")
  }
  unlike = np.asarray(likeness["none"]) < network.likeness_bound
  assert unlike[40:].all() and unlike[:40].mean() < 0.1
  np.testing.assert_allclose(likeness["six"], likeness["none"], rtol=1e-5)  # of the view as it is
  plain = create_network(trained, config)
  assert plain.likeness_bound is None
  maps = create_predict([plain])({SIDE: every})
  assert maps.likeness is None
  np.testing.assert_allclose(maps.probs, network.details(every)["probs"], atol=1e-5)


def test_too_few_photographs_and_a_network_without_features_are_refused(trained, monkeypatch):
  with pytest.raises(fitting.InputError, match="has 199 photographs in train and val, not 200"):
    fit_to_data(trained, config_of(150, 49))
  monkeypatch.setattr(fitting, "look", lambda *_: {"probs": np.zeros((1, SIDE, SIDE))})
  with pytest.raises(fitting.InputError, match="stub returns no features"):
    fit_to_data(trained, config_of())


def test_the_lowest_bound_of_those_that_have_one_counts():
  bounds = (0.4, None, 0.3)
  members = [Network(len, 32, likeness_bound=bound) for bound in bounds]
  assert lowest_likeness_bound(members) == 0.3
  assert lowest_likeness_bound(members[1:2]) is None
