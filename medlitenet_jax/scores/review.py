"""What a person should look at among outlines that nobody has checked, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

REVIEW_COLUMNS = ("case_id", "confidence", "likeness", "reasons")
# Share of the outline that lies on the frame from which a lesion is called cut off.
LONG_CUT = 0.25


def review_reasons(
  row: Mapping[str, Any], review_below: float, likeness_below: float | None = None
) -> list[str]:
  """Why a person should look at an outline.

  That a lesion touches the frame is a reason only where it spoils what was asked for: a measurement
  in millimetres, or the outline itself, if much of it is the frame.

  Args:
    row: of `measurements.csv`; values are numbers or their text, and likeness may be empty.
    review_below: confidence under which an outline is to be looked at.
    likeness_below: likeness under which a photograph does not look like those that the networks
      have learned from; None if they do not say.

  Returns:
    Reasons in plain words, the gravest first; empty if there is none.
  """
  unlike = ["does not look like dermoscopy"] if _is_unlike(row, likeness_below) else []
  if not float(row["area_px"]):
    return ["no lesion found", *unlike]
  reasons = unlike
  if float(row["confidence"]) < review_below:
    reasons.append(f"confidence under {review_below:g}")
  if (regions := int(row["regions"])) > 1:
    reasons.append(f"{regions} regions, so the diameters span all of them")
  if float(row["frame_share"]) >= LONG_CUT:
    reasons.append("much of the outline is the frame, so the lesion is cut off")
  elif int(row["touches_frame"]) and row.get("area_mm2"):
    reasons.append("lesion reaches the frame, so measurements are of its visible part")
  return reasons


def _is_unlike(row: Mapping[str, Any], likeness_below: float | None) -> bool:
  if likeness_below is None or row["likeness"] in (None, ""):
    return False
  return float(row["likeness"]) < likeness_below


def review_list(
  rows: Sequence[Mapping[str, Any]], review_below: float, likeness_below: float | None = None
) -> list[dict[str, Any]]:
  """The outlines that a person should look at, those that are most likely wrong first.

  Args:
    rows: of `measurements.csv`.
    review_below: as in `review_reasons`.
    likeness_below: as in `review_reasons`.

  Returns:
    `REVIEW_COLUMNS` of each: first of photographs that do not look like dermoscopy, then where no
    lesion was found, then by rising confidence.
  """

  def rank(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
    unlike = _is_unlike(row, likeness_below)
    return not unlike, float(row["area_px"]) > 0, float(row["confidence"])

  found = [
    (row, review_reasons(row, review_below, likeness_below)) for row in sorted(rows, key=rank)
  ]
  return [
    {
      **{name: row[name] for name in REVIEW_COLUMNS if name != "reasons"},
      "reasons": "; ".join(reasons),
    }
    for row, reasons in found
    if reasons
  ]
