"""Which outlines a person is asked to look at, and in which order."""

import pytest

from medlitenet_jax.scores.review import (
  LONG_CUT,
  REVIEW_COLUMNS,
  review_list,
  review_reasons,
)

SURE = {
  "case_id": "a",
  "area_px": 900,
  "confidence": 0.97,
  "likeness": 0.9,
  "regions": 1,
  "touches_frame": 0,
  "frame_share": 0.0,
}


@pytest.mark.parametrize("kind", [lambda value: value, str])
@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({}, ""),
    ({"area_px": 0, "confidence": 1.0}, "no lesion found"),
    ({"confidence": 0.84}, "confidence under 0.85"),
    ({"likeness": 0.39}, "does not look like dermoscopy"),
    ({"likeness": 0.4}, ""),
    ({"likeness": ""}, ""),
    ({"regions": 2}, "2 regions"),
    ({"touches_frame": 1, "frame_share": 0.1}, ""),
    ({"touches_frame": 1, "frame_share": 0.1, "area_mm2": 4.0}, "visible part"),
    ({"touches_frame": 1, "frame_share": 0.1, "area_mm2": ""}, ""),
    ({"touches_frame": 1, "frame_share": LONG_CUT}, "cut off"),
  ],
)
def test_reasons(changes, says, kind):
  """Rows come as numbers, and as text where an earlier call wrote them."""
  row = {name: kind(value) for name, value in {**SURE, **changes}.items()}
  reasons = review_reasons(row, 0.85, 0.4)
  assert (len(reasons) == 1 and says in reasons[0]) if says else reasons == []


def test_what_is_most_likely_wrong_comes_first():
  rows = [
    {**SURE, "case_id": "fine"},
    {**SURE, "case_id": "two", "regions": 2},
    {**SURE, "case_id": "unsure", "confidence": 0.5},
    {**SURE, "case_id": "nothing", "area_px": 0, "confidence": 1.0},
    {**SURE, "case_id": "galaxy", "likeness": 0.1, "regions": 7},
    {**SURE, "case_id": "black", "likeness": 0.2, "area_px": 0, "confidence": 1.0},
    {**SURE, "case_id": "unsurer", "confidence": 0.2, "regions": 3},
  ]
  unlike, others = ["black", "galaxy"], ["nothing", "unsurer", "unsure", "two"]
  listed = review_list(rows, 0.85, 0.4)
  assert [row["case_id"] for row in listed] == [*unlike, *others]
  reasons = {row["case_id"]: row["reasons"] for row in listed}
  assert reasons["black"] == "no lesion found; does not look like dermoscopy"
  assert reasons["galaxy"].startswith("does not look like dermoscopy; 7 regions")
  assert reasons["unsurer"].startswith("confidence") and "3 regions" in reasons["unsurer"]
  assert listed[1]["likeness"] == 0.1 and all(tuple(row) == REVIEW_COLUMNS for row in listed)


def test_without_a_bound_nothing_is_said_of_likeness():
  rows = [{**SURE, "likeness": likeness} for likeness in (0.01, "", None)]
  assert review_list(rows, 0.85) == [] and review_list(rows[1:], 0.85, 0.4) == []
