"""Members of an ensemble: opened with their own settings, weighted once, refused if unlike."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import compiled_as_by_launch, contents, copy_of_run, network_of, resolved

from medlitenet_jax.inference import members as members_module
from medlitenet_jax.inference.members import ENSEMBLE_FILE, open_members
from medlitenet_jax.inference.networks import create_predict, precision_of
from medlitenet_jax.inference.trained import open_trained
from medlitenet_jax.system.errors import InputError


def members(tmp_path, count=2) -> list[str]:
  """Folders of runs that share everything but their name."""
  first = copy_of_run(tmp_path)
  others = [tmp_path / f"copy{i}" for i in range(1, count)]
  return [str(first), *(str(shutil.copytree(first, other)) for other in others)]


def ensemble(tmp_path, **fields):
  return resolved(ensemble__members=tuple(members(tmp_path)), **fields)


def test_an_ensemble_of_one_run_twice_is_that_run(tmp_path):
  config = ensemble(tmp_path, precision="float32", eval__image_size=96)
  networks = open_members(config, tmp_path / "ensemble")
  assert [network.weight for network in networks] == [0.5, 0.5]
  image = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
  with compiled_as_by_launch():
    both = create_predict(networks)({96: image})
    alone = create_predict([network_of(Path(config.ensemble.members[0]), config)])({96: image})
  np.testing.assert_allclose(both.probs, alone.probs, atol=1e-6)
  assert np.asarray(both.disagreement).max() < 1e-3


def test_members_compute_in_what_they_were_trained_in_unless_told(tmp_path):
  config = ensemble(tmp_path)
  path = Path(config.ensemble.members[1]) / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "bfloat16"}))
  networks = open_members(config, tmp_path / "ensemble")
  assert [network.precision for network in networks] == ["float32", "bfloat16"]
  assert precision_of(networks) == "bfloat16, float32"
  with config.unlocked():
    config.precision = "float16"
  networks = open_members(config, tmp_path / "ensemble")
  assert precision_of(networks) == "float16"


def test_weights_are_made_once_and_kept(tmp_path):
  config, workdir = ensemble(tmp_path), tmp_path / "ensemble"
  open_members(config, workdir)
  stored = json.loads((workdir / ENSEMBLE_FILE).read_text())
  assert [m["weight"] for m in stored["members"]] == [0.5, 0.5]
  assert [m["run"] for m in stored["members"]] == list(config.ensemble.members)
  stored["members"][0]["weight"], stored["members"][1]["weight"] = 0.25, 0.75
  (workdir / ENSEMBLE_FILE).write_text(json.dumps(stored))
  assert [n.weight for n in open_members(config, workdir)] == [0.25, 0.75]
  moved = [Path(member).rename(f"{member}_moved") for member in config.ensemble.members]
  with config.unlocked():
    config.ensemble.members = tuple(map(str, moved))
  assert [n.weight for n in open_members(config, workdir)] == [0.25, 0.75]


def test_an_ensemble_does_not_take_the_folder_of_a_run(tmp_path):
  config = ensemble(tmp_path)
  run = Path(config.ensemble.members[0])
  before = contents(run)
  with pytest.raises(InputError, match="holds a run; choose another --workdir for the ensemble"):
    open_members(config, run)
  assert contents(run) == before


@pytest.mark.parametrize("validation", [{}, {"dice": 0.0}])
def test_a_member_without_a_score_is_refused(tmp_path, monkeypatch, validation):
  config = ensemble(tmp_path)

  def open_unvalidated(*args):
    trained = open_trained(*args)
    return trained._replace(origin={**trained.origin, "validation": validation})

  monkeypatch.setattr(members_module, "open_trained", open_unvalidated)
  with pytest.raises(InputError, match="no validation Dice above 0 to be weighted by"):
    open_members(config, tmp_path / "ensemble")


def test_a_released_name_means_the_released_weights_whatever_lies_around(tmp_path, monkeypatch):
  copy_of_run(tmp_path).rename(tmp_path / "base")
  monkeypatch.chdir(tmp_path)
  config = resolved(ensemble__members=("base", "./base"))
  with pytest.raises(InputError, match="different validation cases"):  # of two networks, then
    open_members(config, tmp_path / "ensemble")


@pytest.mark.parametrize("damage", ["{", "[]", '{"members": [{"run": 1}]}'])
def test_damaged_weights_are_refused(tmp_path, damage):
  config, workdir = ensemble(tmp_path), tmp_path / "ensemble"
  workdir.mkdir()
  (workdir / ENSEMBLE_FILE).write_text(damage)
  with pytest.raises(InputError, match=ENSEMBLE_FILE):
    open_members(config, workdir)


def test_weights_of_other_checkpoints_are_refused(tmp_path):
  config, workdir = ensemble(tmp_path), tmp_path / "ensemble"
  open_members(config, workdir)
  with config.unlocked():
    config.eval.checkpoint = "latest"
  with pytest.raises(InputError, match="other members or checkpoints"):
    open_members(config, workdir)


def test_members_selected_on_different_cases_are_refused(tmp_path):
  config = ensemble(tmp_path)
  path = Path(config.ensemble.members[1]) / "cases.json"
  cases = json.loads(path.read_text())
  path.write_text(json.dumps({**cases, "val": cases["val"][:1]}))
  with pytest.raises(InputError, match="different validation cases"):
    open_members(config, tmp_path / "ensemble")
  assert not (tmp_path / "ensemble").exists()


@pytest.mark.parametrize(
  ("field", "member", "asked"),
  [
    ("hair_removal", True, False),
    ("hair_removal", False, True),
    ("color_constancy", "shades_of_grey", "none"),
  ],
)
def test_members_that_see_photographs_cleaned_otherwise_are_refused(tmp_path, field, member, asked):
  config = ensemble(tmp_path, **{f"preprocess__{field}": asked})
  for folder, value in zip(config.ensemble.members, (asked, member), strict=True):
    path = Path(folder) / "config.json"
    saved = json.loads(path.read_text())
    saved["preprocess"][field] = value
    path.write_text(json.dumps(saved))
  with pytest.raises(
    InputError, match=rf"config\.preprocess\.{field}={member!r}.*{asked!r}"
  ) as error:
    open_members(config, tmp_path / "ensemble")
  assert config.ensemble.members[1] in str(error.value)
  assert len(str(error.value).splitlines()) == 1
  assert not (tmp_path / "ensemble").exists()
  path.write_text((Path(config.ensemble.members[0]) / "config.json").read_text())
  assert len(open_members(config, tmp_path / "ensemble")) == 2
