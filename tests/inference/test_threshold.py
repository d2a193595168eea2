"""The threshold chosen on validation: the one of the highest mean Dice, kept with its run."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from small_runs import resolved, write_case, write_splits

from medlitenet_jax.inference.ensemble import Maps
from medlitenet_jax.inference.networks import Network
from medlitenet_jax.inference.threshold import (
  THRESHOLD_FILE,
  choose_threshold,
  dice_by_rule,
  dice_by_threshold,
  read_threshold,
)
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.system.errors import InputError

ORIGIN = {"step": 7, "validation": {"dice": 0.8}}
NETWORK = Network(None, 64, origin=ORIGIN)


def test_dice_at_every_threshold():
  rng = np.random.default_rng(0)
  probs = cv2.GaussianBlur(rng.random((40, 40), np.float32), (0, 0), 2)
  probs = (probs - probs.min()) / np.ptp(probs)
  truth = (rng.random((40, 40)) < probs).astype(np.uint8)
  dice = dice_by_threshold(probs, truth)
  for k in range(100):
    mask = probs >= np.float32(k / 100)
    expected = 2 * (mask & (truth == 1)).sum() / (mask.sum() + truth.sum())
    assert dice[k] == pytest.approx(expected, abs=2e-3)


def test_dice_at_the_size_of_the_truth():
  probs = np.zeros((8, 8), np.float32)
  probs[:, 4:] = 1
  truth = np.zeros((80, 40), np.uint8)
  truth[:, 20:] = 1
  assert dice_by_threshold(probs, truth)[50] == 1
  assert dice_by_threshold(np.zeros((8, 8), np.float32), 0 * truth)[1:].min() == 1


@pytest.fixture
def config(tmp_path):
  for number in range(4):
    write_case(tmp_path / "data", f"case{number}", number, (64, 64))
  write_splits(tmp_path / "data", {f"case{i}": "val" for i in range(4)})
  return resolved(data__source="folder", data__root=str(tmp_path / "data"), eval__threshold=0.0)


def darkness(images):
  """Dark pixels have a probability of 0.3, others of 0.1."""
  probs = np.where(images[64].mean(axis=-1) < 140, 0.3, 0.1).astype(np.float32)
  return Maps(probs, np.zeros_like(probs))


def test_the_best_threshold_is_chosen_and_kept(config, tmp_path):
  workdir = tmp_path / "new"
  chosen = choose_threshold(darkness, [NETWORK], config, workdir)
  assert 0.1 < chosen <= 0.3
  record = json.loads((workdir / THRESHOLD_FILE).read_text())
  assert record["threshold"] == chosen
  assert record["dice"] > 0.97 and record["dice_at_one_half"] < 0.1
  assert read_threshold([NETWORK], config, workdir) == chosen
  with config.unlocked():
    config.eval.hysteresis_low = 0.3
  with pytest.raises(InputError, match="another network, test-time augmentation, hysteresis"):
    read_threshold([NETWORK], config, workdir)
  assert choose_threshold(darkness, [NETWORK], config, workdir) > 0.3
  assert read_threshold([NETWORK], config, workdir) > 0.3
  with config.unlocked():
    config.eval.hysteresis_low = 0.99
  with pytest.raises(InputError, match="leaves no threshold above it"):
    choose_threshold(darkness, [NETWORK], config, workdir)


def test_thresholds_are_tried_on_masks_as_they_are_scored():
  """Specks of a high probability, which a clean-up drops, and a lesion of a lower one."""
  probs, truth = np.zeros((64, 64), np.float32), np.zeros((64, 64), np.uint8)
  truth[20:50, 20:50] = 1
  probs[20:50, 20:50] = 0.6
  probs[2:60:6, 4] = 0.9
  plain = dice_by_threshold(probs, truth)
  cleaned = dice_by_rule(probs, truth, 0.0, ("keep_largest",))
  assert cleaned[55] == 1 > plain[55]
  for low in (0.0, 0.3):
    found = dice_by_rule(probs, truth, low, ("keep_largest",))
    for k in range(5, 100, 5):
      mask = MaskRule(k / 100, low if k / 100 > low else 0.0, ("keep_largest",)).mask(probs, 64, 64)
      expected = 2 * np.sum(mask & truth) / (mask.sum() + truth.sum())
      assert found[k] == pytest.approx(expected if k / 100 > low else 0)
  plainly = dice_by_rule(probs, truth, 0.0, ())
  np.testing.assert_allclose(plainly[5::5], plain[5::5], atol=1e-6)


@pytest.mark.parametrize("split", ["val", "all"])
def test_never_on_the_split_that_is_scored(config, tmp_path, split):
  with config.unlocked():
    config.eval.split = split
  with pytest.raises(InputError, match="among what is scored"):
    choose_threshold(darkness, [NETWORK], config, tmp_path)


def test_a_threshold_of_another_network_is_refused(config, tmp_path):
  with pytest.raises(InputError, match="holds no threshold"):
    read_threshold([NETWORK], config, tmp_path)
  choose_threshold(darkness, [NETWORK], config, tmp_path)
  for changed in ({"step": 8}, {"validation": {"dice": 0.81}}):
    other = dataclasses.replace(NETWORK, origin={**ORIGIN, **changed})
    with pytest.raises(InputError, match="another network"):
      read_threshold([other], config, tmp_path)
  with config.unlocked():
    config.eval.tta = "six"
  with pytest.raises(InputError, match="another network"):
    read_threshold([NETWORK], config, tmp_path)
