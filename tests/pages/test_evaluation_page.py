"""The page of an evaluation has all values of the summary, and a browser shows it correctly."""

import base64
import copy
import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from medlitenet_jax.pages.cases import PageCase
from medlitenet_jax.pages.evaluation import COUNTED, LABELS, PIXEL_SCORES, TERMS, write_page
from medlitenet_jax.pages.html import EMPTY, LONGEST_SIDE
from medlitenet_jax.pages.outlines import PREDICTION_COLOR, TRUTH_COLOR
from medlitenet_jax.scores.metrics import JACCARD_THRESHOLD, SCORES
from medlitenet_jax.scores.surface import SURFACE_SCORES

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
ENDLESS = {"br", "img", "link", "meta"}  # elements without an end tag


class Page(HTMLParser):
  """Parses a page; fails if an end tag does not match.

  Attributes:
    elements: (name, attributes) of each element.
    text: the visible text outside charts.
  """

  def __init__(self, document):
    super().__init__()
    self.elements, self.pieces, self.open = [], [], []
    self.feed(document)
    self.close()
    assert not self.open
    self.text = " ".join(" ".join(self.pieces).split())

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in ENDLESS:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if not {"svg", "style"} & set(self.open):
      self.pieces.append(data)

  def of(self, name):
    return [attributes for tag, attributes in self.elements if tag == name]


def figures(rng, score):
  top = 900 if score in PIXEL_SCORES else 1
  mean, std, low, high = (float(x) for x in rng.uniform(0, top, 4))
  return {"mean": mean, "std": std, "ci95": [low, high]}


def made_up_rows(count=30, seed=0):
  rng = np.random.default_rng(seed)
  names = (*LABELS, "lesion_fraction", "contrast", "confidence")
  rows = [{name: float(rng.uniform(0.5, 1)) for name in names} for _ in range(count)]
  return [{"case_id": f"case{i}", **row, "height": 50} for i, row in enumerate(rows)]


def made_up_summary(rows, seed=0):
  rng = np.random.default_rng(seed)
  six = lambda: {score: figures(rng, score) for score in COUNTED}  # noqa: E731
  numbers = lambda: {score: float(rng.random()) for score in COUNTED}  # noqa: E731
  ids = [row["case_id"] for row in rows]

  def terciles(top):
    ends = sorted(float(x) for x in rng.uniform(0, top, 6))
    return [
      {
        "from": ends[2 * i],
        "to": ends[2 * i + 1],
        "cases": len(rows) // 3,
        "scores": {score: figures(rng, score) for score in LABELS},
      }
      for i in range(3)
    ]

  boundary = {score: figures(rng, score) for score in SURFACE_SCORES}
  boundary["hd95"]["undefined"] = 2
  return {
    **six(),
    "cases": len(rows),
    "boundary": boundary,
    "pooled": numbers(),
    "network_size": {"size": 256, "per_image": six(), "pooled": numbers()},
    "terciles": {"lesion_fraction": terciles(1), "contrast": terciles(60)},
    "steps": [{"step": "threshold 0.5", "scores": six()}, {"step": "fill_holes", "scores": six()}],
    "confidence": {
      "spearman": 0.7123,
      "review_below": 0.85,
      "review": ids[:4],
      "review_mean_dice": 0.6543,
      "rest_mean_dice": 0.9321,
    },
    "calibration": {
      "bins": [
        {"from": 0.2, "to": 0.4, "pixels": 12345, "predicted": 0.3125, "observed": 0.2876},
        {"from": 0.8, "to": 1.0, "pixels": 67890, "predicted": 0.9125, "observed": 0.9453},
      ],
      "expected_calibration_error": 0.0234,
    },
    "worst": ids[2:6],
    "protocol": {
      "split": "test",
      "split_hash": "59edccb7f6f8e655",
      "model": "medlitenet",
      "variant": "base",
      "threshold": 0.4375,
      "threshold_chosen_on": None,
      "postprocessing": ["fill_holes", "drop_specks"],
      "checkpoint": {"step": 2400, "validation": {"dice": 0.8917}},
    },
  }


