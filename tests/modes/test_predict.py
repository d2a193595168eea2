"""Prediction on one's own photographs, as a stranger would run it."""

import csv
import json
import logging
import os
import shutil
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest
from dicom_files import write_dicom
from small_runs import (
  ROOT,
  contents,
  copy_of_run,
  draw_case,
  finished_run,
  launch,
  resolved,
  scratch,
)

from medlitenet_jax.data.photographs import find_photographs, names_of
from medlitenet_jax.data.scales import Scales, read_scales
from medlitenet_jax.inference.networks import Network
from medlitenet_jax.modes.predict import predict
from medlitenet_jax.modes.predict_output import SETTINGS_FILE
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.system import limits
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.lock import lock_folder
from medlitenet_jax.system.tables import read_csv

SIZES = {"wide": (60, 130), "tall": (150, 70), "dot": (1, 1)}


def write_photographs(folder: Path) -> Path:
  folder.mkdir(parents=True)
  for number, (name, size) in enumerate(SIZES.items()):
    image, _ = draw_case(number, *size)
    cv2.imwrite(str(folder / f"{name}.jpg"), image[..., ::-1])
  return folder


def run(photographs: Path, output: Path, *more: str):
  return launch(
    "--mode=predict",
    f"--workdir={finished_run()}",
    f"--input={photographs}",
    f"--output={output}",
    *more,
  )


def measurements(output: Path) -> list[dict[str, str]]:
  with (output / "measurements.csv").open(newline="") as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
  """Photographs, what was made of them, and a copy of both for tests that change them."""
  root = tmp_path_factory.mktemp("predicted")
  photographs = write_photographs(root / "photographs")
  (photographs / "notes.txt").write_text("no photograph")
  done = run(photographs, root / "output", "--mm_per_pixel=0.1", "--config.eval.tta=six")
  assert done.returncode == 0, done.stderr
  return root, done


def test_a_mask_an_overlay_a_map_and_a_row_for_each(predicted):
  root, done = predicted
  rows = {row["case_id"]: row for row in measurements(root / "output")}
  assert list(rows) == sorted(SIZES)
  for name, size in SIZES.items():
    mask = cv2.imread(
      str(root / "output" / "masks" / f"{name}_segmentation.png"), cv2.IMREAD_UNCHANGED
    )
    assert mask.shape == size and set(np.unique(mask)) <= {0, 255}
    assert int(rows[name]["area_px"]) == np.count_nonzero(mask)
    assert float(rows[name]["area_mm2"]) == pytest.approx(0.01 * np.count_nonzero(mask))
    assert (int(rows[name]["height"]), int(rows[name]["width"])) == size
    overlay = cv2.imread(str(root / "output" / "overlays" / f"{name}.png"))
    assert overlay.shape == (*size, 3)
    uncertainty = cv2.imread(
      str(root / "output" / "uncertainty" / f"{name}.png"), cv2.IMREAD_UNCHANGED
    )
    assert uncertainty.shape == size
  assert any(float(row["mean_disagreement"]) > 0 for row in rows.values())
  assert "notes.txt" in done.stdout  # what was left out is named


def test_the_outline_lies_on_the_photograph(predicted):
  root, _ = predicted
  photograph = cv2.imread(str(root / "photographs" / "tall.jpg"))
  overlay = cv2.imread(str(root / "output" / "overlays" / "tall.png"))
  changed = (photograph != overlay).any(axis=-1)
  assert 0 < changed.mean() < 0.5


def test_review_names_what_is_unsure(predicted):
  root, _ = predicted
  with (root / "output" / "review.csv").open(newline="") as file:
    review = {row["case_id"]: row["reasons"] for row in csv.DictReader(file)}
  for row in measurements(root / "output"):
    if not int(row["area_px"]):
      assert "no lesion" in review[row["case_id"]]
    elif float(row["confidence"]) < 0.85:
      assert "confidence" in review[row["case_id"]]


def test_a_second_run_does_what_is_left(predicted, tmp_path):
  """A row that was cut off, a picture that is gone; by the same network, which lies elsewhere."""
  root, _ = predicted
  output = Path(shutil.copytree(root / "output", tmp_path / "output"))
  before = contents(output)
  lines = (output / "measurements.csv").read_text().splitlines(keepends=True)
  (output / "measurements.csv").write_text("".join(lines[:-1]) + lines[-1][:20])  # cut off
  (output / "masks" / f"{lines[-1].split(',')[0]}_segmentation.png").unlink()
  (output / "overlays" / f"{lines[1].split(',')[0]}.png").unlink()
  moved = f"--workdir={copy_of_run(tmp_path)}"
  done = run(root / "photographs", output, "--mm_per_pixel=0.1", "--config.eval.tta=six", moved)
  assert done.returncode == 0, done.stderr
  assert "1 of 3 were done before" in done.stdout
  after = contents(output)
  assert after.pop("predict.json") != before.pop("predict.json")  # which says where it lies
  assert after.pop("starts.jsonl").startswith(before.pop("starts.jsonl"))
  assert after == before


