"""Networks at work: batches, padding, sizes and members change nothing that they should not."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import (
  SIZES,
  compiled_as_by_launch,
  contents,
  copy_of_run,
  finished_run,
  resolved,
  write_sizes,
)

from medlitenet_jax.data.sources import create_source
from medlitenet_jax.inference import networks as networks_module
from medlitenet_jax.inference.networks import (
  ENSEMBLE_FILE,
  compile_networks,
  create_predict,
  load_networks,
  precision_of,
  predict_cases,
)
from medlitenet_jax.system.errors import InputError


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
  """A folder with a test split of six photographs of six sizes, as the configuration names it."""
  root = write_sizes(tmp_path_factory.mktemp("photographs"))
  return {"data__source": "folder", "data__root": str(root)}


class Brightness:
  """A network of no parameters: a pixel's logit is its brightness."""

  def apply(self, variables, image):
    return image.mean(axis=-1, keepdims=True)


def maps_of(predict, sizes, **settings):
  config = resolved(**settings)
  source = create_source(config.data, "test", 0)
  return {
    case.case_id: (probs, disagreement, case)
    for case, probs, disagreement in predict_cases(predict, source, sizes, config)
  }


def brightness(*sizes, tta="none"):
  weights = [1 / len(sizes)] * len(sizes)
  predict = create_predict([(Brightness(), size) for size in sizes], weights, tta)
  return lambda images: predict([{}] * len(sizes), images)


@pytest.mark.parametrize("batch_size", [1, 4, 6, 16])
def test_batch_and_padding_change_nothing(fields, batch_size):
  maps = maps_of(brightness(96), [96], **fields, eval__batch_size=batch_size)
  others = maps_of(brightness(96), [96], **fields, eval__batch_size=2)
  assert list(maps) == sorted(SIZES) and maps.keys() == others.keys()
  for case_id, (probs, _, case) in maps.items():
    np.testing.assert_array_equal(probs, others[case_id][0])
    assert case.mask.shape == SIZES[case_id]


def test_members_of_several_sizes_see_their_own(fields):
  """The mean of two sizes has the larger one, and lies between what either says."""
  maps = maps_of(brightness(64, 96), [64, 96], **fields)
  small, large = (maps_of(brightness(size), [size], **fields) for size in (64, 96))
  for case_id, (probs, disagreement, case) in maps.items():
    assert probs.shape == disagreement.shape == (96, 96) and case.image.shape == (96, 96, 3)
    assert probs.mean() == pytest.approx(
      (small[case_id][0].mean() + large[case_id][0].mean()) / 2, abs=1e-3
    )
    assert disagreement.mean() > 0


def test_six_views_of_what_does_not_turn_agree(fields):
  maps = maps_of(brightness(96, tta="six"), [96], **fields)
  plain = maps_of(brightness(96), [96], **fields)
  for case_id, (probs, disagreement, _) in maps.items():
    np.testing.assert_allclose(probs, plain[case_id][0], atol=1e-6)
    assert disagreement.max() < 1e-3


def test_a_case_does_not_see_the_others_of_its_batch(fields):
  """The trained network gives a case the same map whatever stands beside it in the batch."""
  (network,) = load_networks(resolved(**fields), finished_run())
  with compiled_as_by_launch():
    predict = compile_networks([network], "none")
    all_six, five = (
      maps_of(predict, [96], **fields, data__max_eval_images=limit) for limit in (0, 5)
    )
  assert len(all_six) == 6 and len(five) == 5
  for case_id, (probs, disagreement, _) in five.items():
    np.testing.assert_array_equal(probs, all_six[case_id][0])
    assert not disagreement.any()


def test_network_says_where_it_comes_from():
  (network,) = load_networks(resolved(), finished_run())
  dice = {}
  for line in (finished_run() / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    if row["split"] == "val":
      dice[row["step"]] = row["dice"]
  assert network.origin["step"] == max(dice, key=dice.get)
  assert network.origin["validation"]["dice"] == max(dice.values())
  assert network.weight == 1 and network.image_size == 96
  assert len(network.seen["train"]) == 13 and len(network.seen["val"]) == 3
  (newest,) = load_networks(resolved(eval__checkpoint="latest"), finished_run())
  assert newest.origin["step"] == 8


def members(tmp_path, count=2) -> list[str]:
  """Folders of runs that share everything but their name."""
  first = copy_of_run(tmp_path)
  others = [tmp_path / f"copy{i}" for i in range(1, count)]
  return [str(first), *(str(shutil.copytree(first, other)) for other in others)]


def ensemble(tmp_path, **fields):
  return resolved(ensemble__members=tuple(members(tmp_path)), **fields)


def test_an_ensemble_of_one_run_twice_is_that_run(fields, tmp_path):
  config = ensemble(tmp_path, **fields)
  networks = load_networks(config, tmp_path / "ensemble")
  assert [network.weight for network in networks] == [0.5, 0.5]
  with compiled_as_by_launch():
    both = maps_of(compile_networks(networks, "none"), [96], **fields)
    alone = maps_of(compile_networks(networks[:1], "none"), [96], **fields)
  # One network of half the weight says half: the sum over both is what is compared.
  for case_id, (probs, _, _) in both.items():
    np.testing.assert_allclose(probs, 2 * alone[case_id][0], atol=1e-6)


def test_members_compute_in_what_they_were_trained_in_unless_told(tmp_path):
  config = ensemble(tmp_path)
  path = Path(config.ensemble.members[1]) / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "bfloat16"}))
  networks = load_networks(config, tmp_path / "ensemble")
  assert [network.precision for network in networks] == ["float32", "bfloat16"]
  assert [network.model.dtype for network in networks] == [jnp.float32, jnp.bfloat16]
  assert precision_of(networks) == "bfloat16, float32"
  with config.unlocked():
    config.precision = "float16"
  networks = load_networks(config, tmp_path / "ensemble")
  assert precision_of(networks) == "float16"


