"""From a source to batches, read by threads in an order that a seed alone decides."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import grain
import numpy as np

from medlitenet_jax.data.augment import AugmentPolicy, augment
from medlitenet_jax.data.resize import resize_image
from medlitenet_jax.data.sources import Case, Source

# Each reader thread works on a case of its own; OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)


class EvalBatch(NamedTuple):
  """A batch of cases for evaluation; the last one of a source may have fewer cases than rows.

  Attributes:
    image: [B, S, S, 3] uint8 at the network's size; rows past the cases are zero.
    case_ids: names of the cases, up to B.
    masks: [H, W] uint8, 0 or 1, the truth of each case at its own size.
  """

  image: np.ndarray
  case_ids: list[str]
  masks: list[np.ndarray]


def train_batches(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  image_size_at: Callable[[int], int],
  policy: AugmentPolicy,
  num_threads: int,
  prefetch_batches: int,
) -> grain.DatasetIterator:
  """Endless batches of augmented cases, every case once an epoch in an order new each epoch.

  Epochs follow each other without a gap: where the number of cases is no multiple of the batch, a
  batch holds the last cases of one epoch and the first of the next, so none is left out. What a
  case becomes depends on (seed, epoch, index of the case) alone, not on threads or on order.

  Args:
    source: the training cases.
    seed: of order and augmentation.
    batch_size: cases a batch.
    image_size_at: pixels a side of the batch of a given number, counted from 0.
    policy: the augmentations.
    num_threads: that read.
    prefetch_batches: that are kept ready.

  Returns:
    Iterator over {"image": [B, S, S, 3] uint8, "mask": [B, S, S, 1] uint8, "case_id": B names};
    its state can be saved and restored.
  """

  def prepare(position: int, case: Case) -> dict[str, np.ndarray | str]:
    rng = np.random.default_rng((seed, position // len(source), case.index))
    image_size = image_size_at(position // batch_size)
    image, mask = augment(rng, case.image, case.mask, image_size, policy)
    return {"image": image, "mask": mask[..., None], "case_id": case.case_id}

  def collate(cases: Sequence[dict]) -> dict:
    batch = {name: np.stack([case[name] for case in cases]) for name in ("image", "mask")}
    return {**batch, "case_id": [case["case_id"] for case in cases]}

  dataset = (
    grain.MapDataset.source(source)
    .seed(seed)
    .shuffle()
    .repeat()
    .map_with_index(prepare)
    .batch(batch_size, drop_remainder=True, batch_fn=collate)
    .to_iter_dataset(
      grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch_batches)
    )
  )
  return iter(dataset)


def eval_batches(
  source: Source, *, batch_size: int, image_size: int, num_threads: int, prefetch_batches: int
) -> Iterator[EvalBatch]:
  """Every case of a source once, in order, squashed to the square that the network sees.

  Args:
    source: the cases.
    batch_size: rows of a batch; the last batch is filled up with empty rows.
    image_size: pixels a side.
    num_threads: that read.
    prefetch_batches: that are kept ready.

  Returns:
    Iterator over batches.
  """

  def shrink(case: Case) -> Case:
    return dataclasses.replace(case, image=resize_image(case.image, image_size, image_size))

  def collate(cases: Sequence[Case]) -> EvalBatch:
    image = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
    image[: len(cases)] = [case.image for case in cases]
    return EvalBatch(image, [case.case_id for case in cases], [case.mask for case in cases])

  return iter(
    grain.MapDataset.source(source)
    .map(shrink)
    .batch(batch_size, batch_fn=collate)
    .to_iter_dataset(
      grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch_batches)
    )
  )
