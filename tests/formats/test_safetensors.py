"""Weights files: whole, checked, free of the training's libraries, and the same network."""

import json
import subprocess
import sys
from typing import Any

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_runs import (
  REGISTER,
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
from medlitenet_jax.formats.safetensors import (
  FORMAT,
  STORED_DTYPES,
  find_weights,
  read_weights,
  write_weights,
)
from medlitenet_jax.inference.networks import create_network
from medlitenet_jax.inference.segmenter import load
from medlitenet_jax.inference.trained import open_trained
from medlitenet_jax.models import registry
from medlitenet_jax.models.entry import Entry
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.modes.evaluate import evaluate
from medlitenet_jax.modes.export import with_likeness
from medlitenet_jax.scores.likeness import fit_likeness
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.log import read_metrics
from medlitenet_jax.training.run import create_initialise
from medlitenet_jax.training.state import start_from

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
  trained = open_trained(finished_run())
  weights = read_weights(exported / "finished.safetensors")
  variables = jax.device_get(trained.variables)
  jax.tree.map(np.testing.assert_array_equal, weights.variables, variables)
  assert weights.config.model == trained.config.model
  assert weights.origin == {**trained.origin, "run": "finished"}
  assert weights.seen == trained.seen
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
  trained = open_trained(exported / "finished.safetensors")
  network = create_network(trained, resolved())
  with pytest.raises(InputError, match=r"holds a run, and the scores of .*finished\.safetensors"):
    evaluate(resolved(), [network], finished_run(), "python launch.py")


def test_neither_orbax_nor_grain_nor_tfds_is_needed(exported, photographs):
  script = f"""
import sys
class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("orbax", "grain", "tensorflow_datasets", "array_record"):
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
{REGISTER}
import cv2
import medlitenet_jax
segment = medlitenet_jax.load({str(exported / "finished.safetensors")!r})
print(segment(cv2.imread({str(photographs / "wide.png")!r})[..., ::-1]).shape)
"""
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == str(SIZES["wide"])


def changed(exported, tmp_path, change):
  """The file with its tensors and texts changed."""
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


FITTED = fit_likeness(np.random.default_rng(0).normal(size=(300, 5)))


@pytest.mark.parametrize("likeness", [None, FITTED])
@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_what_is_written_is_read(tmp_path, dtype, likeness):
  trained = open_trained(finished_run())
  path = tmp_path / "a.safetensors"
  seen = {"train": [], "val": []}
  write_weights(
    path, jax.device_get(trained.variables), trained.config, {"step": 3}, seen, dtype, likeness
  )
  for found in (read_weights(path), open_trained(path)):
    assert config_lib.differences(found.config, trained.config) == {}
    assert found.origin["step"] == 3 and found.seen == seen
    assert (found.likeness is None) == (likeness is None)
    if likeness:
      jax.tree.map(np.testing.assert_array_equal, found.likeness, likeness)


@pytest.mark.parametrize(
  "change",
  [
    lambda tensors: tensors.pop("likeness/usual"),
    lambda tensors: tensors.update({"likeness/mean": np.zeros(4, np.float32)}),
    lambda tensors: tensors.update({"likeness/whitening": np.zeros((5, 4), np.float32)}),
  ],
)
def test_a_damaged_likeness_is_refused(exported, tmp_path, change):
  def add(tensors, metadata):
    tensors.update({f"likeness/{name}": value for name, value in FITTED._asdict().items()})
    change(tensors)

  with pytest.raises(InputError, match=r"not a weights file of this project .*likeness"):
    read_weights(changed(exported, tmp_path, add))


def test_export_says_why_a_likeness_is_not_fitted_and_keeps_what_there_is(caplog):
  trained = open_trained(finished_run())
  for known, says in ((None, "the file has none"), (FITTED, "the file keeps its own")):
    before = trained._replace(likeness=known)
    assert with_likeness(resolved(), before) is before
    assert f"{says}: its data has 16 photographs in train and val, not 200" in caplog.text


def with_model(change):
  """Changes the network's fields in the configuration of a file."""

  def act(tensors, metadata):
    config = json.loads(metadata["config"])
    change(config["model"], config["model"]["stub"])
    metadata["config"] = json.dumps(config)

  return act


def test_a_field_that_the_file_lacks_has_the_modules_default(exported, tmp_path):
  path = changed(exported, tmp_path, with_model(lambda model, own: own.pop("dropout")))
  weights, before = (read_weights(p).variables for p in (path, exported / "finished.safetensors"))
  jax.tree.map(np.testing.assert_array_equal, weights, before)
  assert load(path)(np.zeros((40, 50, 3), np.uint8)).shape == (40, 50)


def test_a_variant_that_has_changed_since_leaves_the_file_as_it_is(exported, tmp_path, monkeypatch):
  path = changed(exported, tmp_path, with_model(lambda model, own: own.pop("classes")))
  monkeypatch.setitem(registry.NETWORKS["stub"].variants["base"], "classes", 2)
  weights, before = (read_weights(p) for p in (path, exported / "finished.safetensors"))
  assert weights.config.model == before.config.model
  jax.tree.map(np.testing.assert_array_equal, weights.variables, before.variables)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (lambda model, own: own.update(windows=3), r"config\.model\.stub\.windows"),
    (lambda model, own: model.update(windows=3), r"config\.model\.windows"),
    (lambda model, own: model.update(name="other"), r"'other' is not one of"),
  ],
)
def test_a_field_that_the_network_does_not_have_is_refused(exported, tmp_path, change, says):
  path = changed(exported, tmp_path, with_model(change))
  with pytest.raises(InputError, match=says) as error:
    read_weights(path)
  assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_file_of_the_earlier_layout_is_read_as_a_new_one(tmp_path):
  """Whose networks and loss terms had no sections, and which knew nothing of likeness."""
  path = find_weights("paper_literal")
  with safe_open(path, framework="numpy") as file:
    metadata = file.metadata()
  arrays = {n: a for n, a in load_file(path).items() if not n.startswith("likeness/")}
  config = json.loads(metadata["config"])
  assert metadata["format"] == FORMAT
  model, loss = config["model"], config["loss"]
  model |= model.pop("medlitenet")
  config["loss"] = {
    **{f"bce_{n}" if n == "weight" else n: value for n, value in loss["bce"].items()},
    **{f"dice_{n}": value for n, value in loss["dice"].items()},
  }
  metadata |= {"format": "medlitenet_jax 1", "config": json.dumps(config)}
  earlier = tmp_path / "earlier.safetensors"
  save_file(arrays, earlier, metadata)
  new, read = read_weights(path), read_weights(earlier)
  assert read.config.to_dict() == new.config.to_dict() and read.likeness is None
  jax.tree.map(np.testing.assert_array_equal, read.variables, new.variables)
  assert new.likeness is not None


