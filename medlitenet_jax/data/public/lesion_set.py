"""Converts a public set of photographs and masks to a TFDS data set, without TensorFlow.

A set is prepared once: reduced to a working size and written as ArrayRecord, for random access.
TFDS writes into a temporary folder and renames it at the end, so a set that exists is complete.
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
  """A published archive of a set.

  Attributes:
    name: file name without ".zip", and name of the folder that it unpacks to.
    url: download address; "" if it must be downloaded by hand.
    sha256: published checksum, 64 hexadecimal digits; "" if there is none.
  """

  name: str
  url: str = ""
  sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
  """Photographs that are published together, with their masks.

  Attributes:
    images: archives of the photographs.
    masks: archives of the masks.
    cases: number of cases.
    image_name: pattern of a photograph's file name without suffix; its group is the case.
    mask_name: pattern of a mask's file name without suffix; its group is the case.
  """

  images: tuple[Archive, ...]
  masks: tuple[Archive, ...]
  cases: int
  image_name: str = _ISIC_IMAGE
  mask_name: str = _ISIC_MASK


@dataclasses.dataclass
class WorkingSize(tfds.core.BuilderConfig):
  """TFDS configuration of a set: the size that photographs are reduced to.

  Attributes:
    short_side: shorter side in pixels; smaller photographs are not enlarged.
  """

  short_side: int = WORKING_SIZE


def working_size(short_side: int) -> WorkingSize:
  """The builder configuration for a shorter side in pixels."""
  return WorkingSize(name=str(short_side), short_side=short_side)


class LesionSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A set of photographs with one mask each.

  Attributes:
    PARTS: parts by name of the split; `_splits` may divide one further.
    ABOUT: description, homepage, licence and citation.
  """

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS: ClassVar[list[WorkingSize]] = [working_size(WORKING_SIZE)]
  MANUAL_DOWNLOAD_INSTRUCTIONS = "The archives of the set, as published or unpacked."
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
      disable_shuffling=True,  # `PreparedSource` relies on the order of the names
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager):
    # `manual_dir` raises if the folder does not exist, but its archives may be downloadable.
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
    """Folder of the converted cases until the set is complete."""
    return Path(self.data_dir_root) / f"{self.name}-{self.builder_config.name}.converted"

  def _splits(self, part: str, case_ids: list[str], manual: Path) -> dict[str, str]:
    """Split of each case of a part."""
    return dict.fromkeys(case_ids, part)

  def _find_cases(self, name: str, part: Part, manual: Path, dl_manager) -> dict[str, RawCase]:
    images, masks = (
      archives.find_members([self._fetch(a, manual, dl_manager) for a in group], re.compile(stem))
      for group, stem in ((part.images, part.image_name), (part.masks, part.mask_name))
    )
    unpaired = sorted(images.keys() ^ masks.keys())
    if unpaired or len(images) != part.cases:
      named = f"; unpaired: {', '.join(unpaired[:3])}" if unpaired else ""
      raise InputError(
        f"{self.name} {name}: the set has {part.cases} photographs and masks, but there are "
        f"{len(images)} and {len(masks)}{named}; fetch {part.images[0].name} and "
        f"{part.masks[0].name} again"
      )
    return {case_id: RawCase(case_id, images[case_id], masks[case_id]) for case_id in images}

  def _fetch(self, archive: Archive, manual: Path, dl_manager) -> Path:
    """Finds an archive in the manual folder, or downloads it."""
    path = archives.find_archive(manual, archive.name)
    if path is None:
      if not archive.url:
        raise InputError(
          f"{manual}: contains neither {archive.name} nor {archive.name}.zip; get it from "
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
