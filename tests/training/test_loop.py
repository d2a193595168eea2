"""A run: what it leaves behind, and that stopping and going on changes not one bit of it."""

import contextlib
import csv
import json

import cv2
import jax
import numpy as np
import pytest
from compare_runs import SPEED, assert_identical, flat, lines, saved_state, without_speed
from small_runs import (
  CHECKPOINT_STEPS,
  FIELDS,
  compiled_as_by_launch,
  contents,
  copy_of_run,
  create_stub,
  finished_run,
  launch,
  medlitenet_run,
  resolved,
  small_arguments,
)

from medlitenet_jax import config as config_lib
from medlitenet_jax.config import differences
from medlitenet_jax.modes import train as mode
from medlitenet_jax.modes.train import train
from medlitenet_jax.scores.metrics import SCORES
from medlitenet_jax.speed.trace import TABLE_FILE
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.layout import whole_steps
from medlitenet_jax.training.loop import Start
from medlitenet_jax.training.optim import pack
from medlitenet_jax.training.run import create_plan
from medlitenet_jax.training.state import fit

STEPS = FIELDS["train.max_steps"]
LATER = "(at 96 pixels, which come later in training)"


def opened(workdir):
  return contextlib.closing(Checkpoints(workdir, read_only=True))


# Interrupts a run once a line is written that no checkpoint covers.
INTERRUPTION = f"""
from medlitenet_jax.training import log
original = log.MetricsLog.write
def write(self, *, step, **kwargs):
  original(self, step=step, **kwargs)
  if step > {CHECKPOINT_STEPS[0]}:
    raise KeyboardInterrupt
log.MetricsLog.write = write
"""


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory):
  """A run interrupted behind its first checkpoint, in the middle of an epoch and of an update."""
  workdir = tmp_path_factory.mktemp("train") / "interrupted"
  finished_run()  # whose compiled programs this one can use
  done = launch(*small_arguments(), f"--workdir={workdir}", patch=INTERRUPTION)
  assert done.returncode == 130, done.stderr
  assert "Traceback" not in done.stderr and "goes on" in done.stdout + done.stderr
  assert LATER in done.stdout + done.stderr  # of batch 3
  return workdir


@pytest.fixture(scope="module")
def resumed_run(interrupted_run):
  """The same, started again by the same command."""
  assert [row["step"] for row in lines(interrupted_run)] == [1, 2, 3, 3, 4]
  with opened(interrupted_run) as checkpoints:
    assert checkpoints.latest_step == CHECKPOINT_STEPS[0]
  with (interrupted_run / "metrics.jsonl").open("a") as file:
    file.write('{"step": 5, "epo')  # as a power cut leaves it
  done = launch(*small_arguments(), f"--workdir={interrupted_run}")
  assert done.returncode == 0, done.stderr
  assert "Resuming" in done.stdout + done.stderr
  assert "val Dice" in done.stdout + done.stderr and LATER not in done.stdout + done.stderr
  return interrupted_run


def test_resumed_run_ends_bit_for_bit_as_a_straight_one(resumed_run):
  straight, resumed = (saved_state(workdir, STEPS) for workdir in (finished_run(), resumed_run))
  for part in ("params", "ema_params", "batch_stats", "ema_batch_stats", "opt_state"):
    assert_identical(resumed[part], straight[part])
  assert_identical(resumed, straight)
  assert int(straight["micro_step"]) == STEPS and int(straight["skipped"]) == 0


def test_average_is_not_the_network_itself():
  state = saved_state(finished_run(), STEPS)
  for part, current in (("params", pack(state["params"])), ("batch_stats", state["batch_stats"])):
    averaged, current = flat(state[f"ema_{part}"]), flat(current)
    assert averaged.keys() == current.keys()
    assert any(np.any(averaged[name] != current[name]) for name in current)


def test_metrics_of_a_resumed_run_are_those_of_a_straight_one(resumed_run):
  assert without_speed(lines(resumed_run)) == without_speed(lines(finished_run()))


def test_metrics_have_each_step_once():
  rows = lines(finished_run())
  steps = {s: [row["step"] for row in rows if row["split"] == s] for s in ("train", "val")}
  assert steps == {"train": list(range(1, 9)), "val": list(CHECKPOINT_STEPS)}
  for row in rows:
    assert row["epoch"] == pytest.approx(row["step"] * 4 / 13, abs=1e-4)
    assert all(np.isfinite(value) for name, value in row.items() if name != "split")
    if row["split"] == "val":
      assert set(SCORES) <= row.keys()
    else:
      assert {"loss", "dice", "grad_norm", "skipped", "learning_rate", *SPEED} <= row.keys()
      assert row["image_size"] == (64 if row["step"] <= 4 else 96)


def test_schedule_ends_at_its_final_rate():
  rates = [row["learning_rate"] for row in lines(finished_run()) if row["split"] == "train"]
  config = resolved()
  assert rates == sorted(rates, reverse=True)
  assert rates[-1] == pytest.approx(config.optim.final_learning_rate)


