"""The public sets by name: their archives, splits, preparation and reading."""

import contextlib
import csv
import importlib.util
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from medlitenet_jax.data.cases import Case
from medlitenet_jax.data.images.image_files import decode_image, decode_mask
from medlitenet_jax.data.public import archives
from medlitenet_jax.data.public.lesion_set import Archive, LesionSet, Part, working_size
from medlitenet_jax.data.public.network import refuse_download
from medlitenet_jax.data.splits import SplitRule
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_text, refuse_links
from medlitenet_jax.system.starts import record_start

CHALLENGE = "https://isic-challenge-data.s3.amazonaws.com"


def _challenge_archive(year: int, name: str, sha256: str = "") -> Archive:
  return Archive(name, f"{CHALLENGE}/{year}/{name}.zip", sha256)


def _challenge_part(year: int, images: str, masks: str, cases: int) -> Part:
  return Part((_challenge_archive(year, images),), (_challenge_archive(year, masks),), cases)


def _about_challenge(year: int, license: str, citation: str) -> dict[str, str]:
  return {
    "description": f"ISIC {year} challenge, lesion segmentation.",
    "homepage": f"https://challenge.isic-archive.com/data/#{year}",
    "license": license,
    "citation": citation,
  }


class Isic2018(LesionSet):
  """ISIC 2018 Task 1. The checksums are from torch-em's `isic.py`."""

  PARTS: ClassVar[Mapping[str, Part]] = {
    split: Part(
      (_challenge_archive(2018, f"ISIC2018_Task1-2_{long}_Input", images),),
      (_challenge_archive(2018, f"ISIC2018_Task1_{long}_GroundTruth", masks),),
      cases,
    )
    for split, long, cases, images, masks in (
      (
        *("train", "Training", 2594),
        "80f98572347a2d7a376227fa9eb2e4f7459d317cb619865b8b9910c81446675f",
        "99f8b2bb3c4d6af483362010715f7e7d5d122d9f6c02cac0e0d15bef77c7604c",
      ),
      (
        *("val", "Validation", 100),
        "0ea920fcfe512d12a6e620b50b50233c059f67b10146e1479c82be58ff15a797",
        "f6911e9c0a64e6d687dd3ca466ca927dd5e82145cb2163b7a1e5b37d7a716285",
      ),
      (
        *("test", "Test", 1000),
        "e59ae1f69f4ed16f09db2cb1d76c2a828487b63d28f6ab85997f5616869b127d",
        "2e8f6edce454a5bdee52485e39f92bd6eddf357e81f39018d05512175238ef82",
      ),
    )
  }
  ABOUT: ClassVar[Mapping[str, str]] = _about_challenge(
    2018, "CC BY-NC 4.0 (parts CC0)", "arXiv 1902.03368; Tschandl et al., Sci. Data 5, 180161, 2018"
  )


class Isic2017(LesionSet):
  """ISIC 2017 Part 1."""

  PARTS: ClassVar[Mapping[str, Part]] = {
    split: _challenge_part(
      2017, f"ISIC-2017_{long}_Data", f"ISIC-2017_{long}_Part1_GroundTruth", cases
    )
    for split, long, cases in (
      ("train", "Training", 2000),
      ("val", "Validation", 150),
      ("test", "Test_v2", 600),
    )
  }
  ABOUT: ClassVar[Mapping[str, str]] = _about_challenge(2017, "CC0", "arXiv 1710.05006")


class Isic2016(LesionSet):
  """ISIC 2016 Part 1; a tenth of its training set, chosen by a hash of the name, becomes `val`."""

  PARTS: ClassVar[Mapping[str, Part]] = {
    split: _challenge_part(
      2016, f"ISBI2016_ISIC_Part1_{long}_Data", f"ISBI2016_ISIC_Part1_{long}_GroundTruth", cases
    )
    for split, long, cases in (("train", "Training", 900), ("test", "Test", 379))
  }
  ABOUT: ClassVar[Mapping[str, str]] = _about_challenge(2016, "CC0", "arXiv 1605.01397")

  def _splits(self, part, case_ids, manual):
    if part == "test":
      return super()._splits(part, case_ids, manual)
    rule = SplitRule(group_column="", seed=0, val_fraction=0.1, test_fraction=0.0)
    return {case_id: rule.split_of(case_id) for case_id in case_ids}