def test_a_network_without_norms_writes_and_reads_back(tmp_path, monkeypatch):
  class Plain(nn.Module):
    """One pixelwise layer."""

    width: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, image, *, train: bool = False):
      return {"mask": nn.Dense(1, dtype=self.dtype, name="head")(image)}

  monkeypatch.setitem(registry.NETWORKS, "plain", Entry(Plain))
  tree = open_trained(finished_run()).config.to_dict()
  tree["model"] = {"name": "plain", "variant": "base", "form": "platform", "remat": False}
  config = config_lib.from_tree(tree)
  model = create_model(config.model.to_dict(), DTYPES["float32"])
  variables = model.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
  assert variables.keys() == {"params"}
  path = tmp_path / "plain.safetensors"
  write_weights(path, variables, config, {"step": 1}, {"train": [], "val": []})
  weights = read_weights(path)
  jax.tree.map(np.testing.assert_array_equal, weights.variables["params"], variables["params"])
  assert not weights.variables["batch_stats"]
  photograph = np.full((30, 40, 3), 128, np.uint8)
  assert load(path)(photograph).shape == (30, 40)


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
  shapes = jax.eval_shape(create_initialise(weights.config, model, 64))
  state = start_from(shapes, weights.variables)
  for found in (
    {"params": state.params, "batch_stats": state.batch_stats},
    state.ema_variables,
  ):
    jax.tree.map(np.testing.assert_array_equal, found, weights.variables)


def test_training_goes_on_from_a_file(tmp_path):
  source, workdir, file = (tmp_path / name for name in ("run", "tuned", "run.safetensors"))
  fast = small_arguments(optim__learning_rate=0.05)  # so that eight batches teach something
  for arguments in ((*fast,), ("--mode=export", f"--output={tmp_path}")):
    done = launch(*arguments, f"--workdir={source}")
    assert done.returncode == 0, done.stderr
  done = launch(*small_arguments(train__start_from=file), f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  scores = [row for row in read_metrics(workdir) if row["split"] == "val"]
  finished = [row for row in read_metrics(source) if row["split"] == "val"]
  assert [row["step"] for row in scores] == [0, 3, 6, 8]  # 0: of the weights themselves
  best = max(row["dice"] for row in finished)
  assert scores[0]["dice"] == pytest.approx(best, abs=1e-6)
  beaten = max(row["dice"] for row in scores) > best
  assert (f"val Dice {best:.4f} by {file}" if beaten else f"Nothing beat {file}") in done.stdout
  first, tuned = (
    [row["loss"] for row in read_metrics(folder) if row["split"] == "train"]
    for folder in (source, workdir)
  )
  assert tuned[0] < 0.9 * first[0] and np.mean(tuned) < 0.9 * np.mean(first)
  content = json.loads((workdir / "cases.json").read_text())
  assert content["before"] == content["train"] and len(content["val"]) == 3
  other = {"train__start_from": file, "model__variant": "wide"}
  done = launch(*small_arguments(**other), f"--workdir={tmp_path / 'other'}")
  assert done.returncode == 2 and "config.model.stub.width=8, and this" in done.stderr
