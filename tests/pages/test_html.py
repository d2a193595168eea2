"""Pieces of a page: text from data is escaped, charts and pictures are embedded."""

import base64
import re

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from medlitenet_jax.pages.html import (
  EMPTY,
  LONGEST_SIDE,
  Html,
  html_table,
  join,
  number,
  page,
  picture,
  svg,
  tag,
)

HOSTILE = '<script>alert("x")</script>&amp;'


def chart(values=(1, 3, 2)):
  figure = Figure(figsize=(3, 2))
  axes = figure.subplots()
  axes.plot(values, "o-", color="#123456", label="line")
  axes.legend(frameon=False)
  return figure


def test_text_and_attributes_are_escaped_and_html_is_not():
  written = tag("p", HOSTILE, tag("b", 3), title=HOSTILE, class_="a", aria_label="c")
  escaped = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;amp;"
  assert written == f'<p title="{escaped}" class="a" aria-label="c">{escaped}<b>3</b></p>'
  assert tag("p", join(tag("b", "a"), tag("i", "b"))) == "<p><b>a</b><i>b</i></p>"


def test_concatenating_html_with_plus_gives_text():
  assert tag("p", tag("b", "a") + "<i>") == "<p>&lt;b&gt;a&lt;/b&gt;&lt;i&gt;</p>"


@pytest.mark.parametrize(
  ("value", "text"),
  [(0.12345, "0.123"), (2, "2.000"), (None, EMPTY), (np.nan, EMPTY), (np.inf, EMPTY)],
)
def test_undefined_numbers(value, text):
  assert number(value) == text


def test_a_column_of_numbers_is_right_aligned():
  cells = [("a", 1.5, "-3", "x", EMPTY), ("b", "0.9 ± 0.1", "+2", "4", Html("7<small>8</small>"))]
  table = html_table(("n<", "one", "two", "three", "four"), cells)
  assert re.findall(r"<t[hd][^>]*number[^>]*>([^<]*)", table) == [
    *("one", "two", "four"),
    *("1.5", "-3", EMPTY),
    *("0.9 ± 0.1", "+2", "7"),
  ]
  assert '<th scope="col">n&lt;</th>' in table and '<th scope="row">a</th>' in table


def test_a_table_without_rows():
  assert html_table(("a", "b"), []).count("<tr>") == 1


def test_a_page_embeds_its_style_and_forbids_other_sources():
  document = page(HOSTILE, tag("p", "body"))
  assert document.startswith('<!doctype html>\n<html lang="en">')
  assert "<script>" not in document and "&lt;script&gt;" in document
  assert "<p>body</p>" in document and ".scroll" in document
  policy = re.search(r'Security-Policy" content="([^"]*)"', document)[1]
  assert "default-src 'none'" in policy


def test_a_chart_uses_the_text_colour_of_the_page_and_keeps_other_colours():
  drawn = svg(chart(), 'a "chart"')
  assert drawn.startswith('<svg role="img" aria-label="a &quot;chart&quot;"')
  assert "currentColor" in drawn and "#123456" in drawn
  assert "#000000" not in drawn and "<style" not in drawn and "http" not in drawn
  assert re.search(r"<text[^>]*>line</text>", drawn)
  assert "fill: #ffffff" not in drawn
  assert 'aria-hidden="true"' in svg(chart())


def test_a_chart_is_deterministic():
  assert svg(chart()) == svg(chart())


def test_charts_of_one_page_do_not_share_ids():
  one, two = (svg(chart(values)) for values in ((1, 3, 2), (1, 3, 2.5)))
  ids = [set(re.findall(r'\bid="([^"]*)"', drawn)) for drawn in (one, two)]
  assert ids[0] and not ids[0] & ids[1]
  for drawn, own in zip((one, two), ids, strict=True):
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', drawn)) <= own


def test_a_picture_has_the_pixels_of_the_image():
  y, x = np.mgrid[:30, :50]
  image = np.stack([5 * x, 8 * y, np.full_like(x, 90)], -1).astype(np.uint8)
  written = picture(image, HOSTILE)
  assert 'width="50" height="30"' in written and "<script>" not in written
  data = base64.b64decode(re.search(r'src="data:image/jpeg;base64,([^"]*)"', written)[1])
  decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  assert np.abs(decoded.astype(int) - image).max() < 20


@pytest.mark.parametrize("size", [(4000, 3000), (481, 2), (480, 480), (1, 5000)])
def test_a_picture_keeps_its_proportions_and_is_never_too_large(size):
  written = picture(np.zeros((*size, 3), np.uint8), "")
  width, height = (int(x) for x in re.search(r'width="(\d+)" height="(\d+)"', written).groups())
  assert max(width, height) == LONGEST_SIDE
  assert height == max(1, round(size[0] * LONGEST_SIDE / max(size)))
  assert width == max(1, round(size[1] * LONGEST_SIDE / max(size)))