class Ph2(LesionSet):
  """PH2, all of it `test`, for networks trained elsewhere. Published as .rar; unpack it first."""

  _FOLDER = (Archive("PH2 Dataset images"),)
  PARTS: ClassVar[Mapping[str, Part]] = {
    "test": Part(_FOLDER, _FOLDER, 200, r"(IMD\d{3})", r"(IMD\d{3})_lesion")
  }
  ABOUT: ClassVar[Mapping[str, str]] = {
    "description": "PH2: 200 melanocytic lesions at 20x, Hospital Pedro Hispano, Matosinhos.",
    "homepage": "https://www.fc.up.pt/addi/ph2%20database.html",
    "license": "for research and education",
    "citation": "Mendonça et al., EMBC 2013, doi 10.1109/EMBC.2013.6610779",
  }


class Ham10000(LesionSet):
  """HAM10000 with its segmentations, split by a hash of the lesion: a tenth each for val and test.

  Many lesions were photographed several times; all photographs of a lesion are in one split.
  """

  METADATA = "HAM10000_metadata"
  PARTS: ClassVar[Mapping[str, Part]] = {
    "all": Part(
      (Archive("HAM10000_images_part_1"), Archive("HAM10000_images_part_2")),
      (Archive("HAM10000_segmentations_lesion_tschandl"),),
      10015,
    )
  }
  ABOUT: ClassVar[Mapping[str, str]] = {
    "description": "HAM10000 with the lesion segmentations of Tschandl et al.",
    "homepage": "https://doi.org/10.7910/DVN/DBW86T",
    "license": "CC BY-NC 4.0",
    "citation": "Tschandl et al., Sci. Data 5, 180161, 2018; Nat. Med. 26, 1229-1234, 2020",
  }

  def _splits(self, part, case_ids, manual):
    path = next((p for p in sorted(manual.glob(f"{self.METADATA}*")) if p.is_file()), None)
    if path is None:
      raise InputError(
        f"{manual}: {self.METADATA} is missing; without it photographs of one lesion could end up "
        f"in two splits; get it from {self.ABOUT['homepage']}"
      )
    try:
      text = read_text(path)
      delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
      rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
      lesions = {row.get("image_id") or "": row.get("lesion_id") or "" for row in rows}
    except (OSError, ValueError, csv.Error) as error:
      raise InputError(f"{path}: cannot be read ({error}); fetch it again") from error
    unknown = [case_id for case_id in case_ids if not lesions.get(case_id)]
    if unknown:
      raise InputError(
        f"{path}: has no lesion_id for {len(unknown)} photographs: {unknown[0]}, ..."
      )
    rule = SplitRule(group_column="lesion_id", seed=0, val_fraction=0.1, test_fraction=0.1)
    return {case_id: rule.split_of(lesions[case_id]) for case_id in case_ids}


BUILDERS: dict[str, type[LesionSet]] = {
  builder.name: builder for builder in (Isic2018, Isic2017, Isic2016, Ph2, Ham10000)
}


@contextlib.contextmanager
def _refusing(folder: Path | str) -> Iterator[None]:
  """Turns the exceptions of a damaged prepared set into an InputError that names its folder."""
  try:
    yield
  except InputError:
    raise
  except MemoryError as error:
    raise InputError(
      f"{folder}: there is not enough memory to read it; set fewer config.data.num_threads or "
      "config.data.cache_gib=0"
    ) from error
  except Exception as error:  # TFDS and ArrayRecord raise many kinds for a damaged file
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise InputError(
      f"{folder}: the prepared set cannot be read ({reason}); remove the folder and run "
      "--mode=prepare again"
    ) from error


def create_builder(name: str, root: Path, short_side: int) -> LesionSet:
  """Opens a set, prepared or not.

  Args:
    name: one of `BUILDERS`.
    root: folder of the prepared sets.
    short_side: working size, as the shorter side in pixels.

  Returns:
    The builder.

  Raises:
    InputError: if a prepared set is damaged, or such files cannot be read on this system.
  """
  if importlib.util.find_spec("array_record") is None:  # which has no wheels for Windows
    raise InputError(
      f"{name}: public sets are kept in array_record files, which cannot be read or written here "
      "(Windows); use WSL, or convert the set to a folder elsewhere and take "
      "config.data.source=folder"
    )
  builder = BUILDERS[name]
  # TFDS expects configurations that a builder lists by name, and others by value.
  size = working_size(short_side)
  config = size.name if size in builder.BUILDER_CONFIGS else size
  with _refusing(root / name):
    return builder(data_dir=root, config=config, file_format="array_record")


