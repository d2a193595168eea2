"""Broken and hostile inputs, each with what the modes do to it.

A kind is a function (rng, folder) that writes into `folder/in` and returns what is then to be
called, which may write into `folder/out` alone. It calls what it tests through `attempt`: anything
but success and one line of refusal comes out as the exception that it is.
"""

import collections
import contextlib
import functools
import io
import json
import os
import re
import shutil
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import cv2
import numpy as np
import pillow_heif
import tiny_checkpoints
from damage import ODD_NAMES, ODD_VALUES, damaged, damaged_json, pick
from dicom_files import dicom_file
from PIL import Image
from small_runs import draw_case, resolved, scratch, small_config

from medlitenet_jax import config as config_lib
from medlitenet_jax.data import splits
from medlitenet_jax.data.images import image_files
from medlitenet_jax.data.photographs import find_photographs
from medlitenet_jax.data.public import archives, convert
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.inference import members as members_module
from medlitenet_jax.inference import threshold
from medlitenet_jax.inference.networks import Network
from medlitenet_jax.inference.trained import open_trained
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.modes import check, compare, evaluate, predict
from medlitenet_jax.pages import figures
from medlitenet_jax.scores.masks import MaskRule
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training import log
from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.workdir import open_workdir, read_cases

endings = collections.Counter()  # of calls through `attempt`


def attempt(function, *args, **kwargs):
  """What a call gives; None where it was refused in one line."""
  try:
    given = function(*args, **kwargs)
    endings["success"] += 1
    return given
  except InputError as error:
    endings["refused"] += 1
    assert str(error).strip() and len(str(error).strip().splitlines()) == 1, repr(str(error))
    return None


@functools.cache
def originals() -> tuple[tuple[str, bytes], ...]:
  """Whole pictures of every format and kind: (ending, content)."""
  image, mask = draw_case(1, 40, 56)
  white = mask * np.uint8(255)
  rgb, grey = Image.fromarray(image), Image.fromarray(white)
  alpha = Image.fromarray(np.dstack([image, white]))
  exif = Image.Exif()
  exif[0x0112] = 6
  wide = Image.fromarray(mask.astype(np.uint16) * 65535)
  found = [
    *((rgb, suffix, {}) for suffix in ("jpg", "png", "bmp", "tif")),
    *((grey, suffix, {}) for suffix in ("jpg", "png", "bmp", "tif")),
    *((wide, suffix, {}) for suffix in ("png", "tif")),
    *((rgb.quantize(16), "png", {}), (grey.convert("1"), "tif", {"compression": "group4"})),
    *(
      (alpha, "png", {}),
      (alpha, "tif", {"compression": "tiff_lzw"}),
      (rgb, "jpg", {"exif": exif}),
    ),
    *((rgb.convert("CMYK"), "jpg", {}), (rgb, "tif", {"compression": "jpeg"})),
    *((rgb, "jpg", {"progressive": True}), (rgb, "png", {"exif": exif})),
    *((rgb, suffix, {}) for suffix in ("webp", "avif", "gif", "heic")),
    *((alpha, "webp", {"lossless": True, "exif": exif}), (alpha, "avif", {"exif": exif})),
    *((grey, suffix, {}) for suffix in ("gif", "heic")),
    (rgb, "gif", {"save_all": True, "append_images": [grey]}),
  ]
  pillow_heif.register_heif_opener()
  formats = {"jpg": "JPEG", "tif": "TIFF", "heic": "HEIF"}
  contents = []
  for picture, suffix, options in found:
    buffer = io.BytesIO()
    picture.save(buffer, formats.get(suffix, suffix.upper()), **options)
    contents.append((suffix, buffer.getvalue()))
  scale = {"PixelSpacing": [0.02, 0.02]}
  dicom = [
    dicom_file(image, "RGB", **scale),
    dicom_file(image, "YBR_FULL_422", jpeg=True),
    dicom_file(white, "MONOCHROME2"),
  ]
  return (*contents, *(("dcm", content) for content in dicom))


def image(rng, folder):
  """A damaged picture, read as photograph and as mask."""
  suffix, content = pick(rng, originals())
  path = folder / "in" / f"x.{suffix}"
  declared = rng.integers(1, 2**31, 2)
  if suffix == "png" and rng.random() < 0.2:
    path.write_bytes(_declaring(content, *map(int, declared)))
  else:
    path.write_bytes(damaged(rng, content))
  return functools.partial(_read_both_ways, path)


def _declaring(png: bytes, width: int, height: int) -> bytes:
  """The file of a PNG with another size in its head, and the checksum that fits."""
  head = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
  return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


