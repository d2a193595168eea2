"""What a person should look at among outlines that nobody has checked, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

# Share of the outline that lies on the frame from which a lesion is called cut off.
LONG_CUT = 0.25


def review_reasons(row: Mapping[str, Any], review_below: float) -> list[str]:
  """Why a person should look at an outline.

  That a lesion touches the frame is a reason only where it spoils what was asked for: a measurement
  in millimetres, or the outline itself, if much of it is the frame.

  Args:
    row: of `measurements.csv`; values are numbers or their text.
    review_below: confidence under which an outline is to be looked at.

  Returns:
    Reasons in plain words, the gravest first; empty if there is none.
  """
  if not float(row["area_px"]):
    return ["no lesion found"]
  reasons = []
  if float(row["confidence"]) < review_below:
    reasons.append(f"confidence under {review_below:g}")
  if (regions := int(row["regions"])) > 1:
    reasons.append(f"{regions} regions, so the diameters span all of them")
  if float(row["frame_share"]) >= LONG_CUT:
    reasons.append("much of the outline is the frame, so the lesion is cut off")
  elif int(row["touches_frame"]) and row.get("area_mm2"):
    reasons.append("lesion reaches the frame, so measurements are of its visible part")
  return reasons


def review_list(rows: Sequence[Mapping[str, Any]], review_below: float) -> list[dict[str, Any]]:
  """The outlines that a person should look at, those that are most likely wrong first.

  Args:
    rows: of `measurements.csv`.
    review_below: as in `review_reasons`.

  Returns:
    {"case_id", "confidence", "reasons"} of each: first where no lesion was found, then by rising
    confidence.
  """
  found = [(row, review_reasons(row, review_below)) for row in rows]
  listed = [(row, reasons) for row, reasons in found if reasons]
  listed.sort(key=lambda pair: (float(pair[0]["area_px"]) > 0, float(pair[0]["confidence"])))
  return [
    {
      "case_id": row["case_id"],
      "confidence": row["confidence"],
      "reasons": "; ".join(reasons),
    }
    for row, reasons in listed
  ]
