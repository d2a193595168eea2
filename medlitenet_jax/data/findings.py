"""What many pairs together say about a data set: masks that would ruin a training, small splits.

A single odd mask may be right. Here a kind of oddness counts that most of the masks share.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medlitenet_jax.data.cases import Case
from medlitenet_jax.data.folder import Problem, Scan
from medlitenet_jax.data.images import image_files, mask_fit
from medlitenet_jax.data.splits import SPLITS

MOST = 0.5  # fraction of the masks above which training would be pointless
# Fraction above which they are worth a look. Of 13,811 real masks one looks inverted, and of their
# inverses 94 to 99 % (examples/mask_fit.py measures this and what follows).
SOME = 0.1
# Fewest pairs that are judged by colour, or as a split of its own; cases that a split should have.
ENOUGH = 10
# A mask fits if it separates the colours of its photograph better than this fraction of others.
# That holds for 86 to 91 % of real masks and for 18 to 22 % of those of another photograph.
FITS_BETTER_THAN = 0.8
# Fraction of the masks that must fit better turned or scaled. 4 to 8 % of real masks do, half of
# those of another photograph, and 95 % where that undoes what was done to them.
REPAIRED = 0.75


@dataclasses.dataclass(frozen=True)
class Look:
  """What is kept of a case to judge its mask beside others.

  Attributes:
    case_id: name of the case.
    split: its split.
    lesion: fraction of the mask that is lesion.
    image: photograph, reduced; see `mask_fit.reduced`.
    mask: its mask, reduced.
  """

  case_id: str
  split: str
  lesion: float
  image: np.ndarray
  mask: np.ndarray


def look_at(case: Case, split: str) -> Look:
  """Reduces a case of a split to what `find_in_masks` needs."""
  lesion = np.count_nonzero(case.mask) / case.mask.size
  return Look(case.case_id, split, lesion, *mask_fit.reduced(case.image, case.mask))


def find_in_masks(looks: Sequence[Look]) -> list[Problem]:
  """Finds what is wrong with most masks, of the whole set or else of one split.

  Args:
    looks: of all cases, or of a random sample.

  Returns:
    Findings, by split where a split shows them. Those that would make training pointless have
    `stops_training`; in test none does.
  """
  found = _judge(looks, "")
  if any(problem.stops_training for problem in found):
    return found
  by_split = {split: [look for look in looks if look.split == split] for split in SPLITS}
  of_splits = [
    dataclasses.replace(problem, stops_training=problem.stops_training and split != "test")
    for split, of_split in by_split.items()
    if len(of_split) >= ENOUGH
    for problem in _judge(of_split, split)
  ]
  told = {problem.kind for problem in of_splits}
  return [problem for problem in found if problem.kind not in told] + of_splits


def look_inverted(masks: np.ndarray) -> np.ndarray:
  """[N] bool: masks that mark most of the border of the frame, and less of its middle.

  Args:
    masks: [N, SIZE, SIZE] uint8, see `mask_fit.reduced`.
  """
  border, middle = mask_fit.border_and_middle(masks)
  return (border > middle) & (border > 0.5)


def find_small_splits(counts: Mapping[str, int]) -> list[Problem]:
  """Warns of splits with fewer than `ENOUGH` cases, empty ones aside.

  Args:
    counts: number of cases of each split.
  """
  few = (
    "only {} in {}, too few for a score to mean much; put more there, or leave other photographs "
    "out in each of several runs and average their scores (--mode=repeat --config.data.folds=5)"
  )
  advice = {
    "train": "only {} in {}, too few to learn from; add photographs, or start from released "
    "weights (--config.train.start_from=base)"
  }
  return [
    Problem("small_split", split, split, advice.get(split, few).format(_cases(count), split), False)
    for split, count in counts.items()
    if 0 < count < ENOUGH
  ]


def find_other_sizes(scan: Scan) -> list[Problem]:
  """Finds out whether most masks have another size than their photographs, and by what factor."""
  names = {problem.name for problem in scan.problems if problem.kind == "size_mismatch"}
  cases = [case for broken in scan.broken.values() for case in broken if case.case_id in names]
  total = len(names) + sum(map(len, scan.cases.values()))
  if not names or len(names) <= MOST * total:
    return []
  factors = []
  for case in cases:
    mask, image = (np.array(image_files.image_size(path)) for path in (case.mask, case.image))
    factors.append(mask / image)
  usual = np.median(factors, axis=0)
  same = bool(
    (np.abs(factors - usual) < 0.02 * usual).all() and abs(usual[0] / usual[1] - 1) < 0.02
  )
  scale = f", each {usual[0]:.3g} times as high and wide" if same else ""
  what = (
    f"{len(names)} of {total} masks have another size than their photographs{scale}; resize them "
    "to their photographs' size without smoothing (nearest neighbour)"
  )
  return [Problem("wrong_scale", "masks", "", what, True)]


def _judge(looks: Sequence[Look], split: str) -> list[Problem]:
  """Judges these cases together; `split` is "" for the whole set."""
  marked = [look for look in looks if 0 < look.lesion < 1]
  where = f" of {split}" if split else ""

  def problem(kind: str, what: str, *, stops: bool = True) -> Problem:
    return Problem(kind, "masks", split, what, stops)

  found = []
  empty = sum(look.lesion == 0 for look in looks)
  full = len(looks) - len(marked) - empty
  if empty + full > MOST * len(looks):
    what = f"{empty} of {len(looks)} masks{where} are empty and {full} full"
    found.append(
      problem("blank_masks", f"{what}; export them anew with lesion as 255 and the rest as 0")
    )
  if not marked:
    return found
  masks = np.stack([look.mask for look in marked])
  inverted = [look.case_id for look, odd in zip(marked, look_inverted(masks), strict=True) if odd]
  if len(inverted) > SOME * len(marked):
    what = (
      f"{len(inverted)} of {len(marked)} masks{where} mark the border of the frame and not its "
      f"middle ({_some(inverted)}), as if lesion and skin were exchanged; write lesion as 255 and "
      "the rest as 0"
    )
    found.append(problem("inverted_masks", what, stops=len(inverted) > MOST * len(marked)))
  if len(marked) >= ENOUGH:
    images = np.stack([look.image for look in marked])
    found += [problem(*finding) for finding in _judge_fit(images, masks, where)]
  return found


def _judge_fit(images: np.ndarray, masks: np.ndarray, where: str) -> Iterable[tuple[str, str]]:
  """Yields (kind, line) if most masks do not fit the colours of their photographs."""
  total = len(masks)
  repair, share = max(mask_fit.fits_better(images, masks).items(), key=lambda item: item[1])
  # The square root keeps chance from reaching it with few masks.
  if share > max(REPAIRED, 0.5 + 1 / np.sqrt(total)):
    scaled = repair.endswith("large")
    kind = "wrong_scale" if scaled else "turned_masks"
    yield (
      kind,
      f"{round(share * total)} of {total} masks{where} fit the colours of their photographs better "
      f"{repair}; {'draw' if scaled else 'turn'} them as their photographs are",
    )
    return
  unfit = int((mask_fit.better_than_others(images, masks) <= FITS_BETTER_THAN).sum())
  if unfit > MOST * total:
    yield (
      "foreign_masks",
      f"in {unfit} of {total} pairs{where} the mask separates the colours of its photograph no "
      "better than masks of other photographs do; give each photograph its own mask (ID.jpg and "
      "ID_segmentation.png)",
    )


def _some(names: Sequence[str]) -> str:
  return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _cases(count: int) -> str:
  return f"{count} photograph{'s' * (count > 1)}"
