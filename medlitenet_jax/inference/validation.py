"""Scores by which training selects its best checkpoint."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax.data.cases import CLASS, Source
from medlitenet_jax.inference.stream import predict_cases
from medlitenet_jax.models.fold import fold_batch_norm
from medlitenet_jax.models.forward import look
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.scores import metrics
from medlitenet_jax.scores.case_scores import plain_scores
from medlitenet_jax.system import devices
from medlitenet_jax.training.loop import Validate
from medlitenet_jax.training.progress import BALANCED_ACCURACY

RIGHT = "right"
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
    by the names in `metrics.SCORES`; where the network tells classes apart and that of the case is
    known, also `CLASS`, and `RIGHT`, 1 if the network names it. It asks `stopped` after each case;
    once that is true, it leaves the remaining cases out and returns None. Several processes must
    call it together.
  """
  size = config.eval.image_size
  run = jax.jit(functools.partial(_probs_and_class, model))
  fold = jax.jit(functools.partial(fold_batch_norm, folds=inspect_model(model, size).folds))

  def score_cases(variables: Mapping[str, Any], stopped: Callable[[], bool]) -> Rows | None:
    folded = fold(variables)
    scored: list[tuple[int, dict[str, float]]] = []
    for case, (probs, named) in predict_cases(
      lambda images: run(folded, images[size]), source, [size], config
    ):
      if stopped():
        return None
      row = plain_scores(probs, case.mask)
      if named is not None and case.targets.get(CLASS, -1) >= 0:
        row |= {CLASS: float(case.targets[CLASS]), RIGHT: float(named == case.targets[CLASS])}
      scored.append((case.index, row))
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
    means = {name: float(np.mean([row[name] for row in rows])) for name in metrics.SCORES}
    by_class: dict[float, list[float]] = {}
    for row in rows:
      if CLASS in row:
        by_class.setdefault(row[CLASS], []).append(row[RIGHT])
    if by_class:
      means[BALANCED_ACCURACY] = float(np.mean([np.mean(right) for right in by_class.values()]))
    return means

  return validate


def _probs_and_class(model: nn.Module, variables: Any, image: jax.Array):
  """[B, S, S] probabilities of lesion, and the [B] class that is named, or None."""
  found = look(model, variables, image)
  return found["probs"], jnp.argmax(found[CLASS], axis=-1) if CLASS in found else None
