"""Evaluation: every case once, at its photograph's size, with scores that its masks bear out."""

import csv
import json

import cv2
import numpy as np
import pytest
from small_runs import (
  ROOT,
  SIZES,
  compiled_as_by_launch,
  copy_of_run,
  launch,
  network_of,
  resolved,
  small_config,
  write_case,
  write_sizes,
  write_splits,
)

from medlitenet_jax import config as config_lib
from medlitenet_jax.config import for_evaluation
from medlitenet_jax.data.cases import split_hash
from medlitenet_jax.inference.members import open_members
from medlitenet_jax.inference.networks import create_network
from medlitenet_jax.inference.trained import open_trained
from medlitenet_jax.modes.evaluate import evaluate
from medlitenet_jax.system import limits
from medlitenet_jax.system.errors import InputError

SCORES = ("dice", "iou", "accuracy", "sensitivity", "specificity", "threshold_jaccard")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """A folder with a test split of six photographs of six sizes, and a training case."""
  return write_sizes(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def evaluated(photographs, tmp_path_factory):
  """The workdir of a run that was evaluated on those photographs by a command."""
  workdir = copy_of_run(tmp_path_factory.mktemp("evaluated"))
  done = launch(
    "--mode=evaluate",
    f"--workdir={workdir}",
    "--config.data.source=folder",
    f"--config.data.root={photographs}",
  )
  assert done.returncode == 0, done.stderr
  assert "threshold_jaccard" in done.stdout
  return workdir


def summary_of(workdir, split="test"):
  return json.loads((workdir / "eval" / split / "summary.json").read_text())


def leaves(tree, name=""):
  """What a summary holds by its path, but for where and by which command it was made."""
  if not isinstance(tree, dict | list):
    return {} if name.endswith(("/command", "/run")) else {name: tree}
  items = tree.items() if isinstance(tree, dict) else enumerate(tree)
  return {k: v for key, part in items for k, v in leaves(part, f"{name}/{key}").items()}


def cases_of(workdir, split="test"):
  with (workdir / "eval" / split / "cases.csv").open(newline="") as file:
    return list(csv.DictReader(file))


def definition(prediction, truth):
  """The six scores of a case from sets of pixels."""
  tp, fp = np.sum(prediction & truth), np.sum(prediction & ~truth)
  fn, tn = np.sum(~prediction & truth), np.sum(~prediction & ~truth)

  def ratio(part, whole):
    return part / whole if whole else 1.0

  iou = ratio(tp, tp + fp + fn)
  return {
    "dice": ratio(2 * tp, 2 * tp + fp + fn),
    "iou": iou,
    "accuracy": (tp + tn) / prediction.size,
    "sensitivity": ratio(tp, tp + fn),
    "specificity": ratio(tn, tn + fp),
    "threshold_jaccard": iou if iou >= 0.65 else 0.0,
  }


def test_a_row_and_a_mask_for_every_case(evaluated):
  assert [row["case_id"] for row in cases_of(evaluated)] == sorted(SIZES)
  assert summary_of(evaluated)["cases"] == len(SIZES)
  folder = evaluated / "eval" / "test" / "masks"
  assert {path.name for path in folder.iterdir()} == {f"{c}_segmentation.png" for c in SIZES}
  for case_id, size in SIZES.items():
    mask = cv2.imread(str(folder / f"{case_id}_segmentation.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == size and mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
  for row in cases_of(evaluated):
    assert (int(row["height"]), int(row["width"])) == SIZES[row["case_id"]]
    assert sum(int(row[n]) for n in ("tp", "fp", "fn", "tn")) == np.prod(SIZES[row["case_id"]])


def test_scores_follow_from_the_masks_written(evaluated, photographs):
  scores = {}
  for case_id in SIZES:
    name = f"{case_id}_segmentation.png"
    prediction, truth = (
      cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED) == 255
      for folder in (evaluated / "eval" / "test" / "masks", photographs / "masks")
    )
    scores[case_id] = definition(prediction, truth)
  for row in cases_of(evaluated):
    for name in SCORES:
      assert float(row[name]) == pytest.approx(scores[row["case_id"]][name], abs=1e-12)
  summary = summary_of(evaluated)
  for name in SCORES:
    column = [case[name] for case in scores.values()]
    assert summary[name].keys() == {"mean", "std", "ci95"}
    assert summary[name]["ci95"][0] <= summary[name]["mean"] <= summary[name]["ci95"][1]
    assert summary[name]["mean"] == pytest.approx(np.mean(column), abs=1e-12)
    assert summary[name]["std"] == pytest.approx(np.std(column), abs=1e-12)
  assert 0 < summary["dice"]["mean"] < 1  # else the comparison says little


def test_summary_says_how_it_was_scored(evaluated):
  summary = summary_of(evaluated)
  assert {*SCORES, "cases", "protocol", "boundary", "pooled", "network_size"} <= set(summary)
  protocol = summary["protocol"]
  assert protocol["split"] == "test" and protocol["split_hash"] == split_hash(list(SIZES))
  assert protocol["threshold"] == 0.5 and protocol["network_size"] == 96
  assert "own size" in protocol["scored_at"] and "per image" in protocol["aggregation"]
  assert {"empty_masks", "test_time_augmentation", "postprocessing", "precision"} <= set(protocol)
  dice = {}
  for line in (evaluated / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    if row["split"] == "val":
      dice[row["step"]] = row["dice"]
  assert protocol["checkpoint"]["step"] == max(dice, key=dice.get)
  assert protocol["checkpoint"]["validation"]["dice"] == max(dice.values())


def test_terciles_are_scored_in_every_way(evaluated):
  """Two cases each, whose means and pools are those of their rows."""
  rows = {row["case_id"]: row for row in cases_of(evaluated)}
  summary = summary_of(evaluated)
  ranked = sorted(rows.values(), key=lambda row: float(row["lesion_fraction"]))
  for place, part in enumerate(summary["terciles"]["lesion_fraction"]):
    own = ranked[2 * place : 2 * place + 2]
    assert part["cases"] == 2 and part["from"] == float(own[0]["lesion_fraction"])
    for name in (*SCORES, "hd95", "assd", "boundary_f"):
      mean = np.mean([float(row[name]) for row in own])
      assert part["scores"][name]["mean"] == pytest.approx(mean)
    for prefix, pooled in (("", part["pooled"]), ("network_", part["network_size"]["pooled"])):
      tp, fp, fn = (sum(int(row[prefix + n]) for row in own) for n in ("tp", "fp", "fn"))
      assert pooled["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert part["network_size"]["per_image"].keys() == set(SCORES)


def test_uncertainty_is_drawn_for_every_case(evaluated, tmp_path):
  """One network that looks once does not disagree with itself; six views do."""
  workdir = copy_of_run(tmp_path)
  run_in_process(workdir, eval__tta="six", data__max_eval_images=2)
  for folder, cases, disagrees in ((evaluated, 6, False), (workdir, 2, True)):
    means = {"uncertainty": [], "disagreement": []}
    for kind, values in means.items():
      for path in (folder / "eval" / "test" / kind).iterdir():
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (96, 96) and picture.dtype == np.uint8
        values.append(picture.mean())
      assert len(values) == cases
    assert min(means["uncertainty"]) > 0
    assert (max(means["disagreement"]) > 0) == disagrees


def test_maps_that_do_not_fit_on_the_disk_are_refused_before_anything_is_computed(
  tmp_path, monkeypatch
):
  run = copy_of_run(tmp_path)
  config = resolved()
  networks = [create_network(open_trained(run), config)]
  monkeypatch.setattr(limits, "free_disk", lambda folder: 6 * 96**2 / 4 - 1)
  with pytest.raises(InputError, match=r"maps of 6 cases take at least .* make room"):
    evaluate(config, networks, run, "a test")
  assert not (run / "eval").exists()


def test_members_that_have_seen_a_case_are_refused(tmp_path):
  members = (str(copy_of_run(tmp_path)),) * 2
  config = resolved(ensemble__members=members, eval__split="val")
  workdir = tmp_path / "ensemble"
  networks = open_members(config, workdir)
  with pytest.raises(InputError, match="selected by 3 of its 3 cases"):
    evaluate(config, networks, workdir, "a test")
  assert not (tmp_path / "ensemble" / "eval").exists()


def test_an_ensemble_is_scored_and_found_again(tmp_path):
  """By command, from its recipe; afterwards its folder alone is enough."""
  members = (str(copy_of_run(tmp_path)),) * 2
  workdir = tmp_path / "ensemble"
  fields = [f"--config.ensemble.members={members!r}", "--config.data.source=synthetic"]
  fields += ["--config.data.synthetic.num_test=2", "--config.data.synthetic.image_size=80"]
  recipe = "--config=" + str(ROOT / "configs" / "ensemble.py")
  done = launch(recipe, "--mode=evaluate", f"--workdir={workdir}", *fields)
  assert done.returncode == 0, done.stderr
  summary = summary_of(workdir)
  assert summary["protocol"]["model"] == "ensemble" and summary["cases"] == 2
  assert [m["weight"] for m in summary["protocol"]["members"]] == [0.5, 0.5]
  assert summary["protocol"]["test_time_augmentation"] == "six"
  again = launch("--mode=evaluate", f"--workdir={workdir}")
  assert again.returncode == 0, again.stderr
  assert leaves(summary_of(workdir)) == leaves(summary)


def test_threshold_of_validation_is_used_and_reported(tmp_path):
  workdir = copy_of_run(tmp_path)
  summary = run_in_process(workdir, eval__threshold=0.0, data__max_eval_images=2)
  chosen = json.loads((workdir / "threshold.json").read_text())["threshold"]
  assert summary["protocol"]["threshold"] == chosen
  assert "val" in summary["protocol"]["threshold_chosen_on"]
  with pytest.raises(InputError, match="among what is scored"):
    run_in_process(workdir, eval__threshold=0.0, eval__split="val")


def test_grid_is_a_picture(evaluated):
  picture = cv2.imread(str(evaluated / "eval" / "test" / "figures" / "grid.png"))
  assert picture is not None and min(picture.shape[:2]) > 300 and picture.std() > 5


def test_todays_recipe_does_not_matter(evaluated, photographs, tmp_path):
  """Another file gives the same network with other settings; the workdir's are what counts."""
  workdir = copy_of_run(tmp_path)
  recipe = tmp_path / "today.py"
  recipe.write_text(
    "from configs import base\n"
    "def get_config():\n"
    "  config = base.get_config()\n"
    "  config.model.name = 'stub'\n"
    "  config.train.image_sizes = (160,)\n"
    "  config.eval.threshold = 0.9\n"
    "  config.eval.batch_size = 3\n"
    "  config.eval.split = 'val'\n"
    "  config.seed = 77\n"
    "  return config\n"
  )
  done = launch(
    f"--config={recipe}",
    "--mode=evaluate",
    f"--workdir={workdir}",
    "--config.data.source=folder",
    f"--config.data.root={photographs}",
  )
  assert done.returncode == 0, done.stderr
  assert leaves(summary_of(workdir)) == leaves(summary_of(evaluated))
  assert (workdir / "config.json").read_text() == (evaluated / "config.json").read_text()


def run_in_process(workdir, **overrides):
  settings = {name.replace("__", "."): value for name, value in overrides.items()}
  with compiled_as_by_launch():
    config = for_evaluation(config_lib.load(workdir), settings, "cpu", small_config())
    return evaluate(config, [network_of(workdir, config)], workdir, "a test")


def test_other_split_and_limit_leave_the_first_results_alone(evaluated):
  before = (evaluated / "eval" / "test" / "summary.json").read_bytes()
  summary = run_in_process(evaluated, eval__split="val", data__max_eval_images=2)
  assert summary["cases"] == 2 and summary == summary_of(evaluated, "val")
  assert len(cases_of(evaluated, "val")) == 2
  assert (evaluated / "eval" / "test" / "summary.json").read_bytes() == before
  assert {path.name for path in (evaluated / "eval").iterdir()} == {"test", "val", "starts.jsonl"}
  summary = run_in_process(
    evaluated, eval__split="val", data__max_eval_images=1, eval__checkpoint="latest"
  )
  assert summary["protocol"]["checkpoint"]["step"] == 8
  masks = evaluated / "eval" / "val" / "masks"
  assert len(list(masks.iterdir())) == 1  # none is left over from the evaluation before


def test_evaluation_gives_the_scores_that_training_selected_by(tmp_path):
  """The same averaged network on the same split: nothing else was validated than is evaluated."""
  summary = run_in_process(copy_of_run(tmp_path), eval__split="val")
  validation = summary["protocol"]["checkpoint"]["validation"]
  for name in SCORES:
    assert summary[name]["mean"] == pytest.approx(validation[name], abs=1e-9)


def test_evaluation_without_a_checkpoint_changes_nothing(tmp_path):
  config_lib.save(resolved(), tmp_path)
  with pytest.raises(InputError, match="no checkpoint"):
    network_of(tmp_path, config_lib.load(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_evaluation_of_what_cannot_be_read_keeps_the_last_results(evaluated, photographs, tmp_path):
  workdir = copy_of_run(tmp_path)
  run_in_process(workdir, data__max_eval_images=1)
  before = (workdir / "eval" / "test" / "summary.json").read_bytes()
  root = tmp_path / "broken"
  write_case(root, "whole", suffix="jpg")
  write_case(root, "zut", suffix="jpg")
  write_splits(root, {"whole": "test", "zut": "test"})
  path = root / "images" / "zut.jpg"
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(InputError, match=r"zut\.jpg"):
    run_in_process(workdir, data__source="folder", data__root=str(root))
  assert (workdir / "eval" / "test" / "summary.json").read_bytes() == before
