"""Trained networks opened from runs and files: the same variables, origin and cases seen."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_runs import REGISTER, ROOT, copy_of_run, finished_run

from medlitenet_jax.formats.safetensors import find_weights, read_weights
from medlitenet_jax.inference.trained import open_trained
from medlitenet_jax.system.errors import InputError


def test_a_run_says_where_it_comes_from():
  trained = open_trained(finished_run())
  dice = {}
  for line in (finished_run() / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    if row["split"] == "val":
      dice[row["step"]] = row["dice"]
  assert trained.origin["step"] == max(dice, key=dice.get)
  assert trained.origin["validation"]["dice"] == max(dice.values())
  assert trained.origin["run"] == str(finished_run()) and trained.origin["network_size"] == 96
  assert len(trained.seen["train"]) == 13 and len(trained.seen["val"]) == 3
  assert open_trained(finished_run(), "latest").origin["step"] == 8
  assert {leaf.dtype for leaf in jax.tree.leaves(trained.variables)} == {np.dtype("float32")}


def test_a_file_is_opened_by_name_and_by_path():
  path, content = find_weights("base"), read_weights(find_weights("base"))
  for place in ("base", str(path), path):
    trained = open_trained(place)
    assert trained.origin["run"] == str(path)
    assert trained.origin["weights_sha256"] == content.sha256
    assert trained.config == content.config and trained.seen == content.seen
    jax.tree.map(np.testing.assert_array_equal, trained.variables, content.variables)


def test_a_path_is_never_a_released_name(tmp_path, monkeypatch):
  copy_of_run(tmp_path).rename(tmp_path / "base")
  monkeypatch.chdir(tmp_path)
  from_path = open_trained(tmp_path.joinpath("base").relative_to(tmp_path))
  assert from_path.origin["run"] == "base" and open_trained("./base").origin["step"] < 9
  assert "weights_sha256" in open_trained("base").origin


@pytest.mark.parametrize(
  ("place", "says"),
  [
    ("nowhere", "nowhere/config.json: cannot be read"),
    ("nowhere.safetensors", "nowhere.safetensors: not a weights file"),
  ],
)
def test_a_place_where_nothing_lies_is_refused(tmp_path, monkeypatch, place, says):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=says):
    open_trained(place)


def test_a_checkpoint_of_no_such_kind_is_refused():
  with pytest.raises(InputError, match="checkpoint takes one of best, latest"):
    open_trained(finished_run(), "newest")


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
  workdir = copy_of_run(tmp_path)
  shutil.rmtree(workdir / "checkpoints")
  with pytest.raises(InputError, match="no checkpoint in it yet; train first"):
    open_trained(workdir)


@pytest.mark.parametrize(
  "change",
  [
    lambda tree: tree["model"].pop("name"),
    lambda tree: tree.update(model=5),
    lambda tree: tree.pop("eval"),
    lambda tree: tree["eval"].pop("checkpoint"),
    lambda tree: tree["eval"].update(image_size="large"),
  ],
)
def test_a_configuration_of_no_network_is_refused(tmp_path, change):
  workdir = copy_of_run(tmp_path)
  tree = json.loads((workdir / "config.json").read_text())
  change(tree)
  (workdir / "config.json").write_text(json.dumps(tree))
  with pytest.raises(InputError, match=r"config\.json: describes no network") as error:
    open_trained(workdir)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("damage", [None, "{", '{"train": []}', "[]"])
def test_a_run_that_does_not_say_what_it_saw_is_refused(tmp_path, damage):
  workdir = copy_of_run(tmp_path)
  path = workdir / "cases.json"
  path.write_text(damage) if damage else path.unlink()
  with pytest.raises(InputError, match=r"cases\.json"):
    open_trained(workdir)


def test_a_file_is_opened_without_orbax_and_a_run_with_it():
  script = f"""
{REGISTER}
from medlitenet_jax.inference.trained import open_trained
from medlitenet_jax.modes import predict
open_trained("base")
assert not any(name.split(".")[0] == "orbax" for name in sys.modules)
open_trained({str(finished_run())!r})
assert "orbax" in {{name.split(".")[0] for name in sys.modules}}
"""
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
