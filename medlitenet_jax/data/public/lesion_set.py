"""How a public set of photographs and masks becomes a TFDS data set, without TensorFlow.

A set is prepared once: reduced to a working size, written as ArrayRecord, read at random. TFDS
writes into a folder of another name and renames it at the end, so a set that is there is whole.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from medlitenet_jax.data.public import archives
from medlitenet_jax.data.public.convert import RawCase, convert_all, load_converted
from medlitenet_jax.system.errors import InputError

WORKING_SIZE = 768  # pixels of the shorter side
_ISIC_IMAGE = r"(ISIC_\d{7})"
_ISIC_MASK = r"(ISIC_\d{7})_[Ss]egmentation"


@dataclasses.dataclass(frozen=True)
class Archive:
  """A file that a set is handed out in.

  Attributes:
    name: without ".zip"; also of the folder that it unpacks to.
    url: where it is, or "" where a person has to fetch it.
    sha256: 64 hexadecimal digits where they are published, else "".
  """

  name: str
  url: str = ""
  sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
  """Photographs that are handed out together, with their masks.

  Attributes:
    images: archives of the photographs.
    masks: archives of the masks.
    cases: how many there are.
    image_name: of a photograph's file without ending, the case as its group.
    mask_name: of a mask's file without ending, the case as its group.
  """

  images: tuple[Archive, ...]
  masks: tuple[Archive, ...]
  cases: int
  image_name: str = _ISIC_IMAGE
  mask_name: str = _ISIC_MASK


@dataclasses.dataclass
class WorkingSize(tfds.core.BuilderConfig):
  """What a set is reduced to.

  Attributes:
    short_side: pixels of the shorter side; smaller photographs stay as they are.
  """

  short_side: int = WORKING_SIZE


def working_size(short_side: int) -> WorkingSize:
  """The configuration of a builder by pixels of the shorter side."""
  return WorkingSize(name=str(short_side), short_side=short_side)


class LesionSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A set of photographs with one mask each.

  Attributes:
    PARTS: by the name that TFDS and this project give a split; `_splits` may divide one further.
    ABOUT: description, homepage, licence and citation.
  """

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS: ClassVar[list[WorkingSize]] = [working_size(WORKING_SIZE)]
  MANUAL_DOWNLOAD_INSTRUCTIONS = "The archives of the set, as they are handed out or unpacked."
  PARTS: ClassVar[Mapping[str, Part]] = {}
  ABOUT: ClassVar[Mapping[str, str]] = {}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.ABOUT["description"],
      homepage=self.ABOUT["homepage"],
      license=self.ABOUT["license"],
      citation=self.ABOUT["citation"],
      features=tfds.features.FeaturesDict(
        {
          "case_id": tfds.features.Text(),
          "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
          "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
          "native_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        }
      ),
      disable_shuffling=True,  # the order is that of the names, which `PreparedSource` relies on
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager):
    # `manual_dir` itself refuses a folder that is not there, but its archives may be downloaded.
    manual = Path(dl_manager._manual_dir)
    splits: dict[str, dict[str, RawCase]] = {}
    for name, part in self.PARTS.items():
      cases = self._find_cases(name, part, manual, dl_manager)
      for case_id, split in self._splits(name, list(cases), manual).items():
        splits.setdefault(split, {})[case_id] = cases[case_id]
    splits = {name: dict(sorted(splits[name].items())) for name in sorted(splits)}
    every = [case for by_id in splits.values() for case in by_id.values()]
    convert_all(every, self.builder_config.short_side, self.staging, self.name)
    self.info.metadata["case_ids"] = {name: list(by_id) for name, by_id in splits.items()}
    return {name: self._generate_examples(list(by_id)) for name, by_id in splits.items()}

  def _generate_examples(self, case_ids):
    for number, case_id in enumerate(case_ids):
      converted = load_converted(self.staging, case_id)
      yield number, {"case_id": case_id, **dataclasses.asdict(converted)}

  @property
  def staging(self) -> Path:
    """Folder of the cases that are converted, until all are."""
    return Path(self.data_dir_root) / f"{self.name}-{self.builder_config.name}.converted"

  def _splits(self, part: str, case_ids: list[str], manual: Path) -> dict[str, str]:
    """Split of each case of a part."""
    return dict.fromkeys(case_ids, part)

  def _find_cases(self, name: str, part: Part, manual: Path, dl_manager) -> dict[str, RawCase]:
    images, masks = (
      archives.find_members([self._fetch(a, manual, dl_manager) for a in group], re.compile(stem))
      for group, stem in ((part.images, part.image_name), (part.masks, part.mask_name))
    )
    odd = sorted(images.keys() ^ masks.keys())
    if odd or len(images) != part.cases:
      named = f"; without the other: {', '.join(odd[:3])}" if odd else ""
      raise InputError(
        f"{self.name} {name}: {part.cases} photographs and as many masks are handed out, but "
        f"{len(images)} and {len(masks)} are there{named}; fetch {part.images[0].name} and "
        f"{part.masks[0].name} again"
      )
    return {case_id: RawCase(case_id, images[case_id], masks[case_id]) for case_id in images}

  def _fetch(self, archive: Archive, manual: Path, dl_manager) -> Path:
    """Finds an archive in the manual folder, or downloads it."""
    path = archives.find_archive(manual, archive.name)
    if path is None:
      if not archive.url:
        raise InputError(
          f"{manual}: neither {archive.name} nor {archive.name}.zip is there; get it from "
          f"{self.ABOUT['homepage']} and set config.data.raw to the folder that holds it"
        )
      try:
        path = Path(dl_manager.download(archive.url))
      except (OSError, tfds.download.DownloadError) as error:
        raise InputError(
          f"{archive.url} cannot be downloaded ({error}); try again, or fetch it by hand into "
          f"{manual}"
        ) from error
    if archive.sha256 and not path.is_dir():
      archives.refuse_other_file(path, archive.sha256)
    return path
