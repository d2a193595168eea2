"""Scores by which training selects its best checkpoint."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax.data.cases import Source
from medlitenet_jax.inference.networks import Network, create_predict
from medlitenet_jax.inference.stream import predict_cases
from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.forward import lesion_probs
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.scores import metrics
from medlitenet_jax.scores.case_scores import plain_scores
from medlitenet_jax.system import devices
from medlitenet_jax.training.loop import Validate

Rows = list[dict[str, float]]
ScoreCases = Callable[[Mapping[str, Any], Callable[[], bool]], Rows | None]


def create_scoring(config: ConfigDict, model: nn.Module, source: Source) -> ScoreCases:
  """Compiles the scoring of the validation cases of a run.

  It is a plain evaluation: no test-time augmentation, no clean-up of masks, threshold one half.

  Args:
    config: resolved; `eval`, `data` and `preprocess` are used.
    model: maps normalised [B, S, S, 3] images to {"mask": [B, S, S, 1] logits, ...}.
    source: the validation cases.

  Returns:
    A function (variables, stopped). It returns the scores of each case, in the order of the source,
    by the names in `metrics.SCORES`. It asks `stopped` after each case; once that is true, it
    leaves the remaining cases out and returns None. Several processes must call it together.
  """
  size = config.eval.image_size
  run = jax.jit(functools.partial(lesion_probs, model))
  fold = jax.jit(functools.partial(fold_batch_norm, folds=inspect_model(model, size).folds))

  def score_cases(variables: Mapping[str, Any], stopped: Callable[[], bool]) -> Rows | None:
    predict = create_predict([Network(functools.partial(run, fold(variables)), size)])
    scored: list[tuple[int, dict[str, float]]] = []
    for case, maps in predict_cases(predict, source, [size], config):
      if stopped():
        return None
      scored.append((case.index, plain_scores(maps.probs, case.mask)))
    return devices.gather_cases(scored)

  return score_cases


def create_validate(score_cases: ScoreCases) -> Validate:
  """The validation of a run: the mean of each score over its cases, see `loop.Validate`."""

  def validate(
    variables: Mapping[str, Any], stopped: Callable[[], bool]
  ) -> dict[str, float] | None:
    rows = score_cases(variables, stopped)
    if rows is None:
      return None
    return {name: float(np.mean([row[name] for row in rows])) for name in metrics.SCORES}

  return validate