def test_a_second_process_is_kept_out(predicted):
  root, _ = predicted
  before = contents(root / "output")
  with lock_folder(root / "output", "is predicting into it", "--output"):
    done = run(root / "photographs", root / "output", "--mm_per_pixel=0.1", "--config.eval.tta=six")
  assert done.returncode == 2 and f"process {os.getpid()}" in done.stderr
  assert "is predicting into it" in done.stderr and len(done.stderr.splitlines()) == 1
  assert contents(root / "output") == before


def test_another_photograph_of_a_name_is_not_taken_for_done(predicted, tmp_path):
  root, _ = predicted
  other = Path(shutil.copytree(root / "photographs", tmp_path / "photographs"))
  before = contents(root / "output")
  image = cv2.imread(str(other / "wide.jpg"))
  cv2.imwrite(str(other / "wide.jpg"), image[:, ::-1])
  done = run(other, root / "output", "--mm_per_pixel=0.1", "--config.eval.tta=six")
  assert done.returncode == 2 and "results of another photograph of that name" in done.stderr
  assert len(done.stderr.splitlines()) == 1 and contents(root / "output") == before


def test_other_settings_are_refused(predicted):
  root, _ = predicted
  before = contents(root / "output")
  done = run(root / "photographs", root / "output", "--mm_per_pixel=0.2", "--config.eval.tta=six")
  assert done.returncode == 2 and "mm_per_pixel" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert contents(root / "output") == before


