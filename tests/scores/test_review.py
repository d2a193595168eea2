"""Which outlines a person is asked to look at, and in which order."""

import pytest

from medlitenet_jax.scores.review import LONG_CUT, review_list, review_reasons

SURE = {
  "case_id": "a",
  "area_px": 900,
  "confidence": 0.97,
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
  reasons = review_reasons(row, 0.85)
  assert (len(reasons) == 1 and says in reasons[0]) if says else reasons == []


def test_what_is_most_likely_wrong_comes_first():
  rows = [
    {**SURE, "case_id": "fine"},
    {**SURE, "case_id": "two", "regions": 2},
    {**SURE, "case_id": "unsure", "confidence": 0.5},
    {**SURE, "case_id": "nothing", "area_px": 0, "confidence": 1.0},
    {**SURE, "case_id": "unsurer", "confidence": 0.2, "regions": 3},
  ]
  listed = review_list(rows, 0.85)
  assert [row["case_id"] for row in listed] == ["nothing", "unsurer", "unsure", "two"]
  assert listed[1]["reasons"].startswith("confidence") and "3 regions" in listed[1]["reasons"]
