"""Public sets in their published layout, made from generated photographs."""

import dataclasses
import functools
import http.server
import subprocess
import sys
import threading
import types
import zipfile

import cv2
import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from damage import damaged, pick
from small_runs import ROOT, compiled_as_by_launch, copy_of_run, small_config

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.public import convert, network, official
from medlitenet_jax.data.public.official import (
  BUILDERS,
  PreparedSource,
  create_builder,
  prepare_set,
)
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.data.synthetic import draw_dermoscopy
from medlitenet_jax.inference.networks import create_network
from medlitenet_jax.inference.trained import open_trained
from medlitenet_jax.modes import compare, evaluate
from medlitenet_jax.system.errors import InputError

NATIVE = ROOT.parent / "shared" / "data" / "isic2018_native"
SHORT_SIDE = 48


def picture(number, height=60, width=80):
  image, mask = draw_dermoscopy(5, number, 96)
  return image[:height, :width], mask[:height, :width]


def encoded(array, ending):
  return cv2.imencode(ending, array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


def write(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def write_case(images, masks, case_id, number, suffix="_segmentation"):
  image, mask = picture(number)
  write(images / f"{case_id}.jpg", encoded(image, ".jpg"))
  write(masks / f"{case_id}{suffix}.png", encoded(mask * 255, ".png"))


def shrink(monkeypatch, name, **cases):
  """Makes a set complete with few cases and without the published checksums."""

  def small(part, count):
    unchecked = {
      group: tuple(dataclasses.replace(a, sha256="") for a in getattr(part, group))
      for group in ("images", "masks")
    }
    return dataclasses.replace(part, cases=count, **unchecked)

  parts = {split: small(part, cases[split]) for split, part in BUILDERS[name].PARTS.items()}
  monkeypatch.setattr(BUILDERS[name], "PARTS", parts)


@pytest.fixture
def isic2018(monkeypatch, tmp_path):
  """Folder with an unpacked ISIC 2018 of 4, 2 and 3 cases."""
  shrink(monkeypatch, "isic2018", train=4, val=2, test=3)
  raw, number = tmp_path / "raw", 0
  for long, count in (("Training", 4), ("Validation", 2), ("Test", 3)):
    for _ in range(count):
      write_case(
        raw / f"ISIC2018_Task1-2_{long}_Input",
        raw / f"ISIC2018_Task1_{long}_GroundTruth",
        f"ISIC_{number:07d}",
        number,
      )
      number += 1
  write(raw / "ISIC2018_Task1-2_Training_Input" / "LICENSE.txt", b"CC BY-NC")
  return raw


def pack(folder, to):
  """Zips each subfolder, as the challenge does, with the extra files that a Mac adds."""
  to.mkdir()
  for unpacked in folder.iterdir():
    with zipfile.ZipFile(to / f"{unpacked.name}.zip", "w") as packed:
      for path in sorted(unpacked.iterdir()):
        packed.write(path, f"{unpacked.name}/{path.name}")
        packed.writestr(f"__MACOSX/{unpacked.name}/._{path.name}", b"x")
  return to


def files_of(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_a_set_is_read_as_published(isic2018, tmp_path):
  builder = prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  assert {s: len(PreparedSource(builder, s, True)) for s in ("train", "val", "test")} == {
    "train": 4,
    "val": 2,
    "test": 3,
  }
  to_learn, to_score = (PreparedSource(builder, "test", native) for native in (False, True))
  assert to_score.case_ids == ["ISIC_0000006", "ISIC_0000007", "ISIC_0000008"]
  for index, number in enumerate((6, 7, 8)):
    image, mask = picture(number)
    learnt, scored = to_learn[index], to_score[index]
    assert learnt.image.shape == (48, 64, 3)
    assert learnt.mask.shape == (48, 64)
    np.testing.assert_array_equal(scored.mask, mask)
    np.testing.assert_array_equal(scored.image, learnt.image)
    shrunk = cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(learnt.image.astype(int) - shrunk).mean() < 4  # two JPEGs
    coverage = cv2.resize(mask * 255.0, (64, 48), interpolation=cv2.INTER_AREA)
    assert (learnt.mask == (coverage >= 127.5)).mean() > 0.995


def test_a_photograph_that_is_small_enough_keeps_its_file(isic2018, tmp_path):
  builder = prepare_set("isic2018", tmp_path / "sets", isic2018, 768)
  decoders = {"image": tfds.decode.SkipDecoding()}
  record = builder.as_data_source("val", decoders=decoders)[1]
  path = isic2018 / "ISIC2018_Task1-2_Validation_Input" / "ISIC_0000005.jpg"
  assert record["image"] == path.read_bytes()
  assert record["mask"].shape == (60, 80, 1)  # TFDS decodes what it is not told to skip


def test_a_damaged_set_is_refused_or_read_as_it_was(isic2018, tmp_path):
  prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  names = [path for path in sorted((tmp_path / "sets").rglob("*")) if path.is_file()]
  whole = {path: path.read_bytes() for path in names}
  refused = 0
  for number in range(60):
    rng = np.random.default_rng(number)
    path = pick(rng, names)
    path.write_bytes(damaged(rng, whole[path]))
    try:
      builder = create_builder("isic2018", tmp_path / "sets", SHORT_SIDE)
      for split in ("train", "val", "test"):
        source = PreparedSource(builder, split, True)
        for index in range(len(source)):
          assert source[index].case_id == source.case_ids[index]
    except InputError as error:
      assert len(str(error).splitlines()) == 1
      refused += 1
    path.write_bytes(whole[path])
  assert 10 < refused < 60


def test_preparing_twice_gives_the_same_bytes_zipped_or_not(isic2018, tmp_path):
  zipped = pack(isic2018, tmp_path / "zipped")
  for name, raw in (("one", isic2018), ("two", isic2018), ("three", zipped)):
    prepare_set("isic2018", tmp_path / name, raw, SHORT_SIDE)
  one, two, three = (files_of(tmp_path / name) for name in ("one", "two", "three"))
  assert any("array_record" in name for name in one)
  for files in (one, two, three):
    assert files.pop("starts.jsonl")  # says when
  assert one == two == three


def test_scores_and_pictures_are_at_the_size_of_the_native_masks(isic2018, tmp_path, monkeypatch):
  prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  workdir = copy_of_run(tmp_path)
  overrides = {
    "data.source": "isic2018",
    "data.root": str(tmp_path / "sets"),
    "data.working_size": SHORT_SIDE,
  }
  drawn = []
  for module, name in ((evaluate, "draw_grid"), (evaluate, "draw_failures")):
    draw = getattr(module, name)
    monkeypatch.setattr(
      module, name, lambda cases, path, d=draw: (drawn.extend(cases), d(cases, path))
    )
  config = config_lib.for_evaluation(config_lib.load(workdir), overrides, "cpu", small_config())
  with compiled_as_by_launch():
    networks = [create_network(open_trained(workdir), config)]
    summary = evaluate.evaluate(config, networks, workdir, "python launch.py")
  assert summary["cases"] == 3 and len(drawn) > 3
  for case in drawn:
    assert case.image.shape[:2] == case.truth.shape == case.prediction.shape == (60, 80)
  source = create_source(config.data, "test", 0)
  (evaluation,) = compare.read_evaluations([workdir])
  for shown in compare._pictures([evaluation], source):
    assert shown["case"].image.shape[:2] == shown["predictions"][0].shape == (60, 80)


def test_nothing_is_written_through_a_link(isic2018, tmp_path):
  (tmp_path / "elsewhere").mkdir()
  builder = create_builder("isic2018", tmp_path / "sets", SHORT_SIDE)
  builder.staging.parent.mkdir(parents=True, exist_ok=True)
  builder.staging.symlink_to(tmp_path / "elsewhere")
  with pytest.raises(InputError, match="is a link"):
    prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  assert not list((tmp_path / "elsewhere").iterdir())


def test_no_tensorflow_is_loaded(isic2018, tmp_path):
  prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
  ("remove", "says"),
  [
    ("ISIC2018_Task1_Test_GroundTruth", "lacks ISIC2018_Task1_Test_GroundTruth "),
    (
      "ISIC2018_Task1_Training_GroundTruth/ISIC_0000002_segmentation.png",
      "there are 4 and 3; unpaired: ISIC_0000002",
    ),
    ("ISIC2018_Task1-2_Validation_Input/ISIC_0000005.jpg", "there are 1 and 2"),
  ],
)
def test_missing_files_are_refused_by_name(isic2018, tmp_path, remove, says):
  (isic2018 / remove).rename(tmp_path / "taken")
  with pytest.raises(InputError, match=says):
    prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  assert not create_builder("isic2018", tmp_path / "sets", SHORT_SIDE).is_prepared()


def test_a_damaged_photograph_is_named_and_the_rest_is_kept(isic2018, tmp_path, monkeypatch):
  path = isic2018 / "ISIC2018_Task1-2_Test_Input" / "ISIC_0000008.jpg"
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError, match="ISIC_0000008"):
    prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  assert not create_builder("isic2018", tmp_path / "sets", SHORT_SIDE).is_prepared()

  path.write_bytes(whole)
  again = []
  convert_case = convert.convert_case
  monkeypatch.setattr(convert, "convert_case", lambda *a: again.append(a[0]) or convert_case(*a))
  builder = prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  assert again == ["ISIC_0000008"]
  assert len(PreparedSource(builder, "test", True)) == 3
  assert not builder.staging.exists()


def test_an_interrupted_preparation_goes_on(isic2018, tmp_path, monkeypatch):
  convert_case, done = convert.convert_case, []

  def stop_at_third(*arguments):
    done.append(arguments[0])
    if len(done) == 3:
      raise KeyboardInterrupt
    return convert_case(*arguments)

  monkeypatch.setattr(convert, "convert_case", stop_at_third)
  with pytest.raises(KeyboardInterrupt):
    prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  assert not create_builder("isic2018", tmp_path / "sets", SHORT_SIDE).is_prepared()
  builder = prepare_set("isic2018", tmp_path / "sets", isic2018, SHORT_SIDE)
  monkeypatch.undo()
  assert [len(PreparedSource(builder, s, True)) for s in ("train", "val", "test")] == [4, 2, 3]


def test_a_changed_photograph_is_converted_again(isic2018, tmp_path):
  path = isic2018 / "ISIC2018_Task1-2_Test_Input" / "ISIC_0000008.jpg"
  staged = create_builder("isic2018", tmp_path / "sets", SHORT_SIDE).staging
  raw = [convert.RawCase("a", path.read_bytes, lambda: encoded(picture(8)[1] * 255, ".png"))]
  convert.convert_all(raw, SHORT_SIDE, staged, "one")
  before = convert.load_converted(staged, "a")
  path.write_bytes(encoded(picture(3)[0], ".jpg"))
  convert.convert_all(raw, SHORT_SIDE, staged, "one")
  assert convert.load_converted(staged, "a").image != before.image


def test_a_zip_other_than_the_published_one_is_refused(isic2018, tmp_path, monkeypatch):
  part = BUILDERS["isic2018"].PARTS["val"]
  published = dataclasses.replace(part.images[0], sha256="0" * 64)
  parts = {**BUILDERS["isic2018"].PARTS, "val": dataclasses.replace(part, images=(published,))}
  monkeypatch.setattr(BUILDERS["isic2018"], "PARTS", parts)
  zipped = pack(isic2018, tmp_path / "zipped")
  with pytest.raises(InputError, match=r"Validation_Input\.zip: not the published file"):
    prepare_set("isic2018", tmp_path / "sets", zipped, SHORT_SIDE)


@pytest.mark.parametrize("lost", [False, True])
def test_archives_are_downloaded_where_no_folder_is_given(isic2018, tmp_path, monkeypatch, lost):
  zipped = pack(isic2018, tmp_path / "zipped")
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=zipped)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    local = f"http://127.0.0.1:{server.server_port}"

    def moved(archive):
      return dataclasses.replace(
        archive, url=archive.url.replace(f"{official.CHALLENGE}/2018", local)
      )

    parts = {
      split: dataclasses.replace(
        part, images=(moved(part.images[0]),), masks=(moved(part.masks[0]),)
      )
      for split, part in BUILDERS["isic2018"].PARTS.items()
    }
    monkeypatch.setattr(BUILDERS["isic2018"], "PARTS", parts)
    if lost:
      (zipped / "ISIC2018_Task1_Test_GroundTruth.zip").unlink()
      with pytest.raises(InputError, match=r"Test_GroundTruth\.zip cannot be downloaded .*404"):
        prepare_set("isic2018", tmp_path / "sets", None, SHORT_SIDE)
    else:
      builder = prepare_set("isic2018", tmp_path / "sets", None, SHORT_SIDE)
      mask = PreparedSource(builder, "train", True)[2].mask
      np.testing.assert_array_equal(mask, picture(2)[1])
      downloads = tmp_path / "sets" / "downloads"
      assert official._to_download(builder, downloads / "manual", downloads) == []
    server.shutdown()