def test_broken_files_are_named_and_the_rest_is_done(tmp_path):
  photographs = write_photographs(tmp_path / "in")
  whole = (photographs / "wide.jpg").read_bytes()
  (photographs / "cut.jpg").write_bytes(whole[: len(whole) // 2])
  (photographs / "text.jpg").write_text("this is no photograph")
  (photographs / "empty.png").touch()
  long = "\u5199" * 80 + ".jpg"  # leaves no room for the ending of a mask
  (photographs / long).write_bytes(whole)
  broken = {"cut.jpg", "text.jpg", "empty.png", long}
  before = contents(photographs)
  done = run(photographs, tmp_path / "out")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  last = done.stderr.splitlines()[-1]
  assert last.startswith("launch.py: error: 4 of 7")
  assert all(name in last for name in broken)
  assert len(measurements(tmp_path / "out")) == 3
  assert contents(photographs) == before

  def failed():
    return {Path(row["photograph"]).name for row in read_csv(tmp_path / "out" / "failed.csv")}

  assert failed() == broken
  (photographs / "cut.jpg").write_bytes(whole)
  done = run(photographs / "cut.jpg", tmp_path / "out")
  assert done.returncode == 0 and failed() == broken - {"cut.jpg"}
  assert len(measurements(tmp_path / "out")) == 4


@pytest.mark.parametrize(
  ("given", "says"),
  [
    ("missing", "no such file or folder"),
    ("empty", "no image in it"),
    ("notes.txt", "not an image file"),
  ],
)
def test_nothing_to_predict_is_one_line(given, says, tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "notes.txt").touch()
  done = run(tmp_path / given, tmp_path / "out")
  assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
  assert not (tmp_path / "out").exists()


def test_folders_are_kept_apart_and_results_are_not_taken_for_photographs(tmp_path):
  for folder in ("one", "two"):
    write_photographs(tmp_path / "in" / folder)
  output = tmp_path / "in" / "results"
  for call in range(2):
    done = run(tmp_path / "in", output)
    assert done.returncode == 0, done.stderr
    assert "Outlined 6 of 6" in done.stdout and f"--output={output} lies in" in done.stdout
    assert ("left out 1 that are no photographs: results" in done.stdout) == (call == 1)
  names = [f"{folder}/{name}" for folder in ("one", "two") for name in sorted(SIZES)]
  assert [row["case_id"] for row in measurements(output)] == names
  assert [row["photograph"] for row in measurements(output)] == [f"{n}.jpg" for n in names]
  assert cv2.imread(str(output / "masks" / "two" / "wide_segmentation.png")) is not None


def red(images):
  return np.asarray(images, np.float32)[..., 0] / 255


def predict_red(inputs: list[Path], output: Path, scales: str | None = None, **network) -> dict:
  """Outlines what is red, in this process; returns the rows by case."""
  origin = {"run": "r", "model": "m", "variant": "v", "step": 3, "validation": {"dice": 0.5}}
  network = Network(red, 64, origin=origin, seen={"train": [], "val": []}, **network)
  config = resolved(eval__image_size=64, data__num_threads=1, data__prefetch_batches=1)
  given = read_scales(scales)
  predict(config, [network], MaskRule(), find_photographs(inputs, SETTINGS_FILE), output, given)
  return {row["case_id"]: row for row in measurements(output)}


def test_what_looks_like_no_dermoscopy_is_listed_first(tmp_path):
  """By a network that finds every dark photograph unlike, and another that says nothing of it."""

  def details(images):
    return {"probs": red(images), "likeness": np.asarray(images, np.float32).mean((1, 2, 3)) / 255}

  black = np.zeros((50, 60, 3), np.uint8)
  pictures = {
    "black": black,
    "dark": cv2.circle(black.copy(), (30, 25), 12, (255, 0, 0), -1),
    "spot": draw_case(0, 70, 90)[0],
    "blue": black + np.array((0, 255, 255), np.uint8),
  }
  (tmp_path / "in").mkdir()
  for name, picture in pictures.items():
    cv2.imwrite(str(tmp_path / "in" / f"{name}.png"), picture[..., ::-1])
  knows = {"details": details, "likeness_bound": 0.35}
  rows = predict_red([tmp_path / "in"], tmp_path / "out", **knows)
  for row in rows.values():
    columns = list(row)
    assert columns[columns.index("confidence") + 1] == "likeness"
  assert rows["black"]["likeness"] == "0.0" and len(rows["spot"]["likeness"]) == len("0.1234")
  review = read_csv(tmp_path / "out" / "review.csv")
  assert [row["case_id"] for row in review][:3] == ["black", "dark", "blue"]
  assert review[0]["reasons"] == "no lesion found; does not look like dermoscopy"
  assert review[1]["reasons"].startswith("does not look like dermoscopy")
  assert review[2]["reasons"] == "no lesion found"
  assert {row["case_id"]: row["likeness"] for row in review}.items() <= {
    name: row["likeness"] for name, row in rows.items()
  }.items()
  before = results(tmp_path / "out")  # of rows that are read, not computed
  assert predict_red([tmp_path / "in"], tmp_path / "out", **knows) == rows
  assert results(tmp_path / "out") == before
  silent = predict_red([tmp_path / "in"], tmp_path / "silent")
  assert {row["likeness"] for row in silent.values()} == {""}
  assert "dermoscopy" not in (tmp_path / "silent" / "review.csv").read_text()


def test_a_network_with_boundary_maps_has_them_drawn(tmp_path):
  """And drawn again where the picture was removed."""

  def details(images):
    edge = np.zeros(images.shape[:3], np.float32)
    edge[:, :32] = 1
    return {"probs": red(images), "boundary": edge}

  photographs = write_photographs(tmp_path / "photographs")
  output = tmp_path / "output"
  rows = predict_red([photographs], output, details=details)
  drawn = {path.stem: path for path in (output / "boundaries").iterdir()}
  assert drawn.keys() == rows.keys()
  for name, path in drawn.items():
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert picture.shape == (int(rows[name]["height"]), int(rows[name]["width"]))
    third = len(picture) // 3
    assert (picture[:third] == 255).all() and not picture[len(picture) - third :].any()
  removed = next(iter(drawn.values()))
  before = removed.read_bytes()
  removed.unlink()
  predict_red([photographs], output, details=details)
  assert removed.read_bytes() == before
  predict_red([photographs], tmp_path / "plain")
  assert not (tmp_path / "plain" / "boundaries").exists()


def results(output: Path) -> dict:
  """What was written, without the list of starts, which each call adds to."""
  return {name: found for name, found in contents(output).items() if name != "starts.jsonl"}


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_computed(
  tmp_path, monkeypatch
):
  photographs = write_photographs(tmp_path / "photographs")
  least = 4 * sum(path.stat().st_size for path in photographs.iterdir())
  for free, fits in ((least, True), (least - 1, False)):
    monkeypatch.setattr(limits, "free_disk", lambda folder, free=free: free)
    output = tmp_path / f"output{free}"
    if fits:
      assert predict_red([photographs], output)
      continue
    with pytest.raises(InputError, match=r"of 3 photographs take at least .* make room"):
      predict_red([photographs], output)
    assert not (output / "measurements.csv").exists()


@pytest.fixture
def photographs(tmp_path) -> Path:
  """Two of one name, one of another, and one that states its scale."""
  folder = tmp_path / "in"
  folder.mkdir()
  for number, name in enumerate(("a.jpg", "a.png", "b.png")):
    cv2.imwrite(str(folder / name), draw_case(number, 70, 90)[0][..., ::-1])
  write_dicom(folder / "c.dcm", draw_case(3, 50, 60)[0], "RGB", PixelSpacing=[0.05, 0.05])
  return folder


def test_two_photographs_of_one_name_are_kept_apart(photographs, tmp_path):
  rows = predict_red([photographs], tmp_path / "out")
  assert {name: row["photograph"] for name, row in rows.items()} == {
    "a.jpg": "a.jpg",
    "a.png": "a.png",
    "b": "b.png",
    "c": "c.dcm",
  }
  for name, row in rows.items():
    mask = cv2.imread(str(tmp_path / "out" / "masks" / f"{name}_segmentation.png"), 0)
    assert np.count_nonzero(mask) == int(row["area_px"])
  assert rows["a.jpg"]["sha256"] != rows["a.png"]["sha256"]
  before = results(tmp_path / "out")
  predict_red([photographs], tmp_path / "out")
  assert results(tmp_path / "out") == before
  with pytest.raises(
    InputError, match=r"has its results by the name a\.jpg, which would now be a,"
  ):
    predict_red([photographs / "a.jpg"], tmp_path / "out")
  assert results(tmp_path / "out") == before


def test_folders_and_endings_are_kept_apart_together(photographs, tmp_path, caplog):
  for folder in ("left", "right"):
    shutil.copytree(photographs, tmp_path / "all" / folder)
  (tmp_path / "all" / "right" / "a.png").unlink()
  write_dicom(
    tmp_path / "all" / "right" / "c.dcm", draw_case(4, 50, 60)[0], "RGB", PixelSpacing=[20, 20]
  )
  table = tmp_path / "scales.csv"
  table.write_text("id,mm_per_pixel\na,0.02\nleft/a.png,0.03\nright/b,0.04\n")
  with caplog.at_level(logging.WARNING):
    rows = predict_red([tmp_path / "all"], tmp_path / "out", str(table))
  found = {name: (row["photograph"], row["mm_per_pixel"]) for name, row in rows.items()}
  assert found == {
    "left/a.jpg": ("left/a.jpg", "0.02"),
    "left/a.png": ("left/a.png", "0.03"),
    "left/b": ("left/b.png", ""),
    "left/c": ("left/c.dcm", "0.05"),
    "right/a": ("right/a.jpg", "0.02"),
    "right/b": ("right/b.png", "0.04"),
    "right/c": ("right/c.dcm", ""),
  }
  assert "right/c.dcm: states 20 mm per pixel, which no dermoscope has" in caplog.text
  assert "2 of 7 photographs have no scale" in caplog.text
  assert (tmp_path / "out" / "overlays" / "left" / "a.png.png").exists()
  before = results(tmp_path / "out")
  predict_red([tmp_path / "all"], tmp_path / "out", str(table))
  assert results(tmp_path / "out") == before


def test_names_that_cannot_be_kept_apart_are_refused(photographs, tmp_path):
  with pytest.raises(InputError, match="would have the name of those of"):
    names_of({Path(name): PurePath(name) for name in ("a.jpg", "a.png", "a.jpg.tif")})
  (tmp_path / "other").mkdir()
  shutil.copy(photographs / "b.png", tmp_path / "other")
  with pytest.raises(InputError, match="has the same name"):
    find_photographs([photographs, tmp_path / "other"], SETTINGS_FILE)


def test_a_photograph_that_states_its_scale_is_measured_in_millimetres(
  photographs, tmp_path, caplog
):
  with caplog.at_level(logging.WARNING):
    rows = predict_red([photographs], tmp_path / "out")
  assert "3 of 4 photographs have no scale and are measured in pixels alone" in caplog.text
  area = float(rows["c"]["area_mm2"])
  assert area == pytest.approx(0.05**2 * int(rows["c"]["area_px"]), rel=1e-5)
  assert [rows[name]["area_mm2"] for name in ("a.jpg", "a.png", "b")] == [""] * 3
  assert len({tuple(row) for row in rows.values()}) == 1
  every = predict_red([photographs], tmp_path / "every", "0.1")
  assert {row["mm_per_pixel"] for row in every.values()} == {"0.1"}


def test_scales_of_several_cameras(photographs, tmp_path, caplog):
  table, output = tmp_path / "scales.csv", tmp_path / "out"
  table.write_text("\ufeffID;mm_per_pixel\na.jpg;0,02\na;0,03\nnowhere;1\n")
  with caplog.at_level(logging.WARNING):
    rows = predict_red([photographs], output, str(table))
  assert "1 of 4 photographs have no scale" in caplog.text
  scales = {name: row["mm_per_pixel"] for name, row in rows.items()}
  assert scales == {"a.jpg": "0.02", "a.png": "0.03", "b": "", "c": "0.05"}
  table.write_text("id,mm_per_pixel\na,0.02\nb.png,0.01\nc,0.5\n")
  rows = predict_red([photographs], output, str(table))  # goes on with what changed
  scales = {name: row["mm_per_pixel"] for name, row in rows.items()}
  assert scales == {"a.jpg": "0.02", "a.png": "0.02", "b": "0.01", "c": "0.5"}
  for row in rows.values():
    expected = float(row["mm_per_pixel"]) * float(row["largest_diameter_px"])
    assert float(row["largest_diameter_mm"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    (None, "takes a number from 0.001 to 1, or a CSV file with the columns id,mm_per_pixel"),
    ("id,scale\na,1\n", "first line with the columns id and mm_per_pixel"),
    ("id,mm_per_pixel\na,wide\n", "line 2: mm_per_pixel takes .*, not 'wide'"),
    ("id,mm_per_pixel\na,0.1\nb,20\n", r"line 3: mm_per_pixel takes .*20 µm are 0\.02"),
    ("id,mm_per_pixel\na,0.1\na,0.1\n", "line 3: a is listed twice"),
  ],
)
def test_a_table_of_scales_that_cannot_be_used(tmp_path, text, says):
  path = tmp_path / "scales.csv"
  if text is not None:
    path.write_text(text)
  with pytest.raises(InputError, match=says):
    read_scales(str(path))


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "20", "0.0001"])
def test_a_scale_that_no_dermoscope_has(given):
  with pytest.raises(InputError, match=r"--mm_per_pixel takes .*20 µm are 0\.02.*, not"):
    read_scales(given)
  assert read_scales(None) == Scales()
  assert read_scales("0.001").every == 0.001 and read_scales("1").every == 1


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
  photographs = write_photographs(tmp_path / "in")
  done = run(photographs, photographs)
  assert done.returncode == 2 and "without predict.json" in done.stderr


