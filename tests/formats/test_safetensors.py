"""Weights files: whole, checked, free of the training's libraries, and the same network."""

import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import (
  ROOT,
  contents,
  draw_case,
  finished_run,
  launch,
  resolved,
  scratch,
  small_arguments,
)

from medlitenet_jax import config as config_lib
from medlitenet_jax.config import load as load_config
from medlitenet_jax.formats.safetensors import (
  Segmenter,
  find_weights,
  load,
  read_weights,
  write_weights,
)
from medlitenet_jax.inference.networks import load_averaged
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.modes.evaluate import evaluate
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.log import read_metrics
from medlitenet_jax.training.run import create_run_optimizer
from medlitenet_jax.training.state import create_state, start_from

SIZES = {"wide": (60, 130), "tall": (150, 70)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """The finished run as weights files."""
  output = tmp_path_factory.mktemp("exported")
  done = launch("--mode=export", f"--workdir={finished_run()}", f"--output={output}")
  assert done.returncode == 0, done.stderr
  return output


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photographs")
  for number, (name, size) in enumerate(SIZES.items()):
    cv2.imwrite(str(folder / f"{name}.png"), draw_case(number, *size)[0][..., ::-1])
  return folder


def test_the_file_holds_the_averaged_network_and_what_it_is(exported):
  config = load_config(finished_run())
  variables, origin = load_averaged(config, finished_run())
  weights = read_weights(exported / "finished.safetensors")
  jax.tree.map(np.testing.assert_array_equal, weights.variables, jax.device_get(variables))
  assert weights.config.model == config.model
  assert weights.origin == {**origin, "run": "finished"}
  assert len(weights.seen["train"]) == 13 and len(weights.seen["val"]) == 3
  text = (exported / "finished.safetensors").read_bytes()
  assert str(scratch()).encode() not in text and str(ROOT).encode() not in text


def test_half_precision_takes_half_the_room_and_is_as_near_as_that_allows(exported):
  whole, half = (exported / f"finished{end}.safetensors" for end in ("", "_float16"))
  tensors = sum(a.nbytes for a in load_file(whole).values())
  halved = sum(a.nbytes for a in load_file(half).values())
  statistics = sum(a.nbytes for n, a in load_file(whole).items() if n.startswith("batch_stats/"))
  assert halved == (tensors + statistics) / 2
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7),
    read_weights(half).variables,
    read_weights(whole).variables,
  )


def test_the_file_outlines_as_the_checkpoint_does(exported, photographs, tmp_path):
  outputs = {}
  for name, given in (
    ("run", f"--workdir={finished_run()}"),
    ("file", f"--weights={exported / 'finished.safetensors'}"),
  ):
    done = launch("--mode=predict", given, f"--input={photographs}", f"--output={tmp_path / name}")
    assert done.returncode == 0, done.stderr
    outputs[name] = contents(tmp_path / name / "masks")
  assert len(outputs["run"]) == 2 and outputs["run"] == outputs["file"]
  segment = load(str(exported / "finished.safetensors"))
  for name, size in SIZES.items():
    image = cv2.imread(str(photographs / f"{name}.png"))[..., ::-1]
    probs = segment(image)
    assert probs.shape == size and probs.dtype == np.float32
    mask = cv2.imread(str(tmp_path / "file" / "masks" / f"{name}_segmentation.png"), 0)
    assert np.mean((probs >= 0.5) == (mask == 255)) > 0.999


def test_a_file_is_scored_as_the_run_is_and_knows_what_it_has_seen(exported, tmp_path):
  done = launch(
    "--mode=evaluate",
    f"--weights={exported / 'finished.safetensors'}",
    f"--workdir={tmp_path / 'scored'}",
    "--config.eval.split=val",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "scored" / "eval" / "val" / "summary.json").read_text())
  recorded = summary["protocol"]["checkpoint"]
  assert summary["dice"]["mean"] == pytest.approx(recorded["validation"]["dice"], abs=1e-6)
  assert recorded["weights_sha256"] and "finished" in recorded["run"]


def test_the_scores_of_a_run_are_not_replaced_by_those_of_a_file(exported):
  path = exported / "finished.safetensors"
  with pytest.raises(InputError, match="holds a run"):
    evaluate(resolved(), finished_run(), "python launch.py", path)