def test_workdir_holds_what_the_readme_says():
  workdir = finished_run()
  assert not differences(config_lib.load(workdir), resolved())
  assert cv2.imread(str(workdir / "figures" / "curves.png")).std() > 1
  assert list(workdir.glob("events.out.tfevents.*"))
  kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
  with opened(workdir) as checkpoints:
    assert kept == {checkpoints.best_step, STEPS}
    dice = {row["step"]: row["dice"] for row in lines(workdir) if row["split"] == "val"}
    assert dice[checkpoints.best_step] == max(dice.values())
    assert checkpoints.metrics(STEPS)["dice"] == dice[STEPS]


def test_profile_window_writes_a_trace():
  traces = list((medlitenet_run() / "profile").rglob("*.xplane.pb"))
  assert len(traces) == 1 and traces[0].stat().st_size > 1000


def test_profile_window_tells_where_the_time_went():
  with (medlitenet_run() / "profile" / TABLE_FILE).open() as file:
    seconds = {row["scope"]: float(row["seconds"]) for row in csv.DictReader(file)}
  for part in ("encoder", "mixer", "gate", "aspp", "decoder", "loss"):
    assert seconds[part] > 0, part
  assert seconds["encoder gradient"] > 0


def test_finished_run_started_again_stays_as_it_is(tmp_path):
  workdir = copy_of_run(tmp_path)
  before = contents(workdir)
  done = launch(*small_arguments(), f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  after = contents(workdir)
  new = after.keys() - before.keys()
  assert all(name.startswith("events.out.tfevents") for name in new)
  changed = {name for name in before if after.get(name) != before[name]}
  assert changed <= {"figures/curves.png", "config.json", "starts.jsonl"}
  loaded = [json.loads(files["config.json"]) for files in (before, after)]
  for tree in loaded:
    del tree["profile"]  # the first call had a window, which is not part of what is learned
  assert loaded[0] == loaded[1]


def test_run_may_be_resumed_with_other_threads_but_not_with_another_rate(tmp_path):
  workdir = copy_of_run(tmp_path)
  train(resolved(data__num_threads=1, eval__split="val"), workdir)
  before = contents(workdir)
  with pytest.raises(InputError, match=r"config\.optim\.learning_rate=0\.25 \(was 0\.005\)"):
    train(resolved(optim__learning_rate=0.25), workdir)
  with pytest.raises(InputError, match=r"config\.seed cannot change within a run"):
    train(resolved(optim__learning_rate=0.25, seed=7), workdir)
  assert contents(workdir) == before


def test_a_run_that_is_longer_than_asked_is_left_as_it_is(tmp_path):
  workdir = copy_of_run(tmp_path)
  before = contents(workdir)
  with pytest.raises(InputError, match="has seen 8 batches, more than the 5 asked"):
    train(resolved(train__max_steps=5), workdir, force=True)
  assert contents(workdir) == before


def test_workdir_that_is_not_a_run_is_left_alone(tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  before = contents(tmp_path)
  for workdir in (tmp_path, tmp_path / "thesis.tex"):
    with pytest.raises(InputError, match="--workdir"):
      train(resolved(), workdir)
  assert contents(tmp_path) == before


def test_length_of_a_run():
  config = resolved(train__max_steps=0, train__epochs=3)
  plan = create_plan(config, 13)
  assert (plan.total_steps, plan.validate_every_steps) == (10, 3)  # 39 cases in batches of 4
  config = resolved(train__max_steps=7, train__epochs=3)
  assert create_plan(config, 13).total_steps == 7
  assert create_plan(config, 1).validate_every_steps == 1


@pytest.mark.parametrize(("epochs", "least", "every"), [(1, 20, 21), (2, 20, 24), (5, 2, 15)])
def test_validations_come_after_whole_epochs_of_enough_batches(epochs, least, every):
  fields = {"train__validate_every_epochs": epochs, "train__validate_min_steps": least}
  plan = create_plan(resolved(**fields), 13)  # 3 batches an epoch
  assert plan.validate_every_steps == every


def test_a_run_ends_once_nothing_better_is_in_sight(tmp_path, monkeypatch, caplog):
  dice = iter((0.6, 0.7, 0.5, 0.7, 0.9))

  def create_scoring(*_):
    return lambda *_: [dict.fromkeys(SCORES, next(dice))]

  monkeypatch.setattr(mode, "create_scoring", create_scoring)
  fields = {"train__max_steps": 30, "train__patience": 2, "train__image_sizes": (64,)}
  caplog.set_level("INFO")
  with compiled_as_by_launch():
    for _ in range(2):  # the second call has nothing left to do
      train(resolved(**fields), tmp_path)
      scores = [(row["step"], row["dice"]) for row in lines(tmp_path) if row["split"] == "val"]
      assert scores == [(3, 0.6), (6, 0.7), (9, 0.5), (12, 0.7)]  # as good is not better
      assert max(row["step"] for row in lines(tmp_path)) == 12
  with opened(tmp_path) as checkpoints:
    assert (checkpoints.best_step, checkpoints.latest_step) == (6, 12)
  assert caplog.text.count("no validation since batch 6 gave a better Dice") == 2


def test_a_run_that_starts_from_weights_scores_them_first_and_once(tmp_path, monkeypatch, caplog):
  """Stopped during that validation, and by a kill behind it; the weights win a tie."""
  scored, actions = [], []

  def create_scoring(*_):
    def score(variables, stopped):
      scored.append(float(variables["params"]["head"]["bias"][0]))
      if (action := actions.pop(0)) == "stop":
        return None
      if action == "die":
        raise KeyboardInterrupt
      return [dict.fromkeys(SCORES, 0.5)]

    return score

  model = create_stub()
  variables = model.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
  variables["params"]["head"]["bias"] = np.full(1, 0.25, np.float32)
  start = Start("mine", variables, {"train": [], "val": []})
  monkeypatch.setattr(mode, "create_scoring", create_scoring)
  monkeypatch.setattr(mode, "_read_start", lambda _, at: None if whole_steps(at) else start)
  config = resolved(train__start_from="mine", train__max_steps=6, train__image_sizes=(64,))
  workdir = tmp_path / "run"
  caplog.set_level("INFO")
  with compiled_as_by_launch():
    # Cut short before the first batch, as by a signal, and killed in the next validation; then
    # killed in that one alone.
    for actions[:], kept in ((["stop", "die"], []), ([None, "die"], [0])):
      with pytest.raises(KeyboardInterrupt):
        train(config, workdir)
      assert whole_steps(workdir) == kept
    scored.clear()
    actions[:] = [None, None]
    train(config, workdir)
  assert 0.25 not in scored  # not scored again
  rows = [(row["step"], row["dice"]) for row in lines(workdir) if row["split"] == "val"]
  assert rows == [(0, 0.5), (3, 0.5), (6, 0.5)]
  with opened(workdir) as checkpoints:
    assert (checkpoints.best_step, checkpoints.latest_step) == (0, 6)
  assert "Nothing beat mine" in caplog.text


def test_a_run_takes_over_what_fits_and_starts_the_rest_at_random(tmp_path, monkeypatch, caplog):
  model = create_stub()
  variables = model.init(jax.random.key(9), np.zeros((1, 64, 64, 3), np.float32))
  variables["params"]["stem"]["kernel"] += 0.25
  variables["params"]["head"]["kernel"] = np.zeros((1, 1, 8, 2), np.float32)  # of another network
  start = Start("mine", variables, {"train": ["seen"], "val": []}, partly=True)
  scored = []

  def create_scoring(*_):
    def score(variables, _):
      scored.append(jax.tree.map(np.array, variables["params"]))
      return [dict.fromkeys(SCORES, 0.5)]

    return score

  monkeypatch.setattr(mode, "create_scoring", create_scoring)
  monkeypatch.setattr(mode, "_read_start", lambda *_: start)
  fields = {"train__start_from": "mine", "train__start_partly": True, "train__image_sizes": (64,)}
  caplog.set_level("INFO")
  with compiled_as_by_launch():
    train(resolved(**fields, train__max_steps=2, optim__learning_rate=1e-12), tmp_path)
  count = len(jax.tree.leaves(variables))
  said = f"{count - 1} of {count} arrays fit; at random start some or all of: head."
  assert said in caplog.text
  assert "Nothing beat" not in caplog.text
  assert not any(row["step"] == 0 for row in lines(tmp_path) if row["split"] == "val")
  (found,) = scored
  np.testing.assert_allclose(found["stem"]["kernel"], variables["params"]["stem"]["kernel"])
  assert found["head"]["kernel"].shape == (1, 1, 8, 1) and np.any(found["head"]["kernel"])
  assert "seen" in json.loads((tmp_path / "cases.json").read_text())["before"]


def test_nothing_to_start_from_and_nothing_that_fits_is_said(tmp_path):
  with pytest.raises(InputError, match="start_partly: set "):
    train(resolved(train__start_partly=True), tmp_path / "run")
  with pytest.raises(InputError, match="keep_statistics: there are none to keep"):
    train(resolved(train__keep_statistics=True), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  with pytest.raises(InputError, match="no array of those weights fits"):
    fit({"params": {"a": np.zeros(3)}}, {"params": {"a": np.zeros(2)}, "batch_stats": {}})


def test_image_sizes_share_a_run_equally():
  config = resolved(train__image_sizes=(64, 96, 128), train__max_steps=9)
  plan = create_plan(config, 13)
  sizes = [plan.image_size_at(step) for step in range(9)]
  assert sizes == [64] * 3 + [96] * 3 + [128] * 3
  assert plan.image_size_at(100) == 128  # batches are prepared ahead of the run's end


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5, 9, 11])
def test_which_sizes_are_yet_to_come(steps, mixed):
  fields = {"train__image_sizes": (64, 96, 128), "train__mixed_sizes": mixed}
  plan = create_plan(resolved(**fields, train__max_steps=steps), 13)
  sizes = [plan.image_size_at(step) for step in range(steps)]
  for step in range(steps + 1):
    for size in (64, 96, 128, 192):
      assert plan.yet_to_come(size, step) == (size in sizes[step:] and size not in sizes[:step])