def large(rng, folder):
  """A picture of nearly as many pixels as are read, or more, in a small file."""
  path, wide = folder / "in" / "x.png", rng.random() < 0.4
  channels = int(pick(rng, (1, 3, 4)))
  most = image_files.MAX_DEEP_PIXELS if channels == 4 else image_files.MAX_PIXELS
  most = image_files.MAX_WIDE_PIXELS if wide else most
  side = int(pick(rng, (0.99, 1.01)) * most**0.5)
  pixels = np.zeros((side, side, channels), np.uint16 if wide else np.uint8)
  cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
  del pixels
  return functools.partial(_read_both_ways, path)


def _read_both_ways(path: Path) -> None:
  size, pixels = attempt(image_files.image_size, path), attempt(image_files.read_image, path)
  if pixels is not None:
    assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
    assert size == pixels.shape[:2], (size, pixels.shape)
  del pixels
  mask = attempt(image_files.read_mask, path)
  assert mask is None or (mask.ndim == 2 and mask.max(initial=0) <= 1)


def _place(rng, path: Path, content: bytes) -> None:
  """Puts content at a path, or something there that is no plain file."""
  kind = rng.integers(16)
  if kind == 0:
    os.mkfifo(path)
  elif kind == 1:
    path.symlink_to(pick(rng, ("/dev/zero", "/dev/null", path.name, "nowhere", "..")))
  elif kind == 2:
    outside = next(p for p in path.parents if p.name in ("in", "out")) / "elsewhere"
    outside.write_bytes(content)
    path.symlink_to(outside)
  elif kind == 3:
    path.mkdir()
  elif kind < 8:
    path.write_bytes(damaged(rng, content))
  else:
    path.write_bytes(content)


def _photographs(rng, folder: Path) -> list[str]:
  """Fills a folder with a few photographs of odd names; returns their names without ending."""
  folder.mkdir(parents=True)
  names = [str(name) for name in rng.choice(ODD_NAMES, rng.integers(1, 5), replace=False)]
  if rng.random() < 0.7:
    names = [f"case {i}" if ord(min(name)) < 32 else name for i, name in enumerate(names)]
  for name in names:
    suffix, content = pick(rng, originals())
    _place(rng, folder / f"{name}.{suffix}", content)
  return names


def _splits_text(rng, names) -> bytes:
  rows = [f'"{name}",{pick(rng, splits.SPLITS)},{rng.integers(3)}' for name in names]
  text = "\n".join(["id,split,patient", *rows]).encode()
  return damaged(rng, text) if rng.random() < 0.5 else text


def data_folder(rng, folder):
  """A folder of photographs and masks, opened as training does, and checked."""
  root = folder / "in" / "data"
  names = _photographs(rng, root / "images")
  (root / "masks").mkdir()
  for name in names:
    _, content = pick(rng, originals()[4:8])
    _place(rng, root / "masks" / f"{name}_segmentation.png", content)
  if rng.random() < 0.6:
    _place(rng, root / "splits.csv", _splits_text(rng, names))
  config = resolved(data__source="folder", data__root=str(root), data__num_threads=2)

  def act():
    for split in splits.SPLITS:
      source = attempt(create_source, config.data, split, 0)
      for index in range(len(source or ())):
        attempt(source.__getitem__, index)
    with mock.patch.object(check, "draw_cases"):
      attempt(check.check, config, folder / "out")
    if (folder / "out" / "check.json").exists():
      _everything_is_counted(root, folder / "out")

  return act


def _everything_is_counted(root: Path, output: Path) -> None:
  """Every photograph was read or is named among the problems."""
  summary = json.loads((output / "check.json").read_text())
  problems = tables.read_csv(output / "problems.csv")
  text = "\n".join(f"{problem['name']} {problem['what']}" for problem in problems)
  text = unicodedata.normalize("NFC", text)
  silent = [stem for stem in image_files.image_names(root / "images") if stem not in text]
  assert len(silent) <= sum(split["read"] for split in summary["splits"].values()), silent


def splits_file(rng, folder):
  """A damaged splits.csv: every case is in a split, refused or unlisted."""
  names = [f"case{i}" for i in range(rng.integers(1, 6))]
  path = folder / "in" / "splits.csv"
  _place(rng, path, damaged(rng, _splits_text(rng, names)))
  rule = splits.SplitRule(pick(rng, ("", "patient", "lesion")), 0, 0.2, 0.2)

  def act():
    found = attempt(splits.assign_splits, path, names, rule)
    if found is not None:
      refused = {name for name, _ in found.refusals}
      assert set(names) <= found.splits.keys() | set(found.unlisted) | refused

  return act


def _fake_network(workdir="run"):
  validation = {"dice": 0.5}
  origin = {"run": workdir, "model": "m", "variant": "v", "step": 3, "validation": validation}

  def red(image):
    return np.asarray(image, np.float32)[..., 0] / 255

  return Network(red, 64, origin=origin, seen={"train": ["t"], "val": ["v"]})


