"""The check of a data set: every defect is found by name, and nothing is changed."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from small_runs import arguments, contents, launch, resolved, write_case

from medlitenet_jax.data.sources import create_source
from medlitenet_jax.data.synthetic import draw_dermoscopy
from medlitenet_jax.modes import train as train_mode
from medlitenet_jax.modes.check import check
from medlitenet_jax.system.errors import InputError

SPLIT_OF = {
  **{f"good_{n}": split for n, split in enumerate(("train", "train", "train", "val", "test"))},
  **dict.fromkeys(("empty", "full", "nearly", "cut", "text", "labels"), "train"),
  **dict.fromkeys(("size", "both", "lone", "gone", "twin", "copy", "group_a"), "train"),
  **dict.fromkeys(("flip", "group_b"), "val"),
  **dict.fromkeys(("again", "Case", "case"), "test"),
}
# Kind, name, split and whether it stops training, of each defect of the folder below.
DEFECTS = {
  ("unusable_row", "good_0", "", True),  # a second time
  ("unusable_row", "nowhere", "", True),  # in a split of no such name
  ("unusable_row", "P7", "", True),  # a group in two splits
  ("missing_photograph", "gone", "train", True),
  ("missing_mask", "lone_segmentation", "train", True),
  ("same_name", "twin", "train", True),
  ("unreadable", "cut.jpg", "train", True),
  ("unreadable", "text.png", "train", True),
  ("unreadable", "both.jpg", "train", True),
  ("size_mismatch", "size", "train", True),
  ("unclear_mask", "labels_segmentation.png", "train", True),
  ("unclear_mask", "both_segmentation.png", "train", True),
  ("unclear_mask", "size_segmentation.png", "train", True),
  ("no_split", "spare", "", False),
  ("mask_without_photograph", "gone_segmentation.png", "", False),
  ("names_differ_in_case", "case", "", False),
  ("no_image", "LICENCE.txt", "", False),
  ("empty_mask", "empty", "train", False),
  ("full_mask", "full", "train", False),
  ("nearly_full_mask", "nearly", "train", False),
  ("duplicate", "copy", "train", False),
  ("leakage", "good_2", "train", False),  # of flip, in val
  ("leakage", "good_1", "train", False),  # of again, in test
  ("small_split", "val", "val", False),
  ("small_split", "test", "test", False),
}


def paths(root, case_id, suffix="png"):
  return root / "images" / f"{case_id}.{suffix}", root / "masks" / f"{case_id}_segmentation.png"


def write_drawing(root, case_id, number, change=lambda image: image):
  image, mask = (change(a) for a in draw_dermoscopy(0, number, 96))
  for path, pixels in zip(paths(root, case_id), (image[..., ::-1], mask * 255), strict=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def clean_folder(root):
  for number, case_id in enumerate(f"good_{n}" for n in range(5)):
    write_drawing(root, case_id, number)
  rows = [f"{case_id},{split}," for case_id, split in list(SPLIT_OF.items())[:5]]
  (root / "splits.csv").write_text("\n".join(["id,split,patient", *rows]) + "\n")
  return root


def defective_folder(root):
  clean_folder(root)
  for number, case_id in enumerate(list(SPLIT_OF)[5:], start=5):
    write_drawing(root, case_id, number)
  write_drawing(root, "spare", 40)
  for case_id, value in (("empty", 0), ("full", 255), ("nearly", 255)):
    mask = np.full((96, 96), value, np.uint8)
    mask[:3] = 0 if case_id == "nearly" else value
    cv2.imwrite(str(paths(root, case_id)[1]), mask)
  for case_id in ("cut", "both"):
    paths(root, case_id)[0].unlink()
    write_case(root, case_id, suffix="jpg")
    path = paths(root, case_id, "jpg")[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  paths(root, "text")[0].write_text("no picture")
  for case_id, shape in (("labels", (96, 96)), ("both", (70, 90)), ("size", (50, 40))):
    labels = np.zeros(shape, np.uint8)
    labels[10:30], labels[30:40] = 100, 200
    cv2.imwrite(str(paths(root, case_id)[1]), labels)
  paths(root, "lone")[1].unlink()
  paths(root, "gone")[0].unlink()
  shutil.copy(paths(root, "twin")[0], root / "images" / "twin.bmp")
  write_drawing(root, "flip", 2, lambda a: np.ascontiguousarray(np.rot90(a[:, ::-1])))
  write_drawing(root, "again", 1)
  write_drawing(root, "copy", list(SPLIT_OF).index("empty"))
  (root / "images" / "LICENCE.txt").write_text("none")
  groups = {"group_a": "P7", "group_b": "P7"}
  rows = [f"{c},{s},{groups.get(c, '')}" for c, s in SPLIT_OF.items()]
  rows += ["good_0,val,", "nowhere,dev,"]
  (root / "splits.csv").write_text("\n".join(["id,split,patient", *rows]) + "\n")
  return root


def config_of(root, **fields):
  return resolved(
    data__source="folder", data__root=str(root), data__group_column="patient", **fields
  )


def found_in(output, but=()):
  with (output / "problems.csv").open(newline="") as file:
    return [row for row in csv.DictReader(file) if row["kind"] not in but]


def folder_of_thirty(root, change=lambda mask: mask):
  """Ten cases in each split; their masks are changed."""
  for number in range(30):
    write_drawing(root, f"case_{number:02}", number)
    path = paths(root, f"case_{number:02}")[1]
    cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
  splits = {f"case_{n:02}": split for n, split in enumerate(("train", "val", "test") * 10)}
  rows = [f"{case_id},{split}," for case_id, split in splits.items()]
  (root / "splits.csv").write_text("\n".join(["id,split,patient", *rows]) + "\n")
  return root


def test_what_training_refuses_of_test_is_listed(tmp_path):
  root = clean_folder(tmp_path / "data")
  paths(root, "good_4")[1].unlink()
  with pytest.raises(InputError, match="1 problem would stop training: 1 missing_mask"):
    check(config_of(root), tmp_path / "out")
  with pytest.raises(InputError, match=r"good_4_segmentation \(test\)"):
    create_source(config_of(root).data, "train", 0, to_score=False)


def test_every_defect_is_found_by_name_and_nothing_is_changed(tmp_path, capsys):
  root, output = defective_folder(tmp_path / "data"), tmp_path / "checked"
  before = contents(root)
  with pytest.raises(InputError) as error:
    check(config_of(root), output)
  assert contents(root) == before
  rows = found_in(output)
  found = [
    (row["kind"], row["name"], row["split"], row["stops_training"] == "True") for row in rows
  ]
  pairs = {("duplicate", "empty", "train", False), ("duplicate", "copy", "train", False)}
  assert set(found) - pairs == DEFECTS - pairs and len(found) == len(DEFECTS)
  assert set(found) & pairs
  line = str(error.value)
  assert "13 problems would stop training" in line and str(output / "problems.csv") in line
  assert "3 unreadable" in line and len(line.splitlines()) == 1

  what = {(row["kind"], row["name"]): row["what"] for row in rows}
  assert "flip in val" in what["leakage", "good_2"] and "flipped" in what["leakage", "good_2"]
  assert "again in test" in what["leakage", "good_1"]
  assert "the same pixels" in what["leakage", "good_1"]
  assert "'P7' is in train and val" in what["unusable_row", "P7"]
  assert "50x40" in what["size_mismatch", "size"]
  printed = capsys.readouterr().out
  assert all(row["kind"] in printed for row in rows)

  summary = json.loads((output / "check.json").read_text())
  assert summary["problems"]["unclear_mask"] == 3 and summary["warnings"]["leakage"] == 2
  sheet = cv2.imread(str(output / "contact_sheet.png"))
  assert sheet is not None and sheet.shape[1] > 1000


def test_clean_folder_has_no_problem(tmp_path, capsys):
  root = folder_of_thirty(tmp_path / "data")
  check(config_of(root), tmp_path / "out")
  assert found_in(tmp_path / "out") == []
  summary = json.loads((tmp_path / "out" / "check.json").read_text())
  assert summary["problems"] == summary["warnings"] == {} and summary["findings"] == []
  train = summary["splits"]["train"]
  assert train["cases"] == train["read"] == 10 and train["height_width"]["median"] == [96, 96]
  masks = [draw_dermoscopy(0, number, 96)[1] for number in range(0, 30, 3)]
  fractions = train["lesion_fraction"]
  assert fractions["0.5"] == pytest.approx(np.median([m.mean() for m in masks]), abs=1e-4)
  assert fractions["1"] == pytest.approx(max(m.mean() for m in masks), abs=1e-4)
  assert "No problems found" in capsys.readouterr().out


def test_what_training_refuses_first_is_among_the_problems(tmp_path):
  """One scan, two readers: training stops at a line that the check lists, too."""
  from medlitenet_jax.data.sources import create_source

  root = defective_folder(tmp_path / "data")
  config = config_of(root)
  with pytest.raises(InputError):
    check(config, tmp_path / "out")
  for split in ("train", "val"):
    with pytest.raises(InputError) as error:
      create_source(config.data, split, 0)
    assert str(error.value) in [row["what"] for row in found_in(tmp_path / "out")]


def test_a_photograph_does_not_hide_a_mask_of_its_name(tmp_path):
  root = clean_folder(tmp_path / "data")
  for path in (root / "masks").iterdir():
    path.rename(path.with_name(path.name.replace("_segmentation", "")))
  photograph, mask = (root / folder / "good_0.png" for folder in ("images", "masks"))
  if not photograph.exists():
    next((root / "images").glob("good_0.*")).rename(photograph)
  photograph.write_text("no photograph")
  Image.fromarray(np.full((96, 96), 100, np.uint8)).save(mask)
  config = config_of(root)
  with config.unlocked():
    config.data.mask_suffix = ""
  with pytest.raises(InputError):
    check(config, tmp_path / "out")
  kinds = {row["kind"] for row in found_in(tmp_path / "out") if row["name"] == "good_0.png"}
  assert kinds == {"unreadable", "unclear_mask"}


def test_warnings_alone_do_not_stop(tmp_path):
  root = clean_folder(tmp_path / "data")
  Image.fromarray(np.zeros((96, 96), np.uint8)).save(paths(root, "good_0")[1])
  check(config_of(root), tmp_path / "out")
  (row,) = found_in(tmp_path / "out", but=("small_split",))
  assert (row["kind"], row["name"], row["stops_training"]) == ("empty_mask", "good_0", "False")


def test_masks_that_would_ruin_a_training_are_refused_unless_forced(tmp_path, capsys):
  root, output = folder_of_thirty(tmp_path / "data", lambda mask: 255 - mask), tmp_path / "out"
  with pytest.raises(InputError, match=r"1 inverted_masks.*--force"):
    check(config_of(root), output)
  (row,) = found_in(output, but=("nearly_full_mask",))
  assert (row["kind"], row["stops_training"]) == ("inverted_masks", "True")
  assert "lesion as 255" in row["what"] and row["what"] in capsys.readouterr().out
  check(config_of(root), output, force=True)
  summary = json.loads((output / "check.json").read_text())
  assert summary["problems"] == {} and summary["warnings"]["inverted_masks"] == 1
  assert [finding["what"] for finding in summary["findings"]] == [row["what"]]


def test_training_takes_a_short_look_before_anything_is_written(tmp_path, monkeypatch, caplog):
  root, workdir = folder_of_thirty(tmp_path / "data", np.zeros_like), tmp_path / "run"
  (root / "splits.csv").write_text(
    "id,split\n" + "".join(f"case_{n:02},{s}\n" for n, s in enumerate(("train", "val", "test") * 5))
  )
  config = config_of(root)
  config.data.group_column = ""

  class Started(Exception):
    """The network would be created now."""

  def start(*_):
    raise Started

  monkeypatch.setattr(train_mode, "create_model", start)
  with caplog.at_level("WARNING"), pytest.raises(InputError, match=r"10 of 10 masks .*--force"):
    train_mode.train(config, workdir)
  assert all(f"only 5 photographs in {split}" in caplog.text for split in ("train", "val", "test"))
  with pytest.raises(Started):
    train_mode.train(config, workdir, force=True)
  for number in range(15):
    write_drawing(root, f"case_{number:02}", number)
  with pytest.raises(Started):
    train_mode.train(config, workdir)
  paths(root, "case_00")[0].write_bytes(paths(root, "case_00")[0].read_bytes()[:-1000])
  with pytest.raises(InputError, match=r"case_00\.png: .*repair.*--force"):
    train_mode.train(config, workdir)
  assert not workdir.exists()


def test_masks_of_another_size_and_photographs_at_two_sizes_are_told_together(tmp_path):
  root = clean_folder(tmp_path / "data")
  for number in range(5):
    image, mask = (cv2.imread(str(path)) for path in paths(root, f"good_{number}"))
    cv2.imwrite(str(paths(root, f"small_{number}")[0]), cv2.resize(image, (64, 64)))
    cv2.imwrite(str(paths(root, f"small_{number}")[1]), (mask[::3, ::3] > 0)[..., :1] * 255)
  (root / "splits.csv").unlink()
  config = config_of(root)
  config.data.group_column = ""
  with pytest.raises(InputError, match="5 size_mismatch"):  # 5 of 10 are not most
    check(config, tmp_path / "out")
  for number in range(5):
    path = paths(root, f"small_{number}")[1]
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path), 0), (64, 64)) // 255 * 255)
  check(config, tmp_path / "out")
  (row,) = (row for row in found_in(tmp_path / "out") if row["kind"] == "two_sizes")
  assert "5 of 10 photographs" in row["what"]
  copies = [row["what"] for row in found_in(tmp_path / "out") if "at two sizes" in row["what"]]
  assert len(copies) == 5 and "96x96" in copies[0] and "64x64" in copies[0]
  for path in (root / "masks").iterdir():
    cv2.imwrite(str(path), cv2.imread(str(path), 0)[::2, ::2])
  with pytest.raises(InputError, match="1 wrong_scale"):
    check(config, tmp_path / "out")
  (row,) = (row for row in found_in(tmp_path / "out") if row["kind"] == "wrong_scale")
  assert "10 of 10 masks" in row["what"] and "each 0.5 times" in row["what"]


def test_empty_split_stops_training_but_for_test(tmp_path):
  root = clean_folder(tmp_path / "data")
  rows = "".join(f"good_{n},train,\n" for n in range(5))
  (root / "splits.csv").write_text("id,split,patient\n" + rows)
  with pytest.raises(InputError, match="1 problem would stop training: 1 empty_split"):
    check(config_of(root), tmp_path / "out")
  found = found_in(tmp_path / "out", but=("small_split",))
  rows = {row["name"]: row["stops_training"] for row in found}
  assert rows == {"val": "True", "test": "False"}


def test_generated_cases(tmp_path):
  config = resolved(data__synthetic__num_train=4, data__synthetic__num_test=0)
  check(config, tmp_path / "out")
  (row,) = found_in(tmp_path / "out", but=("small_split",))
  assert (row["kind"], row["name"]) == ("empty_split", "test") and "num_test" in row["what"]
  summary = json.loads((tmp_path / "out" / "check.json").read_text())
  assert [summary["splits"][split]["read"] for split in ("train", "val")] == [4, 3]


def test_sheet_shows_a_sample_odd_cases_and_copies(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    "medlitenet_jax.modes.check.draw_cases", lambda groups, path: drawn.extend(groups)
  )
  with pytest.raises(InputError):
    check(config_of(defective_folder(tmp_path / "data")), tmp_path / "out")
  groups = {title.split(",")[0]: cases for title, cases in drawn}
  names = {
    title: [label.split("\n")[0] for label, _, _ in cases] for title, cases in groups.items()
  }
  assert names["train"][0] == "empty" and names["train"][-1] in ("full", "copy")
  assert names["empty"] == ["empty", "full", "nearly"]
  copies = [set(names["the same picture twice"][i : i + 2]) for i in (0, 2, 4)]
  assert {"good_1", "again"} in copies[:2] and {"good_2", "flip"} in copies[:2]
  assert copies[2] == {"copy", "empty"}
  for _, image, mask in groups["empty"]:
    assert image.shape == (96, 96, 3) and mask.shape == (96, 96)


def test_limits_hold(tmp_path):
  check(config_of(clean_folder(tmp_path / "data"), data__max_train_images=2), tmp_path / "out")
  summary = json.loads((tmp_path / "out" / "check.json").read_text())
  assert summary["splits"]["train"]["cases"] == 2


def test_output_within_the_data_is_refused(tmp_path):
  root = clean_folder(tmp_path / "data")
  before = contents(root)
  for output in (root, root / "images", root / "new"):
    with pytest.raises(InputError, match="--output"):
      check(config_of(root), output)
  assert contents(root) == before


def test_launcher(tmp_path):
  root = clean_folder(tmp_path / "data")
  paths(root, "good_1")[1].unlink()
  done = launch(
    "--mode=check",
    f"--output={tmp_path / 'out'}",
    *arguments(data__source="folder", data__root=root, data__num_threads=2),
  )
  assert done.returncode == 2
  last = done.stderr.splitlines()[-1]
  assert last.startswith("launch.py: error: 1 problem would stop training: 1 missing_mask")
  assert "Traceback" not in done.stderr
  assert "train" in done.stdout and "missing_mask" in done.stdout
  assert found_in(tmp_path / "out")[0]["name"] == "good_1_segmentation"
