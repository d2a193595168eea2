"""A trained network as a Python function: what predict writes, without files."""

import json

import cv2
import numpy as np
import pytest
from small_runs import copy_of_run, draw_case, finished_run

import medlitenet_jax
from medlitenet_jax.inference.networks import Network
from medlitenet_jax.inference.segmenter import Segmenter
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.system.errors import InputError


def halves(image):
  """Probability 1 on the right half of a photograph, 0 on the left."""
  probs = np.zeros(image.shape[:3], np.float32)
  probs[:, :, probs.shape[2] // 2 :] = 1
  return probs


@pytest.fixture
def segment():
  return Segmenter(Network(halves, 64), medlitenet_jax.load(finished_run()).config, 0.5)


def test_probabilities_have_the_size_of_the_photograph(segment):
  probs = segment(np.zeros((100, 300, 3), np.uint8))
  assert probs.shape == (100, 300) and probs.dtype == np.float32
  assert probs[:, :148].max() == 0 and probs[:, 152:].min() == 1


def test_an_outline_has_its_mask_at_that_size_and_its_maps_at_the_networks(segment):
  found = segment.outline(np.zeros((100, 300, 3), np.uint8), mm_per_pixel=0.1)
  assert found.mask.shape == (100, 300) and found.probs.shape == (64, 64)
  np.testing.assert_array_equal(found.mask, segment(np.zeros((100, 300, 3), np.uint8)) >= 0.5)
  assert found.measurements["area_mm2"] == pytest.approx(found.measurements["area_px"] / 100)
  assert found.confidence > 0.99


def test_a_run_is_loaded_as_its_folder():
  photograph, _ = draw_case(0, 70, 90)
  segment = medlitenet_jax.load(finished_run())
  assert segment.image_size == 96 and segment.rule == MaskRule()
  found = segment.outline(photograph)
  probs = cv2.resize(found.probs, (90, 70), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_array_equal(segment(photograph), probs)


def test_the_threshold_is_the_networks_own_unless_one_is_given(tmp_path):
  workdir = copy_of_run(tmp_path)
  config = json.loads((workdir / "config.json").read_text())
  config["eval"]["threshold"] = 0.3
  (workdir / "config.json").write_text(json.dumps(config))
  assert medlitenet_jax.load(workdir).rule.threshold == 0.3
  assert medlitenet_jax.load(str(workdir), threshold=0.7).rule.threshold == 0.7
  config["eval"]["threshold"] = 0.0
  (workdir / "config.json").write_text(json.dumps(config))
  with pytest.raises(InputError, match="holds no threshold"):
    medlitenet_jax.load(workdir)
  assert medlitenet_jax.load(workdir, threshold=0.7).rule.threshold == 0.7


def test_an_unknown_name_is_refused_with_those_that_there_are():
  with pytest.raises(InputError, match=r"nowhere: no such weights file, .*base"):
    medlitenet_jax.load("nowhere")
