"""Scores of an evaluation: each case's figures, and what all of them come to."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import numpy as np

from medlitenet_jax.data.cases import Case
from medlitenet_jax.data.images.resize import resize_mask
from medlitenet_jax.scores import metrics
from medlitenet_jax.scores.confidence import entropy_bits, expected_dice
from medlitenet_jax.scores.difficulty import border_contrast, terciles
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.scores.statistics import Calibration, rank_correlation, summarise
from medlitenet_jax.scores.surface import SURFACE_SCORES, surface_scores

AT_NETWORK_SIZE = "network_"  # before the names of columns that are counted at that size
WORST_CASES = 10


class CaseScore(NamedTuple):
  """What an evaluation says of one case.

  Attributes:
    row: of `cases.csv`.
    stages: the six scores after each step of the mask's making, by its name.
    prediction: [H, W] uint8, 0 or 1, the mask at the photograph's own size.
    entropy: [S, S] float32, bits.
    disagreement: [S, S] float32, standard deviation over networks and views.
  """

  row: dict[str, Any]
  stages: dict[str, dict[str, float]]
  prediction: np.ndarray
  entropy: np.ndarray
  disagreement: np.ndarray


def plain_scores(probs: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  """The six scores of a case by the plain threshold, at the size of its truth.

  Args:
    probs: [S, S] float32.
    truth: [H, W] uint8, 0 or 1.

  Returns:
    A number for each name in `metrics.SCORES`.
  """
  return _scores(metrics.confusion_of_masks(MaskRule().mask(probs, *truth.shape), truth))


def _scores(counts: metrics.Confusion) -> dict[str, float]:
  return {name: float(score) for name, score in metrics.scores_from_counts(counts).items()}


def score_case(
  case: Case,
  probs: np.ndarray,
  disagreement: np.ndarray,
  rule: MaskRule,
  calibration: Calibration,
) -> CaseScore:
  """Scores one case at its photograph's own size, and again at the network's.

  Args:
    case: its photograph has the network's size S, its truth the photograph's own.
    probs: [S, S] float32, probability of lesion.
    disagreement: [S, S] float32, standard deviation over networks and views.
    rule: makes the mask.
    calibration: the case's pixels at the network's size are added to it.

  Returns:
    The scores, the mask and the maps of the case.
  """
  chex.assert_rank([probs, disagreement], 2)
  chex.assert_equal_shape([probs, disagreement])
  truth, size = case.mask, probs.shape
  stages = rule.stages(probs, *truth.shape)
  counts = {name: metrics.confusion_of_masks(mask, truth) for name, mask in stages.items()}
  prediction, final = list(stages.values())[-1], list(counts.values())[-1]
  small_truth, small = resize_mask(truth, *size), rule.mask(probs, *size)
  small_counts = metrics.confusion_of_masks(small, small_truth)
  calibration.add(probs, small_truth)
  entropy = entropy_bits(probs)
  row = {
    "case_id": case.case_id,
    **_scores(final),
    **surface_scores(prediction, truth),
    **{name: int(count) for name, count in final._asdict().items()},
    "height": truth.shape[0],
    "width": truth.shape[1],
    "lesion_fraction": np.count_nonzero(truth) / truth.size,
    "contrast": border_contrast(case.image, small_truth),
    # Sums of single precision: the digits behind these depend on how many devices shared a batch.
    "confidence": round(expected_dice(probs, small), 5),
    "mean_entropy": round(float(entropy.mean()), 5),
    "mean_disagreement": round(float(disagreement.mean()), 5),
    **{f"{AT_NETWORK_SIZE}{name}": int(n) for name, n in small_counts._asdict().items()},
  }
  effects = {name: _scores(c) for name, c in counts.items()}
  return CaseScore(row, effects, prediction, entropy, disagreement)


def summarise_scores(
  rows: Sequence[Mapping[str, Any]],
  stages: Sequence[Mapping[str, Mapping[str, float]]],
  calibration: Calibration,
  image_size: int,
  review_below: float,
) -> dict[str, Any]:
  """Puts the figures of all cases together.

  Args:
    rows: of `cases.csv`.
    stages: of each CaseScore.
    calibration: of all cases.
    image_size: pixels a side of the network's maps.
    review_below: cases whose confidence is lower are listed for a person.

  Returns:
    What `summary.json` holds beside the protocol.
  """
  own = summarise(rows, (*metrics.SCORES, *SURFACE_SCORES))
  return {
    **{name: own[name] for name in metrics.SCORES},
    "cases": len(rows),
    "boundary": {name: own[name] for name in SURFACE_SCORES},
    **_other_ways(rows, image_size),
    "terciles": {
      figure: [
        {
          "from": float(part[0][figure]),
          "to": float(part[-1][figure]),
          "cases": len(part),
          "scores": summarise(part, (*metrics.SCORES, *SURFACE_SCORES)),
          **_other_ways(part, image_size),
        }
        for part in terciles(rows, figure)
      ]
      for figure in ("lesion_fraction", "contrast")
    },
    "steps": [
      {"step": step, "scores": summarise([case[step] for case in stages], metrics.SCORES)}
      for step in stages[0]
    ],
    "confidence": _confidence(rows, review_below),
    "calibration": calibration.summary(),
    "worst": [row["case_id"] for row in sorted(rows, key=lambda r: r["dice"])[:WORST_CASES]],
  }


def _other_ways(rows: Sequence[Mapping[str, Any]], image_size: int) -> dict[str, Any]:
  """The same cases as other papers score them: pooled over pixels, and at the network's size."""
  small = [
    _scores(metrics.Confusion(*(row[AT_NETWORK_SIZE + n] for n in metrics.Confusion._fields)))
    for row in rows
  ]
  return {
    "pooled": metrics.pooled_scores(rows),
    "network_size": {
      "size": image_size,
      "per_image": summarise(small, metrics.SCORES),
      "pooled": metrics.pooled_scores(rows, AT_NETWORK_SIZE),
    },
  }


def _confidence(rows, review_below: float) -> dict[str, Any]:
  """Whether confidence foretells Dice, and the cases that a person should look at."""
  confidence, dice = ([row[name] for row in rows] for name in ("confidence", "dice"))
  ranked = sorted(rows, key=lambda row: row["confidence"])
  review = [row for row in ranked if row["confidence"] < review_below]
  rest = ranked[len(review) :]

  def mean_dice(cases):
    return float(np.mean([case["dice"] for case in cases])) if cases else None

  return {
    "spearman": rank_correlation(confidence, dice),
    "review_below": review_below,
    "review": [row["case_id"] for row in review],
    "review_mean_dice": mean_dice(review),
    "rest_mean_dice": mean_dice(rest),
  }
