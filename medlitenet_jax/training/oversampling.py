"""Shows the lesions that stand out least from the skin more often than the others."""

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from medlitenet_jax.data.cases import Case, Source
from medlitenet_jax.data.images.resize import resize_image, resize_mask
from medlitenet_jax.scores.difficulty import border_contrast
from medlitenet_jax.system import devices

SIDE = 256  # pixels that the contrast is measured at
SHARE = 1 / 3  # of the cases that are repeated


class FaintRepeated:
  """The cases of a source, and again those whose border has the lowest contrast.

  Every case is read once, when the first repetition is asked for, to measure its contrast. Each
  repetition has an index of its own, so it is augmented differently.
  """

  def __init__(self, source: Source, repeats: int, num_threads: int):
    """Takes how often each of the faintest third comes, and the threads that read at first."""
    self._source, self._threads = source, num_threads
    self._copies = (repeats - 1) * round(SHARE * len(source))
    self._lock = threading.Lock()
    self._faint: list[int] | None = None

  def __len__(self) -> int:
    """Number of cases, repetitions included."""
    return len(self._source) + self._copies

  @property
  def case_ids(self) -> Sequence[str]:
    """Names of the cases, then of the repetitions."""
    return [self._source.case_ids[self._place(index)] for index in range(len(self))]

  def __getitem__(self, index: int) -> Case:
    """Reads one case.

    Raises:
      InputError: if it cannot be read; of the first repetition, if any case cannot.
    """
    return dataclasses.replace(self._source[self._place(index)], index=index)

  def _place(self, index: int) -> int:
    if index < len(self._source):
      return index
    with self._lock:  # the threads that come meanwhile wait for it
      if self._faint is None:
        self._faint = self._faintest()
    return self._faint[(index - len(self._source)) % len(self._faint)]

  def _faintest(self) -> list[int]:
    def contrast(index: int) -> float:
      case = self._source[index]
      small = resize_image(case.image, SIDE, SIDE), resize_mask(case.mask, SIDE, SIDE)
      return border_contrast(*small)

    count = len(self._source)
    with ThreadPoolExecutor(self._threads) as pool:
      bar = tqdm(
        pool.map(contrast, range(count)),
        total=count,
        unit="case",
        desc="contrast",
        leave=False,
        dynamic_ncols=True,
        disable=not devices.is_main_process(),
      )
      order = np.argsort(list(bar), kind="stable")  # nan, of a full mask, comes last
    return [int(place) for place in order[: round(SHARE * count)]]
