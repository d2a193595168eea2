"""Prediction on one's own photographs, as a stranger would run it."""

import csv
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_runs import ROOT, contents, copy_of_run, draw_case, finished_run, launch, scratch

from medlitenet_jax.modes.predict import SCALE
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.lock import lock_folder

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
    with (tmp_path / "out" / "failed.csv").open(newline="") as file:
      return {Path(row["photograph"]).name for row in csv.DictReader(file)}

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
    ("twins", "same name"),
  ],
)
def test_nothing_to_predict_is_one_line(given, says, tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "notes.txt").touch()
  (tmp_path / "twins").mkdir()
  for suffix in ("jpg", "png"):
    (tmp_path / "twins" / f"a.{suffix}").touch()
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


@pytest.mark.parametrize("scale", [20.0, 0.0, -0.02, float("nan"), 0.0001])
def test_a_scale_that_no_dermoscope_has_is_refused(scale):
  with pytest.raises(InputError, match=r"20 µm are 0\.02.*, not"):
    SCALE.check("--mm_per_pixel", scale)


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