def prepare_set(name: str, root: Path, raw: Path | None, short_side: int) -> LesionSet:
  """Prepares a set, or continues where an earlier call stopped.

  Args:
    name: one of `BUILDERS`.
    root: folder of the prepared sets; receives `name/short_side/version/`.
    raw: folder with the archives, zipped or unpacked; None: use those in `root/downloads/manual`
      and download the others if possible.
    short_side: working size, as the shorter side in pixels.

  Returns:
    The builder of the prepared set.

  Raises:
    InputError: if archives or their files are missing, damaged or not those of the set, or if the
      set would be written through a symbolic link.
  """
  builder = create_builder(name, root, short_side)
  for folder in () if builder.is_prepared() else (builder.staging, root / name):
    if folder.is_symlink():
      raise InputError(
        f"{folder}: is a link; link {root} instead, or choose another config.data.root"
      )
    refuse_links(folder)
  manual = raw or root / "downloads" / "manual"
  if raw is not None:
    lacking = [
      archive.name
      for part in builder.PARTS.values()
      for archive in (*part.images, *part.masks)
      if archives.find_archive(raw, archive.name) is None
    ]
    if lacking:
      raise InputError(
        f"{raw}: lacks {', '.join(dict.fromkeys(lacking))} (each a folder or .zip); get them from "
        f"{builder.ABOUT['homepage']}, or leave config.data.raw empty to have what is public "
        "downloaded"
      )
  if not builder.is_prepared():
    refuse_download(
      _to_download(builder, manual, root / "downloads"),
      root,
      f"fetch the archives by hand into a folder and set config.data.raw to it "
      f"({builder.ABOUT['homepage']})",
    )
  record_start(root)
  config = tfds.download.DownloadConfig(manual_dir=str(manual))
  builder.download_and_prepare(download_dir=str(root / "downloads"), download_config=config)
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(builder.staging)
  return create_builder(name, root, short_side)


def prepared_sources(
  builder: LesionSet, splits: Sequence[str], native: bool
) -> list["PreparedSource"]:
  """Opens splits of a prepared set, see `PreparedSource`; of several, those that it has."""
  if len(splits) > 1 and builder.is_prepared():
    with _refusing(builder.data_dir):
      splits = [split for split in splits if split in builder.info.metadata["case_ids"]]
  return [PreparedSource(builder, split, native) for split in splits]


def _to_download(builder: LesionSet, manual: Path, downloads: Path) -> list[str]:
  """Addresses of the archives that are neither in the manual folder nor downloaded before."""
  # TFDS notes the address of each file beside it.
  notes = "".join(path.read_text(errors="replace") for path in downloads.rglob("*.INFO"))
  archives_of_set = {
    archive: None for part in builder.PARTS.values() for archive in (*part.images, *part.masks)
  }
  return [
    archive.url
    for archive in archives_of_set
    if archive.url
    and archives.find_archive(manual, archive.name) is None
    and archive.url not in notes
  ]


class PreparedSource:
  """Cases of a set prepared by `prepare_set`.

  Attributes:
    case_ids: names of the cases of the split, sorted.
  """

  def __init__(self, builder: LesionSet, split: str, native: bool):
    """Opens a split.

    Args:
      builder: builder of the set.
      split: one of the set's splits.
      native: True: masks at the photograph's original size, for scoring; False: at the working
        size, for training.

    Raises:
      InputError: if the set is not prepared, is damaged or has no such split.
    """
    if not builder.is_prepared():
      raise InputError(
        f"{builder.data_dir}: {builder.name} is not prepared there; run the same command with "
        "--mode=prepare first, or set config.data.root to where it is"
      )
    self._folder = builder.data_dir
    with _refusing(self._folder):
      case_ids = builder.info.metadata["case_ids"]
      if split not in case_ids:
        raise InputError(f"{builder.name} has no split {split!r}, only {', '.join(case_ids)}")
      self.case_ids: list[str] = [str(case_id) for case_id in case_ids[split]]
      self._mask = "native_mask" if native else "mask"
      skip = tfds.decode.SkipDecoding()
      decoders = dict.fromkeys(("image", "mask", "native_mask"), skip)
      self._records: Any = builder.as_data_source(split, decoders=decoders)
      if len(self._records) != len(self.case_ids):
        raise ValueError(f"{len(self._records)} records of {len(self.case_ids)} cases")

  def __len__(self) -> int:
    """Number of cases."""
    return len(self.case_ids)

  def __getitem__(self, index: int) -> Case:
    """Reads one case, with the photograph at the working size."""
    name = Path(self.case_ids[index])
    with _refusing(self._folder):
      record = self._records[index]
      if record["case_id"] not in (name.name, name.name.encode()):
        raise ValueError(f"record {index} is not {name}")
    image, mask = decode_image(record["image"], name), decode_mask(record[self._mask], name)
    return Case(index, self.case_ids[index], image, mask)
