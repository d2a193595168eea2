"""Checkpoints: bit for bit, newest and best both kept, another network refused."""

import gc
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_checkpoints import at, batches, opened, save, shapes

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.layout import HALF_WRITTEN, REMOVED, whole_steps

# A restore that fails leaves coroutines of Orbax behind, of which Python warns.
refused = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


def assert_identical(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_state_and_position_come_back_exactly(tmp_path, precision):
  state, data = at(4, precision=precision), batches()
  seen = [next(data)["case_id"] for _ in range(3)]
  with opened(tmp_path) as checkpoints:
    checkpoints.save(state, data, {"dice": 0.5})
    expected = [next(data) for _ in range(3)]
  moved = batches()
  with opened(tmp_path) as checkpoints:
    assert checkpoints.latest_step == 4
    restored = checkpoints.restore(4, shapes(precision=precision), moved)
  assert_identical(restored, state)
  for batch in expected:
    found = next(moved)
    assert found["case_id"] == batch["case_id"]
    np.testing.assert_array_equal(found["image"], batch["image"])
  assert seen != [batch["case_id"] for batch in expected]


def test_position_of_several_processes_serves_any_number(tmp_path):
  data = batches()
  next(data)
  with opened(tmp_path) as checkpoints:
    checkpoints.save(at(4), data, {"dice": 0.5})
  expected = next(data)
  folder = tmp_path / "checkpoints" / "4" / "data"
  text = (folder / "process_0-of-1.json").read_text()
  (folder / "process_0-of-1.json").unlink()
  for name in ("process_0-of-2.json", "process_1-of-2.json"):
    (folder / name).write_text(text)
  moved = batches()
  with opened(tmp_path) as checkpoints:
    checkpoints.restore(4, shapes(), moved)
  assert next(moved)["case_id"] == expected["case_id"]


@pytest.mark.parametrize("text", [None, "", "{}", "[1]"])
def test_damaged_position_is_refused(tmp_path, text):
  save(tmp_path, {1: 0.5})
  path = tmp_path / "checkpoints" / "1" / "data" / "process_0-of-1.json"
  path.unlink()
  if text is not None:
    path.write_text(text)
  with opened(tmp_path) as checkpoints, pytest.raises(InputError, match=r"/1: cannot be restored"):
    checkpoints.restore(1, shapes(), batches())


@pytest.mark.parametrize(
  ("dice", "kept", "best"),
  [
    ((0.3, 0.9, 0.5, 0.4), {2, 4}, 2),
    ((0.3, 0.4, 0.5, 0.9), {4}, 4),
    ((0.9, 0.1, 0.2, 0.3), {1, 4}, 1),
  ],
)
def test_newest_and_best_are_kept(tmp_path, dice, kept, best):
  save(tmp_path, dict(enumerate(dice, start=1)))
  assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == kept
  for read_only in (False, True):
    with opened(tmp_path, read_only=read_only) as checkpoints:
      assert (checkpoints.latest_step, checkpoints.best_step) == (4, best)
  with opened(tmp_path) as checkpoints:
    for step in kept:
      assert_identical(checkpoints.restore(step, shapes(), batches()), at(step))


def test_scores_come_back(tmp_path):
  save(tmp_path, {1: 0.75, 2: 0.5})
  with opened(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.metrics(1) == {"dice": 0.75, "iou": 0.375}
    assert checkpoints.metrics(2)["dice"] == 0.5


def variable_shapes(**kwargs):
  state = shapes(**kwargs)
  return {"params": state.params, "batch_stats": state.batch_stats}


@pytest.mark.parametrize("norm", [True, False])
def test_average_alone(tmp_path, norm):
  state = at(3, norm=norm)
  assert bool(state.ema_batch_stats) == norm
  with opened(tmp_path) as checkpoints:
    checkpoints.save(state, batches(), {"dice": 0.5})
  with opened(tmp_path, read_only=True) as checkpoints:
    variables = checkpoints.restore_ema(3, variable_shapes(norm=norm))
  assert_identical(variables, state.ema_variables)


def test_a_network_without_norms_is_saved_and_resumed(tmp_path):
  state, data = at(2, norm=False), batches()
  next(data)
  with opened(tmp_path) as checkpoints:
    checkpoints.save(state, data, {"dice": 0.5})
  expected, moved = next(data)["case_id"], batches()
  with opened(tmp_path) as checkpoints:
    restored = checkpoints.resume(shapes(norm=False), moved)
  assert_identical(restored, state)
  assert restored.batch_stats == restored.ema_batch_stats == {}
  assert next(moved)["case_id"] == expected


@refused
@pytest.mark.parametrize("saved", [True, False])
def test_the_average_of_a_network_with_other_norms_is_refused(tmp_path, saved):
  with opened(tmp_path) as checkpoints:
    checkpoints.save(at(1, norm=saved), batches(), {"dice": 0.5})
  with opened(tmp_path, read_only=True) as checkpoints, pytest.raises(InputError, match=r"/1: "):
    checkpoints.restore_ema(1, variable_shapes(norm=not saved))
  gc.collect()


@refused
@pytest.mark.parametrize("other", [{"features": 4}, {"precision": "float16"}])
def test_another_state_is_refused(tmp_path, other):
  save(tmp_path, {1: 0.5})
  with opened(tmp_path) as checkpoints, pytest.raises(InputError) as error:
    checkpoints.restore(1, shapes(**other), batches())
  gc.collect()
  assert str(tmp_path) in str(error.value) and len(str(error.value).splitlines()) == 1


@refused
@pytest.mark.parametrize("kind", ["wider", "other_name", "one_more_layer"])
def test_average_of_another_network_is_refused(tmp_path, kind):
  save(tmp_path, {1: 0.5})
  state = shapes(features=4) if kind == "wider" else shapes()
  params = dict(state.params)
  if kind == "other_name":
    params["dense"] = params.pop("conv")
  elif kind == "one_more_layer":
    params["dense"] = params["conv"]
  with opened(tmp_path, read_only=True) as checkpoints, pytest.raises(InputError, match=r"/1: "):
    checkpoints.restore_ema(1, {"params": params, "batch_stats": state.batch_stats})
  gc.collect()


@refused
def test_damaged_checkpoint_is_refused(tmp_path):
  save(tmp_path, {1: 0.5})
  for path in (tmp_path / "checkpoints" / "1" / "state").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  with opened(tmp_path) as checkpoints, pytest.raises(InputError, match="checkpoints"):
    checkpoints.restore(1, shapes(), batches())
  gc.collect()


@refused
@pytest.mark.parametrize("part", ["state", "data", "_CHECKPOINT_METADATA"])
def test_damaged_newest_is_put_aside_and_the_one_before_taken(tmp_path, part, caplog):
  save(tmp_path, {1: 0.9, 2: 0.5})
  damaged = tmp_path / "checkpoints" / "2" / part
  (tmp_path / "checkpoints" / "2.damaged" / "state").mkdir(parents=True)  # of an earlier time
  empty(damaged)
  with opened(tmp_path) as checkpoints:
    restored = checkpoints.resume(shapes(), batches())
    assert restored is not None
    assert_identical(restored, at(1))
    assert f"{tmp_path / 'checkpoints' / '2'}: damaged" in caplog.text
    assert "(None)" not in caplog.text
    assert checkpoints.latest_step == 1
    checkpoints.save(at(2), batches(), {"dice": 0.95})
  assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "2.damaged"}
  gc.collect()


def empty(folder):
  """Empties every file, as a power cut leaves them."""
  for path in (folder, *folder.rglob("*")):
    if path.is_file():
      path.write_bytes(b"")


@pytest.mark.parametrize("step", [1, 2])
def test_damaged_scores_are_taken_from_the_log(tmp_path, step, caplog):
  save(tmp_path, {1: 0.9, 2: 0.5})
  scores = {"dice": 0.25 + step / 4, "iou": 0.125}
  row = {"step": step, "epoch": 1.0, "split": "val"}
  others = [{**row, "split": "train", "loss": 1.0}, {**row, "step": 7, "dice": 1.0}]
  lines = [others[0], {**row, **scores}, others[1]]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  empty(tmp_path / "checkpoints" / str(step) / "metrics")
  with opened(tmp_path) as checkpoints:
    assert "taken from metrics.jsonl" in caplog.text
    assert checkpoints.metrics(step) == scores
    restored = checkpoints.resume(shapes(), batches())
    assert restored is not None
    assert_identical(restored, at(2))
  assert whole_steps(tmp_path) == [1, 2]


def test_scores_that_the_log_does_not_have_either_put_a_checkpoint_aside(tmp_path, caplog):
  save(tmp_path, {1: 0.9, 2: 0.5})
  empty(tmp_path / "checkpoints" / "1" / "metrics")
  with pytest.raises(InputError, match="run the command that trained it again"):
    Checkpoints(tmp_path, read_only=True)
  with opened(tmp_path) as checkpoints:
    assert (checkpoints.latest_step, checkpoints.best_step) == (2, 2)
  assert "kept as 1.damaged" in caplog.text


@pytest.mark.parametrize("damage", [empty, lambda path: path.unlink()])
def test_where_none_can_be_read_nothing_begins_anew(tmp_path, damage):
  save(tmp_path, {1: 0.9, 2: 0.5})
  for step in "12":
    damage(tmp_path / "checkpoints" / step / "_CHECKPOINT_METADATA")
  with pytest.raises(InputError, match=r"/2: cannot be restored .*_CHECKPOINT_METADATA"):
    Checkpoints(tmp_path)
  assert whole_steps(tmp_path) == [1, 2]
  for step in "12":
    (tmp_path / "checkpoints" / step).rename(tmp_path / "checkpoints" / f"{step}.damaged")
  with pytest.raises(InputError, match=r"/2\.damaged: cannot be restored"):
    Checkpoints(tmp_path)


@refused
def test_none_that_can_be_read_is_refused_and_stays(tmp_path):
  save(tmp_path, {1: 0.9, 2: 0.5})
  with opened(tmp_path) as checkpoints, pytest.raises(InputError, match="/2: cannot be restored"):
    checkpoints.resume(shapes(features=4), batches())
  gc.collect()
  assert whole_steps(tmp_path) == [1, 2]


def test_half_written_and_half_deleted_are_named_and_cleared_away(tmp_path, caplog):
  save(tmp_path, {1: 0.9})
  folder = tmp_path / "checkpoints"
  shutil.copytree(folder / "1" / "state", folder / f"2{HALF_WRITTEN}" / "state")
  shutil.copytree(folder / "1" / "state", folder / REMOVED / "0" / "state")
  with opened(tmp_path, read_only=True) as checkpoints:
    assert (checkpoints.latest_step, checkpoints.best_step) == (1, 1)
  assert len(list(folder.iterdir())) == 3
  with opened(tmp_path) as checkpoints:
    assert checkpoints.latest_step == 1 and not (folder / REMOVED).exists()
  assert f"{folder / '2'}{HALF_WRITTEN}: half-written; removed" in caplog.text
  assert [path.name for path in folder.iterdir()] == ["1"]


def test_one_saved_between_validations_is_newest_and_never_best(tmp_path):
  data = batches()
  with opened(tmp_path) as checkpoints:
    checkpoints.save(at(1), data, {"dice": 0.4})
    checkpoints.save(at(2), data)
    assert (checkpoints.latest_step, checkpoints.best_step) == (2, 1)
    assert checkpoints.metrics(2) == {}
    (tmp_path / "checkpoints" / "2" / "metrics").mkdir()  # as one leaves it who dies after that
    checkpoints.add_metrics(2, {"dice": 0.6})
    assert checkpoints.best_step == 2 and checkpoints.metrics(2) == {"dice": 0.6}
    checkpoints.save(at(3), data)
    checkpoints.save(at(4), data)
  assert whole_steps(tmp_path) == [2, 4]
  with opened(tmp_path, read_only=True) as checkpoints:
    assert (checkpoints.latest_step, checkpoints.best_step) == (4, 2)


def test_none_yet_and_nothing_created_for_a_reader(tmp_path):
  with opened(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.latest_step is None and checkpoints.best_step is None
  assert not list(tmp_path.iterdir())