def test_weights_are_made_once_and_kept(tmp_path):
  config, workdir = ensemble(tmp_path), tmp_path / "ensemble"
  load_networks(config, workdir)
  stored = json.loads((workdir / ENSEMBLE_FILE).read_text())
  assert [m["weight"] for m in stored["members"]] == [0.5, 0.5]
  assert [m["run"] for m in stored["members"]] == list(config.ensemble.members)
  stored["members"][0]["weight"], stored["members"][1]["weight"] = 0.25, 0.75
  (workdir / ENSEMBLE_FILE).write_text(json.dumps(stored))
  assert [n.weight for n in load_networks(config, workdir)] == [0.25, 0.75]
  moved = [Path(member).rename(f"{member}_moved") for member in config.ensemble.members]
  with config.unlocked():
    config.ensemble.members = tuple(map(str, moved))
  assert [n.weight for n in load_networks(config, workdir)] == [0.25, 0.75]


def test_an_ensemble_does_not_take_the_folder_of_a_run(tmp_path):
  config = ensemble(tmp_path)
  run = Path(config.ensemble.members[0])
  before = contents(run)
  with pytest.raises(InputError, match="holds a run; choose another --workdir for the ensemble"):
    load_networks(config, run)
  assert contents(run) == before


@pytest.mark.parametrize("validation", [{}, {"dice": 0.0}])
def test_a_member_without_a_score_is_refused(tmp_path, monkeypatch, validation):
  config = ensemble(tmp_path)
  load = networks_module.load_averaged
  monkeypatch.setattr(
    networks_module,
    "load_averaged",
    lambda *args: (lambda found: (found[0], {**found[1], "validation": validation}))(load(*args)),
  )
  with pytest.raises(InputError, match="no validation Dice above 0 to be weighted by"):
    load_networks(config, tmp_path / "ensemble")


def test_a_released_name_means_the_released_weights_whatever_lies_around(tmp_path, monkeypatch):
  copy_of_run(tmp_path).rename(tmp_path / "base")
  monkeypatch.chdir(tmp_path)
  config = resolved(ensemble__members=("base", "./base"))
  with pytest.raises(InputError, match="different validation cases"):  # of two networks, then
    load_networks(config, tmp_path / "ensemble")


@pytest.mark.parametrize("damage", ["{", "[]", '{"members": [{"run": 1}]}'])
def test_damaged_weights_are_refused(tmp_path, damage):
  config, workdir = ensemble(tmp_path), tmp_path / "ensemble"
  workdir.mkdir()
  (workdir / ENSEMBLE_FILE).write_text(damage)
  with pytest.raises(InputError, match=ENSEMBLE_FILE):
    load_networks(config, workdir)


def test_weights_of_other_checkpoints_are_refused(tmp_path):
  config, workdir = ensemble(tmp_path), tmp_path / "ensemble"
  load_networks(config, workdir)
  with config.unlocked():
    config.eval.checkpoint = "latest"
  with pytest.raises(InputError, match="other members or checkpoints"):
    load_networks(config, workdir)


def test_members_selected_on_different_cases_are_refused(tmp_path):
  config = ensemble(tmp_path)
  path = Path(config.ensemble.members[1]) / "cases.json"
  cases = json.loads(path.read_text())
  path.write_text(json.dumps({**cases, "val": cases["val"][:1]}))
  with pytest.raises(InputError, match="different validation cases"):
    load_networks(config, tmp_path / "ensemble")
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
    load_networks(config, tmp_path / "ensemble")
  assert config.ensemble.members[1] in str(error.value)
  assert len(str(error.value).splitlines()) == 1
  assert not (tmp_path / "ensemble").exists()
  path.write_text((Path(config.ensemble.members[0]) / "config.json").read_text())
  assert len(load_networks(config, tmp_path / "ensemble")) == 2


def test_networks_see_what_the_configuration_cleans(fields):
  """The map of a network that says a photograph's brightness follows the cleaning."""
  plain = maps_of(brightness(96), [96], **fields)
  cleaned = maps_of(brightness(96), [96], **fields, preprocess__color_constancy="shades_of_grey")
  for case_id, (probs, _, case) in cleaned.items():
    assert np.any(probs != plain[case_id][0])
    np.testing.assert_array_equal(case.image, plain[case_id][2].image)
    np.testing.assert_array_equal(case.mask, plain[case_id][2].mask)


@pytest.mark.parametrize("damage", [None, "{", '{"train": []}', "[]"])
def test_a_run_that_does_not_say_what_it_saw_is_refused(tmp_path, damage):
  workdir = copy_of_run(tmp_path)
  path = workdir / "cases.json"
  path.write_text(damage) if damage else path.unlink()
  with pytest.raises(InputError, match=r"cases\.json"):
    load_networks(resolved(), workdir)


def test_probabilities_are_float32_whatever_the_network_computes_in():
  class Half(Brightness):
    def apply(self, variables, image):
      return super().apply(variables, image).astype(jnp.bfloat16)

  maps = create_predict([(Half(), 8)])([{}], {8: np.zeros((1, 8, 8, 3), np.uint8)})
  assert maps.probs.dtype == maps.disagreement.dtype == jnp.float32