def test_neither_orbax_nor_grain_nor_tfds_is_needed(exported, photographs):
  script = f"""
import sys
class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("orbax", "grain", "tensorflow_datasets", "array_record"):
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import cv2
from medlitenet_jax.formats.safetensors import load
segment = load({str(exported / "finished.safetensors")!r})
print(segment(cv2.imread({str(photographs / "wide.png")!r})[..., ::-1]).shape)
"""
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == str(SIZES["wide"])


def changed(exported, tmp_path, change):
  """The file with its tensors and texts changed."""
  from safetensors import safe_open

  path = exported / "finished.safetensors"
  with safe_open(path, framework="numpy") as file:
    metadata = dict(file.metadata())
  tensors = load_file(path)
  change(tensors, metadata)
  save_file(tensors, tmp_path / "changed.safetensors", metadata)
  return tmp_path / "changed.safetensors"


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (lambda tensors, metadata: metadata.pop("format"), "not a weights file of this project"),
    *(
      (
        lambda tensors, metadata, c=c: metadata.update(config=c),
        "not a weights file of this project",
      )
      for c in ("{", "[]", "{}", '{"model": 5}')
    ),
    (lambda tensors, metadata: tensors.popitem(), "holds other parameters"),
    (lambda tensors, metadata: tensors.update(more=np.zeros(3)), "holds other parameters"),
  ],
)
def test_a_file_of_something_else_is_refused(exported, tmp_path, change, says):
  with pytest.raises(InputError, match=says):
    read_weights(changed(exported, tmp_path, change))


@pytest.mark.parametrize("keep", [0, 5, 200, -1000])
def test_a_damaged_file_is_refused(exported, tmp_path, keep):
  path = tmp_path / "cut.safetensors"
  path.write_bytes((exported / "finished.safetensors").read_bytes()[:keep])
  with pytest.raises(InputError, match="not a weights file"):
    read_weights(path)


def test_what_is_written_is_read(tmp_path):
  config = load_config(finished_run())
  variables = jax.device_get(load_averaged(config, finished_run())[0])
  write_weights(
    tmp_path / "a.safetensors", variables, config, {"step": 3}, {"train": [], "val": []}
  )
  weights = read_weights(tmp_path / "a.safetensors")
  assert config_lib.differences(weights.config, config) == {} and weights.origin == {"step": 3}
  blank = np.zeros((40, 50, 3), np.uint8)
  assert Segmenter(weights)(blank).shape == (40, 50)


def test_an_unknown_name_is_refused_with_those_that_there_are():
  with pytest.raises(InputError, match="nowhere: no such weights file, nor a released name"):
    find_weights("nowhere")


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (("--mode=train", "--weights=base"), "--weights: --mode=train uses none"),
    (("--mode=predict", "--weights=nowhere", "--input=x"), "nowhere: no such weights file"),
    (
      ("--mode=predict", "--weights=base", "--workdir=runs/x", "--input=x"),
      "both name a network",
    ),
  ],
)
def test_flags_that_contradict_are_one_line(arguments, says):
  done = launch(*arguments)
  assert done.returncode == 2
  assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_run_that_starts_from_a_file_has_its_network_and_its_average(exported):
  weights = read_weights(exported / "finished.safetensors")
  model = create_model(weights.config.model.to_dict(), DTYPES[weights.config.precision])
  tx, _ = create_run_optimizer(weights.config.optim, total_steps=8)
  shapes = jax.eval_shape(lambda: create_state(model, tx, 0, weights.config.precision))
  state = start_from(shapes, weights.variables)
  for found in (
    {"params": state.params, "batch_stats": state.batch_stats},
    state.ema_variables,
  ):
    jax.tree.map(np.testing.assert_array_equal, found, weights.variables)


def test_training_goes_on_from_a_file(exported, tmp_path):
  file = exported / "finished.safetensors"
  workdir = tmp_path / "tuned"
  # All else as in the finished run, whose programs are compiled.
  done = launch(*small_arguments(train__start_from=file), f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  first, tuned = (
    [row["loss"] for row in read_metrics(folder) if row["split"] == "train"]
    for folder in (finished_run(), workdir)
  )
  assert tuned[0] < 0.9 * first[0] and np.mean(tuned) < 0.9 * np.mean(first)
  content = json.loads((workdir / "cases.json").read_text())
  assert content["before"] == content["train"] and len(content["val"]) == 3
  other = {"train__start_from": file, "model__mixer_dim": 64}
  done = launch(*small_arguments(**other), f"--workdir={tmp_path / 'other'}")
  assert done.returncode == 2 and "another network" in done.stderr
