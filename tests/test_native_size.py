"""Photographs of ten megapixels: trained on and scored at their own size, in little memory."""

import json

import cv2
import pytest
from small_runs import ROOT, arguments, launch, small_arguments

NATIVE = ROOT.parent / "shared" / "data" / "isic2018_native"
# The most that the process ever held, in MiB, on its last line.
PEAK = (
  "import atexit, resource\n"
  "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
  "atexit.register(lambda: print('peak', peak()))"
)

pytestmark = pytest.mark.skipif(
  not NATIVE.is_dir(), reason="needs the photographs beside the repository"
)


def peak_of(done) -> int:
  assert done.returncode == 0, done.stderr
  return int(done.stdout.split()[-1])


def test_native_photographs_are_trained_on_and_scored_in_three_gibibytes(tmp_path):
  workdir = f"--workdir={tmp_path / 'run'}"
  fields = {"data__source": "folder", "data__root": NATIVE}
  trained = launch(*small_arguments(**fields), workdir, patch=PEAK)
  evaluated = launch(
    *("--mode=evaluate", workdir, *arguments(eval__split="train", eval__batch_size=16)), patch=PEAK
  )
  assert max(peak_of(trained), peak_of(evaluated)) < 3 * 1024
  folder = tmp_path / "run" / "eval" / "train"
  assert json.loads((folder / "summary.json").read_text())["cases"] >= 20
  for path in sorted((folder / "masks").iterdir()):
    truth = cv2.imread(str(NATIVE / "masks" / path.name), cv2.IMREAD_GRAYSCALE)
    assert cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).shape == truth.shape