def photographs(rng, folder):
  """Photographs of odd names and broken ones, predicted, then predicted again."""
  given, output = folder / "in" / "photographs", folder / "out"
  _photographs(rng, given)
  config = small_config(eval__image_size=64, data__num_threads=2, data__prefetch_batches=1)
  config = config_lib.resolve(config, "cpu")

  def act():
    paths = attempt(find_photographs, [given], "predict.json")
    if paths is None:
      return
    asked = config, [_fake_network()], MaskRule(), paths, output
    attempt(predict.predict, *asked)
    if not (output / "failed.csv").exists():
      return
    masks, failed = list((output / "masks").iterdir()), tables.read_csv(output / "failed.csv")
    assert len(masks) + len(failed) == len(paths)
    for name in ("predict.json", "measurements.csv"):
      if rng.random() < 0.6 and (output / name).exists():
        (output / name).write_bytes(damaged(rng, (output / name).read_bytes()))
    attempt(predict.predict, *asked)

  return act


def saved_config(rng, folder):
  """A damaged config.json, evaluated and gone on from."""
  workdir, config = folder / "out" / "run", resolved()
  (workdir / "checkpoints" / "3").mkdir(parents=True)
  tree = json.loads(json.dumps(config.to_dict()))
  _place(rng, workdir / "config.json", damaged_json(rng, tree))
  (workdir / "cases.json").write_bytes(damaged_json(rng, {"train": ["t"], "val": ["v"]}))

  def act():
    saved = attempt(config_lib.load, workdir)
    attempt(open_trained, workdir)
    if saved is not None:
      found = attempt(config_lib.for_evaluation, saved, {}, "cpu", small_config())
      attempt(config_lib.network_difference, saved, config)
      if found is not None:
        attempt(create_model, found.model.to_dict(), DTYPES[found.precision])
        if found.data.source == "folder":
          attempt(create_source, found.data, "test", found.seed)
    sources = {name: SimpleNamespace(case_ids=[name[0]]) for name in ("train", "val")}
    attempt(functools.partial(open_workdir, total_steps=8), config, workdir, sources)
    attempt(read_cases, workdir)

  return act


def run_files(rng, folder):
  """The smaller files of a run or ensemble, damaged one by one."""
  workdir, config = folder / "out" / "run", resolved()
  workdir.mkdir()
  networks = [_fake_network("one"), _fake_network("two")]
  members = [{"run": n.origin["run"], "step": 3, "dice": 0.5, "weight": 0.5} for n in networks]
  _place(rng, workdir / "ensemble.json", damaged_json(rng, {"val_hash": "h", "members": members}))
  known = {"step": 3, "image_size": 64, "validation": {"dice": 0.5}}
  made_by = {"networks": [known, known], "tta": "none"}
  record = {"threshold": 0.4, "made_by": made_by}
  _place(rng, workdir / "threshold.json", damaged_json(rng, record))
  figures_of = {"loss": 1.0, "dice": 0.5, "image_size": 64}
  rows = [{"step": i, "epoch": i / 2, "split": "train", **figures_of} for i in range(3)]
  lines = [
    damaged_json(rng, row) if rng.random() < 0.4 else json.dumps(row).encode() for row in rows
  ]
  _place(rng, workdir / "metrics.jsonl", b"\n".join(lines))

  def act():
    weights = attempt(members_module._ensemble_weights, networks, "h", workdir)
    assert weights is None or len(weights) == 2
    found = attempt(threshold.read_threshold, networks, config, workdir)
    assert found is None or 0 < found < 1
    rows = attempt(log.read_metrics, workdir)
    if rows is not None:
      with mock.patch.object(figures, "save_figure"):
        figures.draw_curves(rows, workdir)
        figures.draw_run_curves({"run": rows}, workdir / "curves.png")
      with contextlib.closing(log.MetricsLog(workdir, resume_step=9)):
        pass

  return act


def field_value(rng, folder):
  """A value that no field was made for, as a recipe or the command line could give it."""
  fields = [name for name, _ in config_lib.flatten(small_config())]
  values = [(pick(rng, fields), pick(rng, ODD_VALUES)) for _ in range(rng.integers(1, 3))]
  platform = pick(rng, ("cpu", "gpu"))

  def act():
    config = small_config()
    with config.unlocked():
      for field, value in values:
        value = tuple(value) if isinstance(value, list) else value
        with contextlib.suppress(Exception):  # what the library refuses the launcher refuses
          config.update_from_flattened_dict({field: value})
    found = attempt(config_lib.resolve, config, platform)
    if found is not None:
      create_model(found.model.to_dict(), DTYPES[found.precision])

  return act


@functools.cache
def checkpoints_of_a_run() -> Path:
  """A workdir with two checkpoints; not to be changed."""
  workdir = scratch() / "checkpointed"
  tiny_checkpoints.save(workdir, {1: 0.5, 2: 0.4})
  return workdir


