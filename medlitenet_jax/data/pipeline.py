"""Turns a source into batches, read by threads in an order that depends only on the seed."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import cv2
import jax
import numpy as np

from medlitenet_jax.data.augment.geometry import augment
from medlitenet_jax.data.augment.on_device import pack_view
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.cases import Case, Photographs, Source
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.images.resize import resize_image, resize_mask
from medlitenet_jax.system.errors import InputError

if TYPE_CHECKING:
  import grain

T = TypeVar("T")

# The reader threads work on different cases; OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)


class EvalBatch(NamedTuple):
  """A batch of cases for evaluation; the last one of a source may have fewer cases than rows.

  Attributes:
    images: {network input size S: [B, S, S, 3] uint8}; padding rows are zero.
    cases: up to B cases. Their `image` is the photograph before preprocessing, resized to the
      largest S; the rest is unchanged.
  """

  images: dict[int, np.ndarray]
  cases: list[Any]


def train_batches(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  image_size_at: Callable[[int], int],
  preprocessing: Preprocessing,
  policy: AugmentPolicy,
  num_threads: int,
  prefetch_batches: int,
  on_device: bool = False,
  rows: Sequence[int] | None = None,
) -> "grain.DatasetIterator":
  """Endless batches of augmented cases: each case once per epoch, in a new order each epoch.

  No case is dropped: if the number of cases is not a multiple of the batch size, a batch contains
  the last cases of one epoch and the first of the next. The augmentation of a case depends only on
  (seed, epoch, index of the case), not on threads or order.

  Args:
    source: the training cases.
    seed: seed of order and augmentation.
    batch_size: cases per batch.
    image_size_at: maps the number of a batch, counted from 0, to the side of its images in pixels.
    preprocessing: applied to every photograph before augmentation.
    policy: the augmentations.
    num_threads: number of reader threads.
    prefetch_batches: number of batches read ahead.
    on_device: True: only draw the parameters of the augmentations, for `unpack_views` to apply.
    rows: rows of each batch that this process reads; None: all.

  Returns:
    Iterator over {"image": [B, S, S, 3] uint8, "targets": {"mask": [B, S, S, 1] uint8, and others},
    "case_id": B names}, where B is the number of rows read. With `on_device` over {"views": arrays
    of `pack_view`, "targets": without the mask, "case_id"}. Its state can be restored for any rows.
  """
  import grain  # takes a while, and only training needs it

  rows = range(batch_size) if rows is None else rows

  def prepare(position: int, case: Case) -> dict[str, Any]:
    rng = np.random.default_rng((seed, position // len(source), case.index))
    size = image_size_at(position // batch_size)
    return _augmented(rng, case, size, preprocessing, policy, on_device)

  def read(step: int, indices: np.ndarray) -> dict:
    cases = [prepare(step * batch_size + row, source[int(indices[row])]) for row in rows]
    names = [case.pop("case_id") for case in cases]
    return {**jax.tree.map(lambda *values: np.stack(values), *cases), "case_id": names}

  dataset = (
    grain.MapDataset.range(len(source))
    .seed(seed)
    .shuffle()
    .repeat()
    .batch(batch_size, drop_remainder=True)
    .map_with_index(read)
  )
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch_batches)
  return iter(dataset.to_iter_dataset(options))


def train_shapes(
  source: Source,
  *,
  batch_size: int,
  image_size: int,
  preprocessing: Preprocessing,
  policy: AugmentPolicy,
  on_device: bool,
) -> dict[str, Any]:
  """Shapes of the arrays of a training batch, taken from the first case that can be read.

  Args:
    source: the training cases.
    batch_size: cases per batch, B.
    image_size: side of the images in pixels.
    preprocessing: as `train_batches` takes it, as are the others.
    policy: the augmentations.
    on_device: whether the batch holds views.

  Returns:
    The tree of `jax.ShapeDtypeStruct` [B, ...] of a batch, without "case_id".

  Raises:
    InputError: if no case can be read.
  """
  error: InputError | None = None
  for index in range(len(source)):
    try:
      case = source[index]
    except InputError as raised:  # training says so when it comes to that case
      error = error or raised
      continue
    rng = np.random.default_rng(0)
    row = _augmented(rng, case, image_size, preprocessing, policy, on_device)
    del row["case_id"]
    row = jax.tree.map(np.asarray, row)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype), row)
  raise error or InputError("there are no training cases")


def _augmented(
  rng: np.random.Generator,
  case: Case,
  image_size: int,
  preprocessing: Preprocessing,
  policy: AugmentPolicy,
  on_device: bool,
) -> dict[str, Any]:
  """One row of a training batch."""
  clean = preprocessing(case.image)
  same = clean.shape == case.image.shape
  mask = case.mask if same else resize_mask(case.mask, *clean.shape[:2])
  if on_device:
    views = pack_view(rng, clean, mask, image_size, policy)
    return {"views": views, "targets": case.targets, "case_id": case.case_id}
  image, mask = augment(rng, clean, mask, image_size, policy)
  targets = {**case.targets, "mask": mask[..., None]}
  return {"image": image, "targets": targets, "case_id": case.case_id}


def eval_batches(
  source: Source | Photographs,
  *,
  batch_size: int,
  image_sizes: Iterable[int],
  preprocessing: Preprocessing,
  num_threads: int,
  prefetch_batches: int,
  rows: Sequence[int] | None = None,
) -> Iterator[EvalBatch]:
  """Every case of a source once, in order, resized to the networks' square inputs.

  Args:
    source: the cases, dataclasses with an `image`.
    batch_size: rows per batch; the last batch is padded with zeros.
    image_sizes: input side of each network in pixels.
    preprocessing: applied to the networks' inputs.
    num_threads: number of reader threads.
    prefetch_batches: number of batches read ahead.
    rows: rows of each batch that this process reads; None: all.

  Returns:
    Iterator over `EvalBatch`; the number of batches does not depend on `rows`, so the last one may
    have no case.
  """
  rows = range(batch_size) if rows is None else rows
  sizes = sorted(set(image_sizes))

  def shrink(case) -> tuple[Any, dict[int, np.ndarray]]:
    clean = preprocessing(case.image)
    images = {size: resize_image(clean, size, size) for size in sizes}
    largest = sizes[-1]
    same = clean is case.image
    image = images[largest] if same else resize_image(case.image, largest, largest)
    return dataclasses.replace(case, image=image), images

  def read(step: int) -> EvalBatch:
    indices = [step * batch_size + row for row in rows]
    shrunk = [shrink(source[index]) for index in indices if index < len(source)]
    images = {size: np.zeros((len(rows), size, size, 3), np.uint8) for size in sizes}
    for size, filled in images.items():
      for place, (_, at_size) in enumerate(shrunk):
        filled[place] = at_size[size]
    return EvalBatch(images, [case for case, _ in shrunk])

  count = -(-len(source) // batch_size)
  return _read_ahead(read, count, num_threads=num_threads, prefetch=prefetch_batches)


def _read_ahead(
  read: Callable[[int], T], count: int, *, num_threads: int, prefetch: int
) -> Iterator[T]:
  """Yields `read(0)` to `read(count - 1)` in order, `prefetch` of them begun ahead by threads.

  Unlike training's, this position is never saved, so it needs no Grain.
  """
  waiting: collections.deque[Future[T]] = collections.deque()
  steps = iter(range(count))
  pool = ThreadPoolExecutor(num_threads)
  try:
    for step in steps:
      waiting.append(pool.submit(read, step))
      if len(waiting) > prefetch:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