@pytest.mark.parametrize("answer", ["none", "never", "too_large"])
def test_a_download_that_cannot_be_is_refused_before_it_begins(tmp_path, monkeypatch, answer):
  asked, ended = [], threading.Event()

  def head(url, **_):
    asked.append(url)
    if answer == "none":
      raise requests.ConnectionError("no route to host")
    if answer == "never":
      ended.wait(60)
    return types.SimpleNamespace(ok=True, headers={"content-length": str(2 * 10**9)})

  monkeypatch.setattr(network.requests, "head", head)
  monkeypatch.setattr(network, "SECONDS", 0.5)
  monkeypatch.setattr(network.limits, "free_disk", lambda folder: 11 * 10**9)
  told = {"none": "ConnectionError", "never": "no answer", "too_large": r"11\.2 GiB of the disk"}
  with pytest.raises(InputError, match=told[answer]) as refusal:
    prepare_set("isic2018", tmp_path / "sets", None, SHORT_SIDE)
  ended.set()
  assert "config.data.raw" in str(refusal.value) and not (tmp_path / "sets").exists()
  assert len(asked) == 6


def test_the_official_numbers_of_cases_are_asked_for():
  numbers = {name: {s: p.cases for s, p in b.PARTS.items()} for name, b in BUILDERS.items()}
  assert numbers == {
    "isic2018": {"train": 2594, "val": 100, "test": 1000},
    "isic2017": {"train": 2000, "val": 150, "test": 600},
    "isic2016": {"train": 900, "test": 379},
    "ph2": {"test": 200},
    "ham10000": {"all": 10015},
  }


