"""The command that silences parts of a trained network: its table, picture and file."""

import json

import cv2
import numpy as np
import pytest
from small_runs import arguments, launch, medlitenet_run

from medlitenet_jax.training.log import read_metrics


@pytest.fixture(scope="module")
def knocked(tmp_path_factory):
  """What the command printed, and the folder that it wrote."""
  output = tmp_path_factory.mktemp("knockout") / "out"
  flags = ("--mode=knockout", f"--workdir={medlitenet_run()}", f"--output={output}")
  done = launch(*flags, *arguments(eval__split="val"))
  assert done.returncode == 0, done.stderr
  return done, output


def test_every_part_has_a_change_with_its_interval(knocked):
  done, output = knocked
  found = json.loads((output / "knockout.json").read_text())
  assert {"attention", "boundary", "encoder_gate/boundary", "mixer"} <= found["parts"].keys()
  for name, change in found["parts"].items():
    assert change["low"] <= change["dice_change"] <= change["high"], name
    assert change["iou_low"] <= change["iou_change"] <= change["iou_high"], name
    assert f"| {name} " in done.stdout
  assert any(abs(change["dice_change"]) > 1e-3 for change in found["parts"].values())
  assert found["diagnostics"] and found["split"] == "val" and found["cases"] == 3


def test_the_whole_network_scores_what_training_selected_it_by(knocked):
  found = json.loads((knocked[1] / "knockout.json").read_text())
  best = max(row["dice"] for row in read_metrics(medlitenet_run()) if row["split"] == "val")
  assert found["dice"] == pytest.approx(best, abs=1e-6)
  assert found["cases_selected_by"] == 3


def test_the_picture_has_a_row_for_each(knocked):
  picture = cv2.imread(str(knocked[1] / "knockout.png"))
  parts = json.loads((knocked[1] / "knockout.json").read_text())["parts"]
  assert picture.shape[0] > 20 * len(parts) and np.std(picture) > 1
