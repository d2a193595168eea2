"""How much a photograph looks like those that a network has learned from."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

FOLDS = 5  # parts that are kept out of the fit in turn
PRIOR = 5  # photographs that the identity counts for in the correlation of the features
RARE = 0.004  # share of the photographs kept out whose likeness lies under the bound
FEWEST = 200  # photographs of a fit; fewer say nothing about one in some hundred


class Likeness(NamedTuple):
  """What photographs usually look like to a network: a normal distribution of its features.

  Attributes:
    mean: [D] float32.
    whitening: [D, D] float32; of features less their mean it makes independent ones of variance 1.
    usual: scalar float32, median distance of photographs that were kept out of the fit.
    bound: scalar float32, the likeness that only `RARE` of those photographs stay under.
  """

  mean: np.ndarray
  whitening: np.ndarray
  usual: np.ndarray
  bound: np.ndarray


def fit_likeness(features: np.ndarray, seed: int = 0) -> Likeness:
  """Fits the distribution of photographs that a network has learned from.

  The distance of a photograph is that of Mahalanobis with a shrunk covariance, over the root of the
  number of features. What is usual is measured on parts of the photographs that are kept out of the
  fit in turn; the distribution is then fitted to all.

  Args:
    features: [N, D], of at least `FEWEST` photographs.
    seed: of the parts.

  Returns:
    The distribution.

  Raises:
    ValueError: if there are fewer photographs, or a feature is not finite.
  """
  chex.assert_rank(features, 2)
  features = np.asarray(features, np.float64)
  if len(features) < FEWEST or not np.isfinite(features).all():
    raise ValueError(f"a fit needs finite features of {FEWEST} photographs, not {len(features)}")
  parts = np.array_split(np.random.default_rng(seed).permutation(len(features)), FOLDS)
  distances = []
  for part in parts:
    mean, whitening = _normal(np.delete(features, part, axis=0))
    distances.append(_distance(features[part], mean, whitening))
  kept_out = np.concatenate(distances)
  usual = np.median(kept_out)
  bound = usual / np.quantile(kept_out, 1 - RARE)
  mean, whitening = _normal(features)
  return Likeness(*(np.asarray(v, np.float32) for v in (mean, whitening, usual, bound)))


def likeness_of(features, fitted: Likeness):
  """Scores how much photographs look like those of a fit.

  Args:
    features: [B, D] of the same network.
    fitted: the distribution.

  Returns:
    [B] float32 in [0, 1]: the usual distance over that of the photograph, at most 1. Half of the
    photographs like those of the fit have 1.

  Raises:
    AssertionError: if the number of features is another.
  """
  chex.assert_shape(features, (None, len(fitted.mean)))
  distance = _distance(features, fitted.mean, fitted.whitening, jnp)
  return jnp.minimum(1.0, fitted.usual / jnp.maximum(distance, 1e-6)).astype(jnp.float32)


def _normal(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The mean, and the whitening of a covariance whose correlations are shrunk."""
  mean, spread = features.mean(0), features.std(0) + 1e-6
  scaled = (features - mean) / spread
  correlation = (scaled.T @ scaled + PRIOR * np.eye(len(mean))) / (len(features) + PRIOR)
  return mean, np.linalg.inv(np.linalg.cholesky(correlation)) / spread


def _distance(features, mean, whitening, numpy=np):
  white = (features - mean) @ whitening.T
  return numpy.sqrt(numpy.mean(white**2, axis=-1))