def made_up_case(row, height=90, width=120, uncertain=True):
  y, x = np.mgrid[:height, :width]
  image = np.full((height, width, 3), (200, 120, 140), np.uint8)
  truth, prediction = (
    (np.hypot(x - left * width, y - height / 2) < height / 4).astype(np.uint8)
    for left in (0.4, 0.6)
  )
  uncertainty = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1)) if uncertain else None
  return PageCase(row, image, truth, prediction, uncertainty)


def made_up_curves():
  train = [{"split": "train", "epoch": e, "loss": 1 / e, "dice": 1 - 1 / e} for e in range(1, 9)]
  val = [{"split": "val", "epoch": e, "loss": None, "dice": 0.5, "iou": 0.4} for e in (4, 8)]
  return train + val


def written(folder, summary=None, rows=None, groups=None, curves=()):
  rows = made_up_rows() if rows is None else rows
  summary = made_up_summary(rows) if summary is None else summary
  groups = {"Best": [made_up_case(row) for row in rows[:3]]} if groups is None else groups
  write_page(folder / "report.html", summary, rows, groups, curves)
  return (folder / "report.html").read_text(encoding="utf-8")


def expected_texts(value, path=()):
  """Every number of a summary as the page writes it."""
  if isinstance(value, dict):
    for name, part in value.items():
      yield from expected_texts(part, (*path, name))
  elif isinstance(value, list):
    for part in value:
      yield from expected_texts(part, path)
  elif value is None or isinstance(value, str):
    words = EMPTY if value is None else value
    yield words.replace("_", " ") if path[-1] == "step" else words
  elif path[0] == "protocol" or path[-1] in ("review_below", "size"):
    yield str(value)
  elif isinstance(value, int):
    yield f"{value:,}"
  elif path[-1] in ("from", "to"):
    factor = 100 if "lesion_fraction" in path else 1
    yield f"{value:.2f}" if "bins" in path else f"{factor * value:.1f}"
  else:
    yield f"{value:.1f}" if set(path) & set(PIXEL_SCORES) else f"{value:.3f}"


def test_every_number_of_the_summary_is_on_the_page(tmp_path):
  rows = made_up_rows()
  summary = made_up_summary(rows)
  text = Page(written(tmp_path, summary, rows)).text
  for expected in expected_texts(summary):
    assert re.search(rf"(?<![\w.]){re.escape(expected)}(?!\w|\.\d)", text), expected
  assert "28 (2 undefined)" in text


def test_every_score_is_named_and_explained():
  assert set(LABELS) == {*SCORES, *SURFACE_SCORES} and COUNTED == SCORES
  assert {label.removesuffix(" (px)") for label in LABELS.values()} <= set(TERMS)
  assert str(JACCARD_THRESHOLD) in TERMS["Threshold Jaccard"]


def test_the_page_is_self_contained(tmp_path):
  page = Page(written(tmp_path, curves=made_up_curves()))
  targets = [a[key] for _, a in page.elements for key in ("src", "href", "xlink:href") if key in a]
  ids = [a["id"] for _, a in page.elements if "id" in a]
  assert len(set(ids)) == len(ids)
  assert all(target.startswith("data:") or target[1:] in ids for target in targets)
  assert not page.of("script") and not page.of("iframe")
  document = (tmp_path / "report.html").read_text(encoding="utf-8")
  assert "://" not in document and "@import" not in document
  assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", document))


def test_the_page_works_with_a_screen_reader(tmp_path):
  page = Page(written(tmp_path, curves=made_up_curves()))
  assert page.of("html") == [{"lang": "en"}] and len(page.of("h1")) == 1
  levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
  assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
  assert all("alt" in attributes for attributes in page.of("img"))
  assert all(attributes.get("aria-label") for attributes in page.of("svg"))
  assert "research software, not a medical device" in page.text


