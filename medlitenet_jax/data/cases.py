"""A case, which is a photograph with its ground truth, and sequences of cases."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

CLASS = "class"  # the target that is the number of a case's class, -1 where it is not known
MASK_SUFFIX = "_segmentation"  # ends the names of written masks, as in the ISIC challenge


@dataclasses.dataclass(frozen=True)
class Case:
  """One photograph and its ground truth.

  Attributes:
    index: position of the case in its source.
    case_id: file name of the photograph without suffix.
    image: [H, W, 3] uint8 RGB at its original size, or at the working size of a prepared set.
    mask: [H, W] uint8, 0 or 1; at the size of `image` for training, at the photograph's original
      size for scoring.
    targets: further targets of the whole case, numbers or arrays by name, with the same names in
      every case of a source. Augmentation does not change them.
  """

  index: int
  case_id: str
  image: np.ndarray
  mask: np.ndarray
  targets: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Source(Protocol):
  """A sequence of cases whose names are known before they are read."""

  @property
  def case_ids(self) -> Sequence[str]:
    """Names of the cases, in order."""

  def __len__(self) -> int:
    """Number of cases."""

  def __getitem__(self, index: int) -> Case:
    """Reads one case."""


class Photographs(Protocol):
  """A sequence of photographs without ground truth: items with an `image`, [H, W, 3] uint8."""

  def __len__(self) -> int:
    """Number of photographs."""

  def __getitem__(self, index: int) -> Any:
    """Reads one photograph."""


def split_hash(case_ids: Sequence[str]) -> str:
  """Fingerprint of a split: equal for the same cases in any order.

  Args:
    case_ids: names of the cases.

  Returns:
    The first 16 hexadecimal digits of the SHA-256 of the sorted names, one per line.
  """
  return hashlib.sha256("\n".join(sorted(case_ids)).encode()).hexdigest()[:16]
