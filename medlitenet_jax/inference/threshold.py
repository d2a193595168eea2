"""The threshold of the highest Dice on validation cases, chosen by an evaluation."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.cases import split_hash
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.data.splits import ALL
from medlitenet_jax.inference.networks import Network, Predict
from medlitenet_jax.inference.stream import predict_cases
from medlitenet_jax.scores.masks import PLAIN_THRESHOLD, MaskRule
from medlitenet_jax.scores.metrics import Confusion, confusion_of_masks, scores_from_counts
from medlitenet_jax.system import devices
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_json, replace_file

THRESHOLD_FILE = "threshold.json"
STEPS = 100  # thresholds are multiples of 1 / STEPS
RULE_STEP = 5  # or of this many, where masks are cleaned up or made with hysteresis
_PLAIN_MASKS = {"hysteresis_low": 0.0, "postprocess": []}  # what older records do not say


def dice_by_threshold(probs: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Dice of one case at every threshold.

  Args:
    probs: [S, S] float32.
    truth: [H, W] uint8, 0 or 1; the probabilities are resized to it.

  Returns:
    [STEPS] float64; entry k is the Dice of the pixels at or above k / STEPS.
  """
  height, width = truth.shape
  resized = cv2.resize(probs, (width, height), interpolation=cv2.INTER_LINEAR)
  place = np.minimum((resized * STEPS).astype(np.int32), STEPS - 1).ravel()
  lesion = truth.ravel() == 1
  # Pixels at or above each threshold: sums of the histogram from its end.
  tp = np.bincount(place[lesion], minlength=STEPS)[::-1].cumsum()[::-1]
  found = np.bincount(place, minlength=STEPS)[::-1].cumsum()[::-1]
  fp, fn = found - tp, np.count_nonzero(lesion) - tp
  return scores_from_counts(Confusion(tp, fp, fn, truth.size - tp - fp - fn))["dice"]


def dice_by_rule(probs: np.ndarray, truth: np.ndarray, low: float, steps: tuple) -> np.ndarray:
  """`dice_by_threshold` of masks that are made with hysteresis or cleaned up.

  Args:
    probs: [S, S] float32.
    truth: [H, W] uint8, 0 or 1.
    low: lower threshold of the hysteresis, or 0.
    steps: of the clean-up, see `MaskRule`.

  Returns:
    [STEPS] float64; 0 for the thresholds that are not above `low`, and for all but every
    `RULE_STEP`-th, since each of them takes a mask of its own.
  """
  dice = np.zeros(STEPS)
  for k in range(RULE_STEP, STEPS, RULE_STEP):
    if k / STEPS > low:
      mask = MaskRule(k / STEPS, low, steps).mask(probs, *truth.shape)
      dice[k] = scores_from_counts(confusion_of_masks(mask, truth))["dice"]
  return dice


def choose_threshold(
  predict: Predict, networks: Sequence[Network], config: ConfigDict, workdir: Path
) -> float:
  """Finds the threshold of the highest mean Dice on the validation split.

  The masks are made as those that are scored, with the hysteresis and clean-up that are on.

  Args:
    predict: runs the networks, as `create_predict` makes it.
    networks: the same.
    config: resolved.
    workdir: folder of the run or ensemble; `threshold.json` is written there, for predictions.

  Returns:
    A multiple of 1 / STEPS in (0, 1); of equally good ones the nearest to one half.

  Raises:
    InputError: if the validation split is among what is scored, or no threshold lies above
      `eval.hysteresis_low`.
  """
  if config.eval.split in ("val", ALL):
    raise InputError(
      "config.eval.threshold=0 chooses the threshold on val, which is among what is scored; "
      "give a number, or score another split"
    )
  low, steps = config.eval.hysteresis_low, config.eval.postprocess
  if low >= (STEPS - RULE_STEP) / STEPS:
    raise InputError(
      f"config.eval.hysteresis_low is {low!r}, which leaves no threshold above it to be chosen"
    )
  rule = functools.partial(dice_by_rule, low=low, steps=steps)
  curve_of = rule if low or steps else dice_by_threshold
  source = create_source(config.data, "val", config.seed)
  sizes = [network.image_size for network in networks]
  cases = predict_cases(predict, source, sizes, config)
  bar = tqdm(
    cases,
    total=len(source),
    unit="case",
    desc="threshold",
    dynamic_ncols=True,
    disable=not devices.is_main_process(),
  )
  curves = ((case.index, curve_of(maps.probs, case.mask).tolist()) for case, maps in bar)
  dice = np.mean(devices.gather_cases(curves), axis=0)
  best = np.flatnonzero(dice[1:] == dice[1:].max()) + 1
  chosen = float(min(best, key=lambda k: abs(k / STEPS - PLAIN_THRESHOLD)) / STEPS)
  record = {
    "threshold": chosen,
    "dice": float(dice[1:].max()),
    "dice_at_one_half": float(dice[round(PLAIN_THRESHOLD * STEPS)]),
    "val_hash": split_hash(source.case_ids),
    "made_by": _identity(networks, config),
  }
  text = json.dumps(record, indent=2) + "\n"

  def keep() -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(workdir / THRESHOLD_FILE, text)

  devices.on_main_process(keep)
  return chosen


def read_threshold(networks: Sequence[Network], config: ConfigDict, workdir: Path) -> float:
  """Reads the threshold that an evaluation has chosen for these networks.

  Args:
    networks: that the threshold is for.
    config: resolved.
    workdir: folder of the run or ensemble.

  Returns:
    The threshold.

  Raises:
    InputError: if none was chosen, or if it was chosen for other networks, another test-time
      augmentation, or masks that are made in another way.
  """
  path = workdir / THRESHOLD_FILE
  try:
    record = read_json(path)
    threshold, made_by = float(record["threshold"]), {**_PLAIN_MASKS, **record["made_by"]}
    if not 0 < threshold < 1:
      raise ValueError("not between 0 and 1")
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{path}: holds no threshold, which config.eval.threshold=0 asks for; evaluate with that "
      "setting first, or give a number"
    ) from error
  if made_by != _identity(networks, config):
    raise InputError(
      f"{path}: was chosen for another network, test-time augmentation, hysteresis or clean-up; "
      "evaluate with config.eval.threshold=0 again, or give a number"
    )
  return threshold


def _identity(networks: Sequence[Network], config: ConfigDict) -> dict[str, Any]:
  # Not their paths: a network may be moved, and its validation scores tell it from others.
  return {
    "networks": [
      {
        "step": network.origin["step"],
        "image_size": network.image_size,
        "validation": dict(network.origin["validation"]),
      }
      for network in networks
    ],
    "tta": config.eval.tta,
    "hysteresis_low": config.eval.hysteresis_low,
    "postprocess": list(config.eval.postprocess),
  }