def checkpoint(rng, folder):
  """Checkpoints with damaged, missing or foreign files."""
  workdir = folder / "in" / "run"
  shutil.copytree(checkpoints_of_a_run(), workdir)
  paths = sorted(path for path in workdir.rglob("*") if path.is_file())
  for _ in range(rng.integers(1, 4)):
    path = pick(rng, paths)
    if not path.is_file():
      continue
    content = path.read_bytes()
    path.unlink()
    if rng.random() < 0.8:
      path.write_bytes(damaged(rng, content))

  def act():
    opened = attempt(Checkpoints, workdir, read_only=True)
    if opened is None:
      return
    with contextlib.closing(opened):
      for step in {opened.latest_step, opened.best_step} - {None}:
        attempt(opened.metrics, step)
        variables = tiny_checkpoints.shapes()
        variables = {"params": variables.params, "batch_stats": variables.batch_stats}
        attempt(opened.restore_ema, step, variables)
        attempt(opened.restore, step, tiny_checkpoints.shapes(), tiny_checkpoints.batches())

  return act


@functools.cache
def bomb() -> bytes:
  """A zip file of half a megabyte whose member unpacks to more than is read."""
  buffer = io.BytesIO()
  with (
    zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed,
    packed.open("ISIC_0000009.jpg", "w") as member,
  ):
    for _ in range(40):
      member.write(bytes(16 << 20))
  return buffer.getvalue()


def archive(rng, folder):
  """A zip of a public set: damaged, encrypted, climbing out, or far larger than it looks."""
  buffer, path = io.BytesIO(), folder / "in" / "set.zip"
  kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
  with zipfile.ZipFile(buffer, "w", pick(rng, kinds)) as packed:
    for number in range(rng.integers(1, 4)):
      where = pick(rng, ("", "set/", "../../", "/", "C:\\", "x\\..\\"))
      packed.writestr(f"{where}ISIC_{number:07d}.jpg", pick(rng, originals())[1])
  content = buffer.getvalue()
  if rng.random() < 0.8:
    content = damaged(rng, content)
  if rng.random() < 0.2:  # encrypted, or of an unpacked size that is not so
    content = bytearray(content)
    central = content.rfind(b"PK\1\2")
    if central >= 0:
      at = central + int(pick(rng, (8, 10, 24)))
      content[at : at + 2] = rng.bytes(2)
  path.write_bytes(bomb() if rng.random() < 0.03 else bytes(content))
  staging = folder / "out" / "converted"

  def act():
    found = attempt(archives.find_members, [path], re.compile(r"(ISIC_\d{7})")) or {}
    mask = originals()[5][1]
    cases = [convert.RawCase(name, read, lambda: mask) for name, read in found.items()]
    attempt(convert.convert_all, cases, 32, staging, "set")
    for made in staging.glob("*.npz"):
      made.write_bytes(damaged(rng, made.read_bytes()))
    attempt(convert.convert_all, cases, 32, staging, "set")
    for made in staging.glob("*.npz"):
      convert.load_converted(staging, made.stem)

  return act


@functools.cache
def evaluation() -> Path:
  """The folder of an evaluation of fake maps; not to be changed."""
  workdir = scratch() / "evaluated"
  with mock.patch.object(evaluate, "_draw"):
    evaluate.evaluate(resolved(eval__image_size=64), [_fake_network()], workdir, "command")
  return workdir / "eval" / "test"


def evaluations(rng, folder):
  """Evaluations with damaged tables, compared."""
  for name in ("one", "two"):
    shutil.copytree(evaluation(), folder / "in" / name / "eval" / "test")
  damaged_one = folder / "in" / "two" / "eval" / "test"
  if rng.random() < 0.6:
    tree = json.loads((damaged_one / "summary.json").read_text())
    (damaged_one / "summary.json").write_bytes(damaged_json(rng, tree))
  else:
    name = pick(rng, ("cases.csv", "config.json", "masks"))
    path = damaged_one / name
    path = pick(rng, sorted(path.iterdir())) if path.is_dir() else path
    path.write_bytes(damaged(rng, path.read_bytes()))
  inputs = [folder / "in" / name for name in pick(rng, (("one", "two"), ("two", "one"), ("two",)))]

  def act():
    with (
      mock.patch.object(compare, "draw_side_by_side"),
      mock.patch.object(compare, "_body", lambda *_: ""),
    ):
      attempt(compare.compare, inputs, folder / "out")

  return act


# Each kind with its share of the inputs.
KINDS = {
  image: 30,
  data_folder: 12,
  splits_file: 12,
  photographs: 8,
  saved_config: 10,
  run_files: 8,
  field_value: 14,
  checkpoint: 4,
  archive: 10,
  evaluations: 4,
  large: 0.3,
}
