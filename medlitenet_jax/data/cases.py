"""What a case is: a photograph and its truth, and a sequence of them."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

MASK_SUFFIX = "_segmentation"  # of the masks that are written, as the ISIC challenge takes them


@dataclasses.dataclass(frozen=True)
class Case:
  """One photograph and its truth.

  Attributes:
    index: place of the case in its source.
    case_id: name of the photograph without its ending.
    image: [H, W, 3] uint8 RGB at its own size, or at the working size of a prepared set.
    mask: [H, W] uint8, 0 or 1; of the size of `image` where it is learnt from, of the photograph's
      own where it is scored by.
    targets: whatever else is to be learned of the case as a whole, numbers or arrays by name, the
      same names in every case of a source. Augmentation leaves it as it is.
  """

  index: int
  case_id: str
  image: np.ndarray
  mask: np.ndarray
  targets: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Source(Protocol):
  """A sequence of cases with their names known beforehand."""

  @property
  def case_ids(self) -> Sequence[str]:
    """Names of the cases, in order."""

  def __len__(self) -> int:
    """Number of cases."""

  def __getitem__(self, index: int) -> Case:
    """Reads one case."""


class Photographs(Protocol):
  """A sequence of photographs without truth: anything with an `image`, [H, W, 3] uint8."""

  def __len__(self) -> int:
    """Number of photographs."""

  def __getitem__(self, index: int) -> Any:
    """Reads one photograph."""


def split_hash(case_ids: Sequence[str]) -> str:
  """Fingerprint of a split: equal for the same cases in whatever order.

  Args:
    case_ids: names of the cases.

  Returns:
    First 16 hexadecimal digits of the SHA-256 of the sorted names, one a line.
  """
  return hashlib.sha256("\n".join(sorted(case_ids)).encode()).hexdigest()[:16]
