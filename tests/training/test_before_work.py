"""What a run would take is told, and refused, before its first batch."""

import logging

import pytest
from small_runs import compiled_as_by_launch, contents, resolved

from medlitenet_jax.modes.train import train
from medlitenet_jax.system import limits
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.layout import whole_steps


@pytest.fixture(autouse=True)
def compiled():
  with compiled_as_by_launch():
    yield


def test_a_batch_of_more_photographs_than_there_are_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"batch_size is 4096, but train has 13 photographs"):
    train(resolved(train__batch_size=4096), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def refused_with(free, workdir, monkeypatch):
  monkeypatch.setattr(limits, "free_memory", lambda: free)
  with pytest.raises(InputError) as refusal:
    train(resolved(), workdir)
  assert whole_steps(workdir) == []
  return str(refusal.value)


def test_a_step_that_does_not_fit_into_memory_is_refused_without_one_batch(tmp_path, monkeypatch):
  """The size that comes later is looked at first; what a call takes is known once compiled."""
  compiled = []
  monkeypatch.setattr(
    "medlitenet_jax.training.programs._bytes_of", lambda program: compiled.append(program) or 2**40
  )
  line = refused_with(2**18, tmp_path / "run", monkeypatch)  # less than the batches read ahead
  assert not compiled and "config.train.batch_size=4 at" in line
  line = refused_with(2**35, tmp_path / "run", monkeypatch)
  assert len(compiled) == 1 and "1024 GiB of memory, and 32 GiB are free" in line
  for remedy in ("config.optim.accumulation", "config.model.remat", "config.train.image_sizes"):
    assert remedy in line
  # Enough for the first size, not for one of 2.25 times its area.
  line = refused_with(2**40 + 2**35, tmp_path / "run", monkeypatch)
  assert "at 96x96 pixels takes about 2304 GiB" in line
  monkeypatch.setattr(limits, "free_memory", lambda: 2**35)
  train(resolved(train__max_steps=2), tmp_path / "run", force=True)
  assert whole_steps(tmp_path / "run") == [2]


def test_the_compiled_step_is_found_to_take_what_its_arrays_do(tmp_path, caplog):
  """At least one array of 8 channels for each pixel of the batch, and no thousand of them."""
  from medlitenet_jax.training import programs

  found = []
  original = programs._bytes_of
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      programs, "_bytes_of", lambda program: found.append(original(program)) or found[-1]
    )
    train(resolved(train__max_steps=2), tmp_path / "run")
  activations = [4 * 8 * 4 * size**2 for size in (64, 96)]
  assert all(one < taken < 1000 * one for one, taken in zip(activations, found, strict=True))


def test_checkpoints_that_do_not_fit_on_the_disk_are_refused(tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(InputError, match="of the disk") as refusal:
    patch.setattr(limits, "free_disk", lambda folder: 1000)
    train(resolved(), tmp_path / "run")
  assert str(tmp_path / "run") in str(refusal.value) and not (tmp_path / "run").exists()


def test_a_dry_run_tells_what_the_run_takes_and_writes_nothing(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  workdir = tmp_path / "run"
  train(resolved(), workdir, dry_run=True)
  assert not workdir.exists()
  for told in (
    *("13 of train, 3 of val (synthetic)", "8 batches of 4", "2.46 epochs"),
    *("4 at 64x64 pixels, 4 at 96x96 pixels", "3 validations", "of memory (free: "),
    *("of the disk", "s a batch at 96x96 pixels", "s a validation"),
  ):
    assert told in caplog.text
  train(resolved(train__max_steps=3), workdir)
  before, _ = contents(workdir), caplog.clear()
  train(resolved(), workdir, force=True, dry_run=True)
  assert contents(workdir) == before
  assert "5 batches of 4 to go" in caplog.text
  with pytest.raises(InputError, match="another configuration"):
    train(resolved(seed=7), workdir, dry_run=True)
