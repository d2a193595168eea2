"""Runs networks over a source of photographs, batch by batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax.data.cases import Photographs, Source
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.pipeline import eval_batches
from medlitenet_jax.inference.ensemble import Maps
from medlitenet_jax.inference.networks import Predict
from medlitenet_jax.system import devices


def predict_cases(
  predict: Predict, source: Source | Photographs, image_sizes: Sequence[int], config: ConfigDict
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
  """Runs networks over a source; a batch is computed while the one before it is handled.

  Args:
    predict: [B, S, S, 3] uint8 images by size S to Maps, as `create_predict` makes it.
    source: the cases.
    image_sizes: sides that the networks take, in pixels.
    config: resolved; `eval.batch_size`, `data` and `preprocess` are used.

  Yields:
    (case, [S, S] float32 probabilities, [S, S] float32 disagreement) in the order of the source,
    each case once; of several processes, each yields the cases of its own rows. S is the largest of
    the sizes, and the case's photograph has it too.
  """
  batch_size = devices.rows_for(config.eval.batch_size)
  batches = eval_batches(
    source,
    batch_size=batch_size,
    image_sizes=image_sizes,
    preprocessing=Preprocessing(**config.preprocess),
    num_threads=config.data.num_threads,
    prefetch_batches=config.data.prefetch_batches,
    rows=devices.local_rows(batch_size),
  )
  running = None
  for batch in batches:
    previous, running = running, (predict(devices.shard_batch(batch.images)), batch.cases)
    if previous is not None:
      yield from _cases_of(*previous)
  if running is not None:
    yield from _cases_of(*running)


def _cases_of(maps: Maps, cases: Sequence[Any]) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
  # The compiler chooses how the maps are spread over the devices; here each row goes to one.
  probs, disagreement = map(
    devices.local_values, jax.device_put(tuple(maps), devices.batch_sharding())
  )
  # Rows that only fill the batch have no case, so zip leaves them out.
  return zip(cases, probs, disagreement, strict=False)
