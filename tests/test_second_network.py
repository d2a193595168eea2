"""A network that shares nothing with MedLiteNet goes through every mode, registered in one line."""

import concurrent.futures
import csv
import functools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from compare_runs import lines, without_speed
from small_runs import FIELDS, ROOT, arguments, draw_case, launch, medlitenet_run, scratch

SIZE = 48
RUN = {
  **{name: value for name, value in FIELDS.items() if not name.startswith("model.")},
  "train.image_sizes": f"({SIZE},)",
}
REGISTER = (
  f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; import guest_network"
)
RECIPE = """
from ml_collections import ConfigDict
from configs import base

def get_config():
  config = base.get_config()
  with config.unlocked():
    config.model.name = "guest"
    config.loss.edge = ConfigDict({"weight": 0.5, "width": 0.02})
  return config
"""


def run(*args, anew=False, **fields):
  """One call of the command line that knows the guest."""
  done = launch(*args, *arguments(**fields), patch=REGISTER, anew=anew)
  assert done.returncode == 0, done.stderr
  return done


@functools.cache
def recipe() -> str:
  path = scratch() / "guest.py"
  path.write_text(RECIPE)
  return f"--config={path}"


@functools.cache
def trained() -> Path:
  """A run that was stopped after its first checkpoint and went on, with a trace."""
  workdir = scratch() / "guest_run"
  run(recipe(), f"--workdir={workdir}", **{**RUN, "train.max_steps": 3, "optim.warmup_updates": 0})
  fields = {**RUN, "optim.warmup_updates": 0, "profile.start_step": 5, "profile.num_steps": 2}
  run(recipe(), f"--workdir={workdir}", "--force", anew=True, **fields)  # profiled: no fork
  return workdir


@functools.cache
def used() -> dict:
  """What each further mode printed, by its name; they run beside each other."""
  folder, workdir = scratch() / "guest", trained()
  (folder / "in").mkdir(parents=True)
  for number, size in enumerate(((70, 90), (48, 48))):
    cv2.imwrite(str(folder / "in" / f"p{number}.png"), draw_case(number, *size)[0][..., ::-1])
  members = f"('{workdir}','{medlitenet_run()}')"
  ensemble = str(ROOT / "configs" / "ensemble.py")
  benchmark = {"benchmark.rounds": 1, "train.batch_size": 2, "benchmark.compare_plain": False}
  synthetic = {name: value for name, value in RUN.items() if name.startswith("data.")}
  calls = {
    "evaluate": (("--mode=evaluate", f"--workdir={workdir}"), {"eval.tta": "six"}),
    "ensemble": (
      ("--mode=evaluate", f"--config={ensemble}", f"--workdir={folder / 'ensemble'}"),
      {**synthetic, "ensemble.members": members, "eval.tta": "none"},
    ),
    "predict": (
      (
        *("--mode=predict", f"--workdir={workdir}", f"--input={folder / 'in'}"),
        f"--output={folder / 'out'}",
      ),
      {},
    ),
    "export": (("--mode=export", f"--workdir={workdir}", f"--output={folder / 'exported'}"), {}),
    "knockout": (
      ("--mode=knockout", f"--workdir={workdir}", f"--output={folder / 'knockout'}"),
      {},
    ),
    "describe": (("--mode=describe", recipe(), f"--output={folder / 'described'}"), RUN),
    "benchmark": (
      ("--mode=benchmark", recipe(), f"--output={folder / 'timed'}"),
      {**RUN, **benchmark},
    ),
  }
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    runs = {name: pool.submit(run, *args, **fields) for name, (args, fields) in calls.items()}
    return {"folder": folder, **{name: future.result().stdout for name, future in runs.items()}}


def test_it_trains_validates_and_resumes():
  rows = lines(trained())
  losses = [row for row in rows if row["split"] == "train"]
  assert [row["step"] for row in losses] == list(range(1, 9))
  assert all(row["edge_loss"] > 0 and np.isfinite(row["loss"]) for row in losses)
  for row in losses:
    parts = 0.5 * (row["bce_loss"] + row["dice_loss"] + row["edge_loss"])
    assert row["loss"] == pytest.approx(parts, rel=1e-4)
  assert [row["step"] for row in without_speed(rows) if row["split"] == "val"][-1] == 8


def test_its_trace_names_its_own_parts():
  with (trained() / "profile" / "scopes.csv").open() as file:
    scopes = {row["scope"] for row in csv.DictReader(file)}
  assert {"embed", "embed gradient", "head", "attention", "loss", "optimizer"} <= scopes


def test_it_is_evaluated_by_six_views_and_in_an_ensemble():
  used()
  alone = json.loads((trained() / "eval" / "test" / "summary.json").read_text())
  assert alone["protocol"]["model"] == "guest" and alone["protocol"]["network_size"] == SIZE
  assert alone["protocol"]["test_time_augmentation"] == "six" and alone["cases"] == 6
  summary = used()["folder"] / "ensemble" / "eval" / "test" / "summary.json"
  joined = json.loads(summary.read_text())["protocol"]
  assert [member["model"] for member in joined["members"]] == ["guest", "medlitenet"]
  assert joined["network_size"] == 64


def test_it_predicts_and_its_exported_weights_predict_the_same():
  folder = used()["folder"]
  weights = folder / "exported" / "guest_run.safetensors"
  again = folder / "again"
  run(
    *("--mode=predict", f"--weights={weights}", f"--input={folder / 'in'}", f"--output={again}"),
  )
  for name, size in (("p0", (70, 90)), ("p1", (48, 48))):
    first, second = (
      cv2.imread(str(out / "masks" / f"{name}_segmentation.png"), cv2.IMREAD_UNCHANGED)
      for out in (folder / "out", again)
    )
    assert first.shape == size
    np.testing.assert_array_equal(first, second)


def test_its_parts_are_silenced():
  parts = json.loads((used()["folder"] / "knockout" / "knockout.json").read_text())["parts"]
  assert {"embed", "attention", "norm", "head"} <= parts.keys()
  assert parts["head"]["dice_change"] != 0


def test_it_is_described_and_timed():
  said = used()
  assert "embed" in said["describe"] and "positions" not in said["describe"]
  assert (said["folder"] / "described" / "architecture.png").stat().st_size > 5000
  timed = json.loads((said["folder"] / "timed" / "benchmark.json").read_text())
  assert str(SIZE) in json.dumps(timed)


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    (
      {"train.image_sizes": "(48,64)"},
      "config.train.image_sizes: the network takes only sides of 48",
    ),
    ({"model.remat": True}, "config.model.remat: guest does not support"),
    ({"loss.edge.width": -1}, "config.loss.edge.width takes"),
  ],
)
def test_what_it_cannot_take_is_one_line(fields, says, tmp_path):
  done = launch(
    recipe(), f"--workdir={tmp_path}/run", *arguments(**{**RUN, **fields}), patch=REGISTER
  )
  assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
  assert not (tmp_path / "run").exists()
