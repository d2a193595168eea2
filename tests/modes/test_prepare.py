"""Generated cases written as files are read as they were drawn, and nothing else is touched."""

import json

import numpy as np
import pytest
from small_runs import contents, resolved

from medlitenet_jax.data.cases import split_hash
from medlitenet_jax.data.images.image_files import write_mask
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.modes.prepare import prepare
from medlitenet_jax.system.errors import InputError

COUNTS = {"train": 5, "val": 2, "test": 3}


def config_for(root, source="synthetic", **fields):
  counts = {f"data__synthetic__num_{split}": count for split, count in COUNTS.items()}
  return resolved(data__source=source, data__root=str(root), **counts | fields)


def test_folder_holds_what_is_drawn(tmp_path, capsys):
  root = tmp_path / "generated"
  prepare(config_for(root))
  printed = capsys.readouterr().out
  for split, count in COUNTS.items():
    drawn = create_source(config_for(root).data, split, seed=0)
    read = create_source(config_for(root, "folder").data, split, seed=0)
    assert len(read) == count and list(read.case_ids) == list(drawn.case_ids)
    assert split_hash(read.case_ids) in printed
    for index in range(count):
      np.testing.assert_array_equal(read[index].image, drawn[index].image)
      np.testing.assert_array_equal(read[index].mask, drawn[index].mask)


def test_it_goes_on_where_it_stopped_and_repeats_itself(tmp_path):
  prepare(config_for(tmp_path))
  before = contents(tmp_path)
  missing = sorted((tmp_path / "masks").iterdir())[3]
  missing.unlink()  # a case is there once its mask is
  (tmp_path / "images" / missing.name.replace("_segmentation", "")).write_bytes(b"half")
  prepare(config_for(tmp_path))
  after = contents(tmp_path)
  assert after.pop("starts.jsonl").startswith(before.pop("starts.jsonl"))
  assert after == before


def test_a_folder_that_is_not_finished_is_no_data_set(tmp_path, monkeypatch):
  def stop(path, mask):
    if len(list(path.parent.iterdir())) == 4:
      raise KeyboardInterrupt
    write_mask(path, mask)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr("medlitenet_jax.modes.prepare.write_mask", stop)
    prepare(config_for(tmp_path))
  with pytest.raises(InputError, match=r"splits\.csv|masks"):
    create_source(config_for(tmp_path, "folder").data, "train", seed=0)
  prepare(config_for(tmp_path))
  assert len(create_source(config_for(tmp_path, "folder").data, "train", seed=0)) == 5


def test_nothing_is_written_through_a_link(tmp_path):
  root, elsewhere = tmp_path / "generated", tmp_path / "elsewhere"
  elsewhere.mkdir()
  prepare(config_for(root))
  (root / "more").symlink_to(elsewhere)
  with pytest.raises(InputError, match="is a link"):
    prepare(config_for(root))


@pytest.mark.parametrize(
  "change",
  [
    {"seed": 1},
    {"data__synthetic__image_size": 64},
    {"data__max_train_images": 2},
    {"data__mask_suffix": ""},
  ],
)
def test_cases_drawn_otherwise_are_not_mixed_in(tmp_path, change):
  prepare(config_for(tmp_path))
  before = contents(tmp_path)
  with pytest.raises(InputError, match=r"was made with .* choose another --config\.data\.root"):
    prepare(config_for(tmp_path, **change))
  assert contents(tmp_path) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / "images").mkdir()
  (tmp_path / "images" / "mine.jpg").write_bytes(b"precious")
  before = contents(tmp_path)
  with pytest.raises(InputError, match=r"not empty and without generated\.json"):
    prepare(config_for(tmp_path))
  assert contents(tmp_path) == before
  with pytest.raises(InputError, match="is a file"):
    prepare(config_for(tmp_path / "images" / "mine.jpg"))


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"seed": 0})])
def test_a_damaged_description_is_refused(tmp_path, text):
  (tmp_path / "generated.json").write_text(text)
  with pytest.raises(InputError, match=r"choose another --config\.data\.root"):
    prepare(config_for(tmp_path))


def test_a_folder_needs_no_preparation(tmp_path):
  with pytest.raises(InputError, match="takes one of synthetic, isic2018"):
    prepare(config_for(tmp_path, "folder"))
