"""Released weights: small, of nobody's machine, named after their variant, good for a stranger."""

import importlib
import json
import re

import cv2
import jax
import numpy as np
import pytest
from safetensors import safe_open
from small_runs import ROOT, launch, resolved

from medlitenet_jax import load
from medlitenet_jax.config import differences, resolve
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.formats.safetensors import RELEASED, find_weights, read_weights
from medlitenet_jax.modes.prepare import prepare
from medlitenet_jax.scores.metrics import SCORES

CARD = (RELEASED / "README.md").read_text()
NAMES = sorted(path.stem for path in RELEASED.glob("*.safetensors"))
SEEN = dict.fromkeys(NAMES, (1894, 100)) | {"base": (5094, 303)}  # training, validation


def test_base_is_there_and_all_are_small_and_on_the_card():
  assert "base" in NAMES
  assert sum(find_weights(name).stat().st_size for name in NAMES) < 30e6
  for name in NAMES:
    assert f"`{name}`" in CARD and read_weights(find_weights(name)).sha256 in CARD


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name):
  path = find_weights(name)
  weights = read_weights(path)
  assert weights.config.model.variant == weights.origin["variant"] == name
  assert set(SCORES) <= set(weights.origin["validation"])
  assert (len(weights.seen["train"]), len(weights.seen["val"])) == SEEN[name]
  assert not set(weights.seen["train"]) & set(weights.seen["val"])
  with safe_open(path, framework="numpy") as file:
    texts = [value for key, value in file.metadata().items() if key != "seen"]
  assert not any(re.search(r'"\.{0,2}/', text) for text in texts), "a path of somebody's machine"


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_how_large_it_is_how_good_and_by_which_recipe(name):
  weights = read_weights(find_weights(name))
  row = next(line for line in CARD.splitlines() if line.startswith(f"| `{name}` |"))
  parameters = sum(array.size for array in jax.tree.leaves(weights.variables["params"]))
  assert f"| {parameters:,} |" in row and f"| {weights.config.train.epochs} |" in row
  assert f"| {weights.origin['validation']['dice']:.4f} |" in row
  recipe = re.search(r"configs/(\w+)\.py", row)[1]
  named = importlib.import_module(f"configs.{recipe}").get_config()
  named.model.variant = name
  changed = differences(resolve(named, "cpu"), weights.config)
  # A field that is newer than the file is None there.
  changed = {field for field, (_, saved) in changed.items() if saved is not None}
  assert changed <= {
    *("train.epochs", "train.start_from", "loss.bce.boundary_weight"),
    "loss.bce.boundary_width",  # which was in pixels
  }, changed


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_generated_lesions_that_it_never_saw(name):
  source = create_source(
    resolved(data__synthetic__num_test=8, data__synthetic__image_size=160).data, "test", seed=0
  )
  segment = load(name)
  dice = []
  for case in source:
    mask = segment(case.image) >= 0.5
    dice.append((2 * np.sum(mask & (case.mask == 1)) + 1) / (mask.sum() + case.mask.sum() + 1))
  assert np.median(dice) > 0.8, dice


def test_photographs_are_outlined_without_any_further_argument(tmp_path):
  photographs, output = tmp_path / "photographs", tmp_path / "outlined"
  prepare(resolved(data__root=str(photographs), data__synthetic__image_size=96))
  done = launch("--mode=predict", f"--input={photographs / 'images'}", f"--output={output}")
  assert done.returncode == 0, done.stderr
  names = {path.stem for path in (photographs / "images").iterdir()}
  masks = sorted((output / "masks").iterdir())
  assert {path.stem.removesuffix("_segmentation") for path in masks} == names
  assert cv2.imread(str(masks[0]), 0).shape == (96, 96)
  settings = json.loads((output / "predict.json").read_text())
  assert settings["networks"][0]["weights_sha256"] == read_weights(find_weights("base")).sha256
  assert str(ROOT) in settings["runs"][0]