def test_isic2017_passes_over_superpixels(tmp_path, monkeypatch):
  shrink(monkeypatch, "isic2017", train=2, val=1, test=1)
  raw, number = tmp_path / "raw", 0
  for long, count in (("Training", 2), ("Validation", 1), ("Test_v2", 1)):
    for _ in range(count):
      images = raw / f"ISIC-2017_{long}_Data"
      case_id = f"ISIC_{number:07d}"
      write_case(images, raw / f"ISIC-2017_{long}_Part1_GroundTruth", case_id, number)
      write(images / f"{case_id}_superpixels.png", b"none")
      number += 1
  builder = prepare_set("isic2017", tmp_path / "sets", raw, SHORT_SIDE)
  assert builder.info.metadata["case_ids"] == {
    "test": ["ISIC_0000003"],
    "train": ["ISIC_0000000", "ISIC_0000001"],
    "val": ["ISIC_0000002"],
  }


def test_isic2016_gives_some_of_its_training_set_to_val(tmp_path, monkeypatch):
  shrink(monkeypatch, "isic2016", train=40, test=2)
  raw = tmp_path / "raw"
  for number in range(42):
    long = "Training" if number < 40 else "Test"
    folders = (raw / f"ISBI2016_ISIC_Part1_{long}_{what}" for what in ("Data", "GroundTruth"))
    write_case(*folders, f"ISIC_{number:07d}", number % 3, "_Segmentation")
  builder = prepare_set("isic2016", tmp_path / "sets", raw, SHORT_SIDE)
  ids = builder.info.metadata["case_ids"]
  assert len(ids["train"]) + len(ids["val"]) == 40
  assert 1 <= len(ids["val"]) <= 10
  assert ids["test"] == ["ISIC_0000040", "ISIC_0000041"]


