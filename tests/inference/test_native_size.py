"""Photographs of ten megapixels: trained on and scored at their own size, in little memory."""

import json
from pathlib import Path

import cv2
import pytest
from small_runs import ROOT, arguments, launch, small_arguments

NATIVE = ROOT.parent / "shared" / "data" / "isic2018_native"
# The most that the process ever held, in MiB, on its last line. (`ru_maxrss` would begin with what
# the process that started it held.)
PEAK = (
  "import atexit, pathlib, re\n"
  "status = lambda: pathlib.Path('/proc/self/status').read_text()\n"
  "atexit.register(lambda: print('peak', int(re.search(r'VmHWM:\\s+(\\d+)', status())[1]) // 1024))"
)

pytestmark = pytest.mark.skipif(
  not (NATIVE.is_dir() and Path("/proc/self/status").exists()),
  reason="needs the photographs beside the repository, and Linux",
)


def peak_of(done) -> int:
  assert done.returncode == 0, done.stderr
  return int(done.stdout.split()[-1])


def test_native_photographs_are_trained_on_and_scored_in_three_gibibytes(tmp_path):
  workdir = f"--workdir={tmp_path / 'run'}"
  fields = {"data__source": "folder", "data__root": NATIVE}
  trained = launch(*small_arguments(**fields, train__max_steps=4), workdir, patch=PEAK)
  scored = {"eval__split": "train", "eval__batch_size": 16, "data__max_train_images": 20}
  evaluated = launch("--mode=evaluate", workdir, *arguments(**scored), patch=PEAK)
  peaks = peak_of(trained), peak_of(evaluated)
  assert min(peaks) > 100 and max(peaks) < 3 * 1024
  folder = tmp_path / "run" / "eval" / "train"
  assert json.loads((folder / "summary.json").read_text())["cases"] == 20
  for path in sorted((folder / "masks").iterdir()):
    truth = cv2.imread(str(NATIVE / "masks" / path.name), cv2.IMREAD_GRAYSCALE)
    assert cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).shape == truth.shape
