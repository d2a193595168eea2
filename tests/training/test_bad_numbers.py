"""Numbers that go bad, in every precision: nothing of them is learned, their cases are named."""

import cv2
import numpy as np
import pytest
from compare_runs import flat, saved_state
from small_runs import compiled_as_by_launch, resolved, write_case, write_splits

from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.modes.train import train
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.layout import whole_steps
from medlitenet_jax.training.log import MetricsLog, read_metrics
from medlitenet_jax.training.skipped import SkippedBatches

LEARNED = ("params", "batch_stats", "ema_params", "ema_batch_stats", "opt_state")


@pytest.fixture(autouse=True)
def compiled():
  with compiled_as_by_launch():
    yield


def create_folder(root, photographs):
  """A training case for each photograph and mask, each of one value, and two good ones."""
  for number, name in enumerate(("good1", "good2", "val1")):
    write_case(root, name, number, (64, 64))
  for name, (image, mask) in photographs.items():
    cv2.imwrite(str(root / "images" / f"{name}.png"), np.full((64, 64, 3), image, np.uint8))
    cv2.imwrite(str(root / "masks" / f"{name}_segmentation.png"), np.full((64, 64), mask, np.uint8))
  names = dict.fromkeys(("good1", "good2", *photographs), "train")
  write_splits(root, names | {"val1": "val"})
  return root


def run_on(root, workdir, **fields):
  config = resolved(
    data__source="folder",
    data__root=str(root),
    augment__enabled=False,
    train__image_sizes=(64,),
    train__batch_size=2,
    **fields,
  )
  train(config, workdir, force=True)  # masks such as these are refused


def skipped_rows(workdir):
  return [row for row in read_metrics(workdir) if row["split"] == "skipped"]


def assert_finite(workdir, step):
  state = saved_state(workdir, step)
  for part in LEARNED:
    for name, value in flat(state[part]).items():
      assert np.all(np.isfinite(value)), (part, name)
  return state


@pytest.mark.parametrize("precision", list(DTYPES))
def test_a_batch_with_nan_is_named_and_not_learned(tmp_path, precision, caplog):
  """The stub's logits are not a number for a white photograph."""
  root = create_folder(tmp_path / "data", {"white": (255, 0), "grey": (128, 255)})
  workdir = tmp_path / "run"
  run_on(root, workdir, precision=precision)  # 8 batches, in which each case comes four times
  state = assert_finite(workdir, 8)
  rows = skipped_rows(workdir)
  assert len(rows) == 4 == int(state["skipped"])
  for row in rows:
    assert "white" in row["case_ids"] and len(row["case_ids"]) == 2 and row["loss"] is None
    assert f"Batch {row['step']} was skipped, its loss is not finite: " in caplog.text
  trained = [row for row in read_metrics(workdir) if row["split"] == "train"]
  assert [row["skipped"] for row in rows] == [1, 2, 3, 4] and trained[-1]["skipped"] == 4
  if precision == "float16":
    assert float(state["loss_scale"]["scale"]) == 2.0 ** (16 - 4)


@pytest.mark.parametrize("precision", list(DTYPES))
def test_constant_photographs_full_and_empty_masks_train(tmp_path, precision):
  """Every kind alone in a batch, and with others."""
  plain = {f"{image}_{mask}": (image, mask) for image in (0, 90, 254) for mask in (0, 255)}
  root = create_folder(tmp_path / "data", plain)
  run_on(root, tmp_path / "run", precision=precision, train__max_steps=12)
  state = assert_finite(tmp_path / "run", 12)
  assert int(state["skipped"]) == 0 and not skipped_rows(tmp_path / "run")
  for row in read_metrics(tmp_path / "run"):
    assert all(value is not None for value in row.values())


def test_too_many_in_a_row_end_the_run_with_their_names(tmp_path):
  whites = {f"white{number}": (255, 255) for number in range(3)}
  root = create_folder(tmp_path / "data", whites)
  write_splits(root, dict.fromkeys(whites, "train") | {"val1": "val"})
  workdir = tmp_path / "run"
  with pytest.raises(InputError) as error:
    run_on(root, workdir, train__max_skipped_in_a_row=3, train__validate_every_epochs=9)
  text = str(error.value)
  assert text.startswith("batches 1 to ") and len(text.splitlines()) == 1
  assert all(name in text for name in (*whites, "config.train.max_skipped_in_a_row", str(workdir)))
  # It is noticed a batch late, and that batch was skipped as well.
  assert [row["step"] for row in skipped_rows(workdir)] == [1, 2, 3, 4]
  assert whole_steps(workdir) == [4]
  assert_finite(workdir, 4)


def test_a_good_batch_begins_the_count_anew(tmp_path):
  log = MetricsLog(tmp_path, resume_step=0)
  skips = SkippedBatches(log, skipped=5, limit=2)
  seen = []
  for step, count in enumerate((6, 6, 7, 8), start=1):
    figures = {"loss": 1.0, "grad_norm": float("inf"), "skipped": float(count)}
    skips.add(step=step, epoch=0.0, case_ids=[f"case{step}"], figures=figures)
    seen.append(skips.too_many)
  skips.read()
  assert seen == [False] * 4 and skips.too_many
  assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3, 4]
  assert "batches 3 to 4" in skips.describe() and "case3, case4" in skips.describe()
  figures = {"loss": 1.0, "grad_norm": 1.0, "skipped": 8.0}
  skips.add(step=5, epoch=0.0, case_ids=["case5"], figures=figures)
  skips.read()  # noticed a batch late, they end the run though that batch was good
  assert skips.too_many and "batches 3 to 4" in skips.describe()
  log.close()