def test_ph2_is_a_test_set(tmp_path, monkeypatch):
  shrink(monkeypatch, "ph2", test=2)
  raw = tmp_path / "raw"
  for case_id, number in (("IMD002", 0), ("IMD003", 1)):
    folder = raw / "PH2Dataset" / "PH2 Dataset images" / case_id
    image, mask = picture(number)
    write(folder / f"{case_id}_Dermoscopic_Image" / f"{case_id}.bmp", encoded(image, ".bmp"))
    write(folder / f"{case_id}_lesion" / f"{case_id}_lesion.bmp", encoded(mask * 255, ".bmp"))
    write(folder / f"{case_id}_roi" / f"{case_id}_R1_Label4.bmp", encoded(mask * 255, ".bmp"))
  data = {"source": "ph2", "root": str(tmp_path / "sets"), "working_size": 512}
  data |= {"max_train_images": 0, "max_eval_images": 0, "folds": 0}
  prepare_set("ph2", tmp_path / "sets", raw, 512)
  source = create_source(data, "test", 0)
  assert source.case_ids == ["IMD002", "IMD003"]
  np.testing.assert_array_equal(source[1].mask, picture(1)[1])
  with pytest.raises(InputError, match="ph2 has no split 'train', only test"):
    create_source(data, "train", 0)


