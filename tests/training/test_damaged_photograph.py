"""Reading or validating fails in a run: what was learned is saved, and the run goes on."""

import json

import pytest
from compare_runs import assert_identical, saved_state, without_speed
from small_runs import compiled_as_by_launch, resolved

from medlitenet_jax.data.sources import create_source
from medlitenet_jax.modes import train as mode
from medlitenet_jax.modes.prepare import prepare
from medlitenet_jax.modes.train import train
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.layout import whole_steps
from medlitenet_jax.training.run import create_plan, create_train_batches


@pytest.fixture
def config(tmp_path):
  """Of a folder of photographs that the stub learns from, one batch read at a time."""
  prepare(resolved(data__root=str(tmp_path / "photographs")))
  with compiled_as_by_launch():
    yield resolved(
      data__source="folder",
      data__root=str(tmp_path / "photographs"),
      data__num_threads=1,
      data__prefetch_batches=1,
    )


def first_of(split, config):
  """A case of `val`, or of the third batch of `train`."""
  source = create_source(config.data, split, config.seed)
  if split == "val":
    return source.case_ids[0]
  plan = create_plan(config, len(source))
  batches = create_train_batches(config, source, plan)
  return [next(batches)["case_id"] for _ in range(3)][2][0]


@pytest.mark.parametrize(("split", "learned"), [("train", 2), ("val", 3)])
def test_what_was_learned_is_kept_and_the_run_goes_on_once_it_is_repaired(
  config, tmp_path, split, learned
):
  workdir, straight = tmp_path / "run", tmp_path / "straight"
  train(config, straight)
  (path,) = (tmp_path / "photographs" / "images").glob(f"{first_of(split, config)}.*")
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  for _ in range(2):
    with pytest.raises(InputError, match=path.name):
      train(config, workdir, force=True)  # without it the look before the start may refuse
    assert whole_steps(workdir) == [learned]
  path.write_bytes(whole)
  train(config, workdir)
  assert_identical(saved_state(workdir, 8), saved_state(straight, 8))
  logs = [(run / "metrics.jsonl").read_text().splitlines() for run in (workdir, straight)]
  assert without_speed(map(json.loads, logs[0])) == without_speed(map(json.loads, logs[1]))


def test_a_validation_without_memory_costs_no_batch(config, tmp_path, monkeypatch):
  def fail(*_):
    raise RuntimeError("RESOURCE_EXHAUSTED")

  workdir = tmp_path / "run"
  with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="RESOURCE"):
    patch.setattr(mode, "create_validate", lambda *_: fail)
    train(config, workdir)
  assert whole_steps(workdir) == [3]
  train(config, workdir)
  rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  assert [row["step"] for row in rows if row["split"] == "val"] == [3, 6, 8]