def test_text_from_data_is_escaped(tmp_path):
  rows = made_up_rows(5)
  rows[0]["case_id"] = HOSTILE
  summary = made_up_summary(rows)
  summary["worst"] = summary["confidence"]["review"] = [HOSTILE, "case4"]
  summary["protocol"].update(
    {"model": HOSTILE, "variant": HOSTILE, "split_hash": HOSTILE, "members": [{HOSTILE: HOSTILE}]}
  )
  groups = {HOSTILE: [made_up_case(rows[0])]}
  page = Page(written(tmp_path, summary, rows, groups))
  assert all("onerror" not in attributes for attributes in page.of("img"))
  assert page.text.count(HOSTILE) >= 8
  assert HOSTILE in page.of("img")[-1]["alt"]


def test_the_same_input_gives_the_same_bytes(tmp_path):
  assert written(tmp_path, curves=made_up_curves()) == written(tmp_path, curves=made_up_curves())


def without_figures(scores):
  for score in scores.values():
    score.update(mean=None, std=None, ci95=None)


@pytest.mark.parametrize("undefined", [None, float("nan")])
def test_one_case_without_borders_without_groups_without_curves(tmp_path, undefined):
  rows = made_up_rows(1)
  rows[0].update(hd95=undefined, assd=undefined, contrast=undefined)
  summary = made_up_summary(rows)
  without_figures({s: summary["boundary"][s] for s in PIXEL_SCORES})
  summary["boundary"]["hd95"]["undefined"] = summary["boundary"]["assd"]["undefined"] = 1
  for score in COUNTED:
    summary[score]["ci95"] = None
  summary["terciles"] = {
    "lesion_fraction": copy.deepcopy(summary["terciles"]["lesion_fraction"][:1]),
    "contrast": [],
  }
  without_figures({s: summary["terciles"]["lesion_fraction"][0]["scores"][s] for s in PIXEL_SCORES})
  summary["steps"] = summary["steps"][:1]
  summary["confidence"].update(spearman=None, review=[], review_mean_dice=None)
  summary["calibration"] = {"bins": [], "expected_calibration_error": 0.0}
  summary["worst"] = []
  page = Page(written(tmp_path, summary, rows, {"Best": [], "Worst": [made_up_case(rows[0])]}))
  assert "1 case," in page.text and "0 (1 undefined)" in page.text
  assert "HD95 (px): undefined in all cases" in page.text and f"HD95 {EMPTY}" in page.text
  assert "Best None." in page.text
  assert "nan" not in page.text.lower() and "Effect of each step" not in page.text
  assert "Training" not in page.text
  assert Page(written(tmp_path, summary, rows, {})).of("h1")


def test_only_training_charts_with_points_are_shown(tmp_path):
  labels = lambda curves: [  # noqa: E731
    a["aria-label"].split()[0]
    for a in Page(written(tmp_path, curves=curves)).of("svg")
    if "training" in a["aria-label"]
  ]
  assert labels(made_up_curves()) == ["Loss", "Dice", "IoU"]
  assert labels(made_up_curves()[:8]) == ["Loss", "Dice"]


def test_names_are_links_to_the_first_place_where_the_case_is_shown(tmp_path):
  rows = made_up_rows()
  shown = [made_up_case(row) for row in rows[2:4]]
  summary = made_up_summary(rows)  # the worst are 2 to 5, those for review 0 to 3
  page = Page(written(tmp_path, summary, rows, {"Best": shown, "Worst": shown[::-1]}))
  places = [a["id"] for a in page.of("figure") if "id" in a]
  links = [a["href"][1:] for a in page.of("a") if a["href"].startswith("#case-")]
  assert len(places) == 2 and links == [*places, *places]


def pictures_of(document):
  data = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', document)
  decoded = (np.frombuffer(base64.b64decode(part), np.uint8) for part in data)
  return [cv2.imdecode(part, cv2.IMREAD_COLOR_RGB) for part in decoded][1:]  # the legend is first