def ham10000(raw, lesions):
  for number, _ in enumerate(lesions):
    images = raw / f"HAM10000_images_part_{1 + number % 2}"
    masks = raw / "HAM10000_segmentations_lesion_tschandl"
    write_case(images, masks, f"ISIC_{number:07d}", number % 3)


def test_photographs_of_one_lesion_of_ham10000_stay_together(tmp_path, monkeypatch):
  lesions = [f"HAM_{number // 3}" for number in range(60)]
  shrink(monkeypatch, "ham10000", all=60)
  ham10000(tmp_path / "raw", lesions)
  with pytest.raises(InputError, match="HAM10000_metadata is missing"):
    prepare_set("ham10000", tmp_path / "sets", tmp_path / "raw", SHORT_SIDE)
  rows = "".join(f"{lesion},ISIC_{n:07d}\n" for n, lesion in enumerate(lesions))
  write(tmp_path / "raw" / "HAM10000_metadata.csv", f"lesion_id,image_id\n{rows}".encode())
  builder = prepare_set("ham10000", tmp_path / "sets", tmp_path / "raw", SHORT_SIDE)
  ids = builder.info.metadata["case_ids"]
  split = {case_id: name for name, of_split in ids.items() for case_id in of_split}
  assert len(split) == 60
  assert set(ids) == {"train", "val", "test"}
  for first in range(0, 60, 3):
    assert len({split[f"ISIC_{first + i:07d}"] for i in range(3)}) == 1


