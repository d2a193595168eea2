"""Shows the lesions that stand out least from the skin more often than the others."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from medlitenet_jax.data.cases import Source
from medlitenet_jax.data.images.resize import resize_image, resize_mask
from medlitenet_jax.data.sources import SomeCases
from medlitenet_jax.scores.difficulty import border_contrast
from medlitenet_jax.system import devices

logger = logging.getLogger(__name__)

SIDE = 256  # pixels that the contrast is measured at, as in an evaluation
SHARE = 1 / 3  # of the cases that are repeated


def with_faint_repeated(source: Source, repeats: int, num_threads: int) -> Source:
  """Repeats the third of the cases whose border has the lowest contrast.

  Args:
    source: the training cases; with `repeats` above 1 each is read once.
    repeats: how often each of the third comes in an epoch; 1 or more.
    num_threads: that read.

  Returns:
    The cases, each with an index of its own, so that repetitions are augmented differently;
    `source` itself if nothing is repeated. Cases without a border, whose mask is full, are not.

  Raises:
    InputError: if a case cannot be read.
  """
  if repeats == 1:
    return source
  with ThreadPoolExecutor(num_threads) as pool:
    contrasts = np.array(
      list(
        tqdm(
          pool.map(lambda index: _contrast(source, index), range(len(source))),
          total=len(source),
          unit="case",
          desc="contrast",
          leave=False,
          dynamic_ncols=True,
          disable=not devices.is_main_process(),
        )
      )
    )
  order = np.argsort(contrasts, kind="stable")  # nan comes last
  faint = [i for i in order[: round(SHARE * len(source))] if np.isfinite(contrasts[i])]
  logger.info("%d of %d training cases come %d times an epoch.", len(faint), len(source), repeats)
  places = [*range(len(source)), *(int(i) for i in faint for _ in range(repeats - 1))]
  return SomeCases([(source, place) for place in places])


def _contrast(source: Source, index: int) -> float:
  case = source[index]
  return border_contrast(resize_image(case.image, SIDE, SIDE), resize_mask(case.mask, SIDE, SIDE))