@pytest.mark.skipif(
  not (native := ROOT.parent / "shared/data/isic2018_native/images").is_dir(),
  reason="the native photographs are not beside this checkout",
)
def test_native_photographs_have_masks_of_their_size(tmp_path):
  (tmp_path / "in").mkdir()
  for path in sorted(native.iterdir())[:3]:
    os.symlink(path, tmp_path / "in" / path.name)
  done = run(tmp_path / "in", tmp_path / "out")
  assert done.returncode == 0, done.stderr
  for path in (tmp_path / "in").iterdir():
    mask = cv2.imread(
      str(tmp_path / "out" / "masks" / f"{path.stem}_segmentation.png"), cv2.IMREAD_UNCHANGED
    )
    assert mask.shape == cv2.imread(str(path)).shape[:2]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
def test_a_huge_photograph_fits_in_little_memory(tmp_path):
  """12,000 x 9,000 pixels beside others, in under 3 GiB for the whole process."""
  photographs = write_photographs(tmp_path / "in")
  huge = np.full((9000, 12000, 3), 200, np.uint8)
  cv2.circle(huge, (6000, 4500), 2500, (60, 70, 90), -1)
  cv2.imwrite(str(photographs / "huge.jpg"), huge, [cv2.IMWRITE_JPEG_QUALITY, 60])
  del huge
  log = scratch() / "memory.txt"
  patch = (
    "import atexit, shutil\n"
    f"atexit.register(lambda: shutil.copyfile('/proc/self/status', {str(log)!r}))"
  )
  done = launch(
    "--mode=predict",
    f"--workdir={finished_run()}",
    f"--input={photographs}",
    f"--output={tmp_path / 'out'}",
    "--config.eval.postprocess=('fill_holes','keep_largest')",
    patch=patch,
    GLIBC_TUNABLES="",
  )
  assert done.returncode == 0, done.stderr
  (peak,) = (line.split() for line in log.read_text().splitlines() if line.startswith("VmHWM"))
  assert int(peak[1]) < 3 * 2**20  # KiB
  header = (tmp_path / "out" / "masks" / "huge_segmentation.png").read_bytes()[16:24]
  assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (12000, 9000)
  assert json.loads((tmp_path / "out" / "predict.json").read_text())["threshold"] == 0.5
