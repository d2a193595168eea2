"""Fits what the photographs look like that a network has learned from."""

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.cases import Source
from medlitenet_jax.data.sources import SomeCases, create_source
from medlitenet_jax.inference.stream import predict_cases
from medlitenet_jax.inference.trained import Trained
from medlitenet_jax.models.forward import look
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.scores.likeness import FEWEST, Likeness, fit_likeness
from medlitenet_jax.system.errors import InputError

MOST = 5000  # photographs of a fit; more change nothing that counts
SPLITS = ("train", "val")


def _drawn(sources: list[Source], seed: int) -> SomeCases:
  """At most `MOST` cases of several sources, drawn at random."""
  places = [(source, index) for source in sources for index in range(len(source))]
  drawn = np.random.default_rng(seed).permutation(len(places))[:MOST]
  return SomeCases([places[number] for number in sorted(drawn)])


def fit_to_data(trained: Trained, config: ConfigDict) -> Likeness:
  """Fits the likeness of a network to the "train" and "val" cases of its data.

  Args:
    trained: the network.
    config: resolved; what the network is evaluated with, and the data.

  Returns:
    The fit, to at most `MOST` cases drawn at random.

  Raises:
    InputError: if the network does not say what it sees in a photograph, the data cannot be opened,
      or there are too few cases.
  """
  model = create_model(config.model.to_dict(), DTYPES[config.precision])
  size = config.eval.image_size
  photograph = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
  # The features alone, so that what follows the encoder is not computed.
  seen_in = jax.jit(lambda image: look(model, trained.variables, image).get("features"))
  if jax.eval_shape(seen_in, photograph) is None:
    raise InputError(f"{config.model.name} returns no features")
  source = _drawn([create_source(config.data, s, config.seed) for s in SPLITS], config.seed)
  if len(source) < FEWEST:
    raise InputError(f"its data has {len(source)} photographs in train and val, not {FEWEST}")
  seen = predict_cases(lambda images: seen_in(images[size]), source, [size], config)
  bar = tqdm(seen, total=len(source), unit="photograph", desc="likeness", dynamic_ncols=True)
  return fit_likeness(np.stack([features for _, features in bar]), config.seed)