def near(image, color):
  return np.abs(image.astype(int) - np.array(color)).max(-1) < 40


@pytest.mark.parametrize("height,width", [(90, 120), (700, 1400), (1, 1)])
def test_pictures_show_both_outlines_and_the_uncertainty(tmp_path, height, width):
  rows = made_up_rows(2)
  case = made_up_case(rows[0], height, width)
  photograph, uncertainty = pictures_of(written(tmp_path, groups={"Best": [case]}))
  scale = min(1, LONGEST_SIDE / width)
  assert photograph.shape == uncertainty.shape == (height * scale, width * scale, 3)
  if width > 1:
    columns = np.arange(width * scale) / (width * scale)
    truth, found = (near(photograph, color) for color in (TRUTH_COLOR, PREDICTION_COLOR))
    assert columns[truth.any(0)].mean() < 0.5 < columns[found.any(0)].mean()
    brightness = uncertainty.astype(int).sum((0, 2))
    assert brightness[0] < 0.1 * brightness[-1]


def test_a_case_without_uncertainty_has_one_picture(tmp_path):
  case = made_up_case(made_up_rows(1)[0], uncertain=False)
  assert len(pictures_of(written(tmp_path, groups={"Best": [case]}))) == 1


def test_a_page_of_24_photographs_is_small_enough_to_send(tmp_path):
  row, rng = made_up_rows(1)[0], np.random.default_rng(0)
  case = made_up_case(row, 600, 800)
  grain = cv2.GaussianBlur(rng.normal(0, 60, case.image.shape), (0, 0), 3)
  case = case._replace(image=np.clip(case.image + grain, 0, 255).astype(np.uint8))
  assert len(written(tmp_path, groups={"Best": [case] * 24})) < 5e6


BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def browse(folder, document, widths):
  """Opens a page in windows of several widths.

  Returns:
    Messages of the browser's console, and the pixels by which the page is too wide per window.
  """
  windows = "".join(
    f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(document)}">'
    "</iframe>"
    for width in widths
  )
  script = """<script>onload = () => {
    const pages = [...document.querySelectorAll("iframe")].map(f => f.contentDocument);
    document.body.textContent = JSON.stringify(pages.map(
      p => Math.max(p.documentElement.scrollWidth, p.body.scrollWidth)
        - p.documentElement.clientWidth));
  }</script>"""
  path = folder / "windows.html"
  path.write_text(f'<!doctype html><meta charset="utf-8">{windows}{script}', encoding="utf-8")
  options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
  logging = ("--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}")
  done = subprocess.run(
    [BROWSER, *options, *logging, "--window-size=1400,1000", "--dump-dom", path.as_uri()],
    capture_output=True,
    text=True,
    timeout=120,
  )
  console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
  found = re.search(r"<body>(\[.*?\])", done.stdout)
  assert found, done.stderr[-2000:]
  return console, json.loads(found[1])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_without_error_request_or_sideways_scrolling(tmp_path):
  rows = made_up_rows()
  long_name = "a_name_of_a_photograph_without_a_place_to_break_it" * 4
  rows[0]["case_id"] = rows[2]["case_id"] = long_name
  summary = made_up_summary(rows)
  summary["protocol"]["command"] = "launch.py --" + 80 * "x"
  groups = {"Best": [made_up_case(row) for row in rows[:3]], "Worst": []}
  widths = (1280, 390)
  document = written(tmp_path, summary, rows, groups, made_up_curves())
  console, excess = browse(tmp_path, document, widths)
  assert console == [] and excess == [0, 0]

  # The same check finds the faults of a faulty page.
  wrong = '<div style="width:700px">wide</div><img alt="" src="https://127.0.0.1:9/a.png"></body>'
  console, excess = browse(tmp_path, document.replace("</body>", wrong), widths)
  assert console and excess[0] == 0 < excess[1]
