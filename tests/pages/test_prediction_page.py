"""The page of predict: every photograph once, in the order of review, nothing from elsewhere."""

import html.parser
from pathlib import Path

from medlitenet_jax.pages.prediction import prediction_page


class Seen(html.parser.HTMLParser):
  """The texts, links and pictures of a page, in their order."""

  def __init__(self, text):
    super().__init__()
    self.links, self.pictures, self.texts = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    if tag == "a":
      self.links.append(attrs["href"])
    if tag == "img":
      assert attrs["alt"] and attrs["loading"] == "lazy"
      self.pictures.append(attrs["src"])

  def handle_data(self, data):
    self.texts.append(data)


def row(name, confidence, **changes):
  own = {"likeness": "", "area_px": "1234", "largest_diameter_px": "56.7", "area_mm2": ""}
  return {"case_id": name, "confidence": str(confidence), **own, **changes}


def files(name):
  folders = {"overlays": ".png", "thumbnails": ".jpg"}
  return {folder: Path(folder) / f"{name}{end}" for folder, end in folders.items()}


ROWS = [
  row("sure", 0.97),
  row("left/100% <b>&", 0.9, area_mm2="12.34", largest_diameter_mm="5.67", likeness="0.5"),
  row("doubtful", 0.2),
  row("empty", 1.0, area_px="0"),
]
REASONS = {"empty": "no lesion found", "doubtful": "confidence under 0.85; 3 regions"}
FAILED = [{"photograph": "in/<i>.jpg", "reason": "truncated"}]


def seen(rows=ROWS, reasons=REASONS, failed=FAILED):
  names = [each["case_id"] for each in rows]
  return Seen(prediction_page(rows, reasons, failed, {name: files(name) for name in names}))


def test_what_is_to_be_looked_at_comes_first_in_its_order_and_the_rest_by_confidence():
  found = seen()
  order = ["empty", "doubtful", "left/100%25%20%3Cb%3E%26", "sure"]
  assert found.pictures == [f"thumbnails/{name}.jpg" for name in order]
  assert found.links == [f"overlays/{name}.png" for name in order]
  titles = [text for text in found.texts if text.endswith(")") and "(" in text]
  assert titles[:2] == [
    "To be looked at, most likely wrong first (2)",
    "The others, by rising confidence (2)",
  ]


def test_names_reasons_and_measurements_are_shown_as_text():
  texts = seen().texts
  assert "left/100% <b>&" in texts and "in/<i>.jpg" in texts and "truncated" in texts
  assert {"no lesion found", "confidence under 0.85", "3 regions"} <= set(texts)
  in_mm = "confidence 0.900, likeness 0.500, area 12.3 mm², largest diameter 5.7 mm"
  assert in_mm in texts and "confidence 0.970, area 1,234 px, largest diameter 57 px" in texts


def test_a_page_without_photographs_says_so():
  found = seen([], {}, [])
  assert found.texts.count("None.") == 2 and not found.pictures