def test_a_set_that_is_not_prepared_is_refused_with_the_command(tmp_path):
  builder = create_builder("isic2018", tmp_path, SHORT_SIDE)
  with pytest.raises(InputError, match="--mode=prepare"):
    PreparedSource(builder, "train", True)


def test_the_whole_of_isic2018_is_prepared_and_read_from_the_command_line(tmp_path):
  """All 3694 cases, though each with the same small photograph."""
  image, mask = picture(0)
  number = 0
  for long, count in (("Training", 2594), ("Validation", 100), ("Test", 1000)):
    images = tmp_path / "raw" / f"ISIC2018_Task1-2_{long}_Input"
    masks = tmp_path / "raw" / f"ISIC2018_Task1_{long}_GroundTruth"
    for folder in (images, masks):
      folder.mkdir(parents=True)
    photograph, truth = encoded(image, ".jpg"), encoded(mask * 255, ".png")
    for _ in range(count):
      (images / f"ISIC_{number:07d}.jpg").write_bytes(photograph)
      (masks / f"ISIC_{number:07d}_segmentation.png").write_bytes(truth)
      number += 1
  command = [
    *(sys.executable, "launch.py", "--mode=prepare", "--config.data.source=isic2018"),
    *(f"--config.data.root={tmp_path / 'sets'}", f"--config.data.raw={tmp_path / 'raw'}"),
    "--config.data.working_size=32",
  ]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  builder = create_builder("isic2018", tmp_path / "sets", 32)
  for split, count in (("train", 2594), ("val", 100), ("test", 1000)):
    assert f"| {count:>5} |" in run.stdout
    assert len(PreparedSource(builder, split, False)) == count
  (tmp_path / "raw" / "ISIC2018_Task1-2_Test_Input" / "ISIC_0003000.jpg").unlink()
  run = subprocess.run(
    [*command[:-1], "--config.data.working_size=40"], cwd=ROOT, capture_output=True, text=True
  )
  assert run.returncode == 2
  assert "unpaired: ISIC_0003000" in run.stderr
  assert run.stderr.strip().splitlines()[-1].startswith("launch.py: error: ")
  assert "Traceback" not in run.stderr


@pytest.mark.skipif(not NATIVE.is_dir(), reason="needs the photographs beside the repository")
def test_real_photographs_keep_their_masks_at_native_size(tmp_path, monkeypatch):
  case_ids = sorted(path.stem for path in (NATIVE / "images").iterdir())[:6]
  shrink(monkeypatch, "isic2018", train=4, val=1, test=1)
  for long, ids in (
    ("Training", case_ids[:4]),
    ("Validation", case_ids[4:5]),
    ("Test", case_ids[5:]),
  ):
    for what, folder, ending in (
      ("Task1-2_{}_Input", "images", ".jpg"),
      ("Task1_{}_GroundTruth", "masks", "_segmentation.png"),
    ):
      into = tmp_path / "raw" / f"ISIC2018_{what.format(long)}"
      into.mkdir(parents=True)
      for case_id in ids:
        (into / f"{case_id}{ending}").symlink_to(NATIVE / folder / f"{case_id}{ending}")
  builder = prepare_set("isic2018", tmp_path / "sets", tmp_path / "raw", 512)
  source = PreparedSource(builder, "train", True)
  for index in range(4):
    truth = cv2.imread(str(NATIVE / "masks" / f"{case_ids[index]}_segmentation.png"), 0)
    case = source[index]
    np.testing.assert_array_equal(case.mask, (truth > 128).astype(np.uint8))
    assert min(case.image.shape[:2]) == 512
    assert case.image.shape[1] / case.image.shape[0] == pytest.approx(
      truth.shape[1] / truth.shape[0], rel=0.01
    )


def test_where_there_is_no_array_record_the_ways_on_are_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "array_record", None)
  with pytest.raises(InputError, match=r"isic2018: .*WSL.*config\.data\.source=folder"):
    create_builder("isic2018", tmp_path, 64)
