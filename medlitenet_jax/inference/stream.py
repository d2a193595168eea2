"""Runs networks over a source of photographs, batch by batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from medlitenet_jax.data.cases import Photographs, Source
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.pipeline import eval_batches
from medlitenet_jax.system import devices


def predict_cases(
  predict: Callable[[Mapping[int, Any]], Any],
  source: Source | Photographs,
  image_sizes: Sequence[int],
  config: ConfigDict,
) -> Iterator[tuple[Any, Any]]:
  """Runs networks over a source; a batch is computed while the one before it is handled.

  Args:
    predict: [B, S, S, 3] uint8 images by size S to a tree of [B, ...] arrays; as `create_predict`
      makes it, to Maps.
    source: the cases.
    image_sizes: sides that the networks take, in pixels.
    config: resolved; `eval.batch_size`, `data` and `preprocess` are used.

  Yields:
    (case, the tree's row of it) in the order of the source, each case once; of several processes,
    each yields the cases of its own rows. The case's photograph has the largest of the sizes.
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


def _cases_of(tree: Any, cases: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
  # The compiler chooses how arrays are spread over the devices; here each row goes to one.
  spread = jax.device_put(tree, devices.batch_sharding())
  values = jax.tree.map(devices.local_values, spread)
  # Rows that only fill the batch have no case.
  for row, case in enumerate(cases):
    yield case, jax.tree.map(lambda array, row=row: array[row], values)
