"""Output of a check of a data set: summary, tables and a sheet of pictures."""

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax.data.cases import Source, split_hash
from medlitenet_jax.data.findings import Look
from medlitenet_jax.data.folder import Problem
from medlitenet_jax.data.images.duplicates import Pair
from medlitenet_jax.data.images.resize import resize_image, resize_mask
from medlitenet_jax.system import tables

logger = logging.getLogger(__name__)

NEARLY_FULL = 0.95  # fraction of the frame; such a mask leaves hardly any skin
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SAMPLE = 12  # number of sample cases of each split on the sheet
MAX_UNUSUAL = 48  # unusual cases on the sheet; problems.csv lists all
PICTURE = 256  # longer side of a picture on the sheet, in pixels


@dataclasses.dataclass(frozen=True)
class Reading:
  """What is kept of a case after reading it, without the photograph.

  Attributes:
    split: the case's split.
    index: position in its source.
    case_id: name of the case.
    height: in pixels.
    width: in pixels.
    digest: hash of the pixels.
    thumbnail: see `duplicates.thumbnail`.
    look: to judge the mask beside others.
  """

  split: str
  index: int
  case_id: str
  height: int
  width: int
  digest: bytes
  thumbnail: np.ndarray
  look: Look

  @property
  def lesion(self) -> float:
    """Fraction of the frame that is lesion."""
    return self.look.lesion


def summary(
  config: ConfigDict,
  sources: Mapping[str, Source],
  readings: Sequence[Reading],
  problems: Sequence[Problem],
  findings: Sequence[Problem],
) -> dict[str, Any]:
  """Counts cases and problems.

  Args:
    config: resolved configuration.
    sources: source of each split.
    readings: readings of the cases that could be read.
    problems: all problems, findings among them.
    findings: those of the set or a split as a whole.

  Returns:
    The content of `check.json`.
  """
  splits = {}
  for split, source in sources.items():
    rows = [reading for reading in readings if reading.split == split]
    by_area = sorted((row.height * row.width, row.height, row.width) for row in rows)
    fractions = [row.lesion for row in rows]
    middle = {"smallest": 0, "median": len(rows) // 2, "largest": -1}
    splits[split] = {
      "cases": len(source),
      "read": len(rows),
      "split_hash": split_hash(source.case_ids) if len(source) else None,
      "height_width": {name: by_area[i][1:] for name, i in middle.items()} if rows else None,
      "lesion_fraction": {
        f"{q:g}": round(float(value), 5)
        for q, value in zip(QUANTILES, np.quantile(fractions, QUANTILES), strict=True)
      }
      if rows
      else None,
    }
  return {
    "source": config.data.source,
    "root": config.data.root if config.data.source == "folder" else None,
    "splits": splits,
    "findings": [dataclasses.asdict(finding) for finding in findings],
    "problems": dict(collections.Counter(p.kind for p in problems if p.stops_training)),
    "warnings": dict(collections.Counter(p.kind for p in problems if not p.stops_training)),
  }


def sheet(
  sources: Mapping[str, Source], readings: Sequence[Reading], pairs: Sequence[Pair]
) -> list[tuple[str, list[tuple[str, np.ndarray, np.ndarray]]]]:
  """Chooses cases to look at: a sample of each split, unusual masks and duplicates.

  Args:
    sources: source of each split, read again for the pictures.
    readings: readings of the cases.
    pairs: pairs of cases that show the same picture.

  Returns:
    Groups for `figures.draw_cases`.
  """
  groups = {}
  for split in sources:
    rows = sorted((r for r in readings if r.split == split), key=lambda r: (r.lesion, r.case_id))
    if rows:
      spread = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int)
      groups[f"{split}, from the smallest lesion to the largest"] = [rows[i] for i in spread]
  unusual = [r for r in readings if not 0 < r.lesion < NEARLY_FULL]
  if unusual:
    shown = f", {MAX_UNUSUAL} of {len(unusual)}" if len(unusual) > MAX_UNUSUAL else ""
    groups[f"empty, full or nearly full{shown}"] = unusual[:MAX_UNUSUAL]
  both = [(readings[pair.first], readings[pair.second]) for pair in pairs]
  both.sort(key=lambda pair: pair[0].split == pair[1].split)
  if both:
    shown = f", {MAX_UNUSUAL // 2} of {len(both)} pairs" if len(both) > MAX_UNUSUAL // 2 else ""
    title = f"the same picture twice, those in two splits first{shown}"
    groups[title] = [reading for pair in both[: MAX_UNUSUAL // 2] for reading in pair]

  def picture(reading: Reading) -> tuple[str, np.ndarray, np.ndarray]:
    case = sources[reading.split][reading.index]
    scale = min(1.0, PICTURE / max(case.mask.shape))
    size = [max(1, round(side * scale)) for side in case.mask.shape]
    label = f"{reading.case_id}\n{reading.split}, {reading.lesion:.1%}"
    return label, resize_image(case.image, *size), resize_mask(case.mask, *size)

  return [(title, [picture(reading) for reading in rows]) for title, rows in groups.items()]


def show(summary: Mapping[str, Any], output: Path) -> None:
  """Prints the tables of a summary."""
  rows = []
  for split, found in summary["splits"].items():
    sizes = found["height_width"] or {}
    shown = ["x".join(map(str, size)) for size in sizes.values()] or ["-"] * 3
    fractions = found["lesion_fraction"] or {}
    lesion = [f"{fractions[q]:.3f}" if fractions else "-" for q in ("0.05", "0.5", "0.95")]
    rows.append((split, found["cases"], found["split_hash"] or "-", *shown, *lesion))
  columns = ("split", "cases", "hash", "smallest", "median", "largest")
  print(tables.table((*columns, "lesion 5 %", "median", "95 %"), rows))
  counts = [
    (kind, count, effect)
    for effect, group in (("stops training", "problems"), ("warning", "warnings"))
    for kind, count in summary[group].items()
  ]
  if counts:
    print("\n" + tables.table(("found", "count", "effect"), counts))
  else:
    print("\nNo problems found.")
  for finding in summary["findings"]:
    print(f"\n{finding['kind']}: {finding['what']}.")
  logger.info("Sizes are height x width, lesions fractions of the frame: %s", output)
