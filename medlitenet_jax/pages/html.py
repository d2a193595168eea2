"""Pages that a browser shows without network and scripts: elements, tables, charts, pictures.

Every element goes through `tag`, which escapes what is not `Html`. Charts are drawn in black, which
`svg` turns into the page's own ink, so that they fit a light page and a dark one.
"""

import base64
import hashlib
import html
import importlib.resources
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from medlitenet_jax.data.images.resize import resize_image

LONGEST_SIDE = 480  # px of a picture in a page
STYLE_FILE = "html.css"
SECURITY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
EMPTY = "\N{EN DASH}"  # stands where a number is undefined
_NUMBER = re.compile(rf"[+-]?\d|{EMPTY}$")


class Html(str):
  """Text that is HTML already; any other is escaped where it becomes part of an element."""

  __slots__ = ()


def join(*parts: Html) -> Html:
  """Puts pieces of HTML one after another."""
  return Html("".join(parts))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
  """Writes an element.

  Args:
    name: of the element.
    *content: `Html` as it stands, anything else as escaped text.
    **attributes: by name; an underscore at its end is dropped, any other becomes a hyphen.

  Returns:
    The element with its end tag.
  """
  written = "".join(
    f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    for key, value in attributes.items()
  )
  inner = "".join(c if isinstance(c, Html) else html.escape(str(c)) for c in content)
  return Html(f"<{name}{written}>{inner}</{name}>")


def number(value: float | None, digits: int = 3) -> str:
  """Writes a number, or `EMPTY` where it is None or not finite."""
  return EMPTY if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def page(title: str, body: str) -> str:
  """Makes a document that needs nothing but itself.

  Args:
    title: as text.
    body: as HTML.

  Returns:
    The document, in English, with its style sheet; scripts and requests are forbidden in it.
  """
  style = importlib.resources.files(__package__).joinpath(STYLE_FILE).read_text(encoding="utf-8")
  return "\n".join(
    (
      '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">',
      tag("title", title),
      '<link rel="icon" href="data:,">',  # without one a browser asks the server for it
      f"<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
    )
  )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
  """Lays out a table in a box of its own, in which it scrolls where it is too wide.

  Args:
    columns: their names.
    rows: a cell a column, `Html` or anything that is shown as its text; the first names the row.

  Returns:
    The box; columns of numbers stand to the right, and `EMPTY` counts as one.
  """
  cells = [list(row) for row in rows]
  classes = [
    {"class_": "number"} if all(_NUMBER.match(str(row[i])) for row in cells) else {}
    for i in range(len(columns))
  ]

  def line(name, row, scope):
    first = tag("th", row[0], scope=scope, **classes[0])
    others = (tag(name, c, **kind) for c, kind in zip(row[1:], classes[1:], strict=True))
    return tag("tr", first, *others)

  head = tag("thead", line("th", columns, "col"))
  body = tag("tbody", *(line("td", row, "row") for row in cells))
  return tag("div", tag("table", head, body), class_="scroll", tabindex=0)


def svg(figure: Figure, alt: str = "") -> Html:
  """Draws a figure as an element of the page; the same figure gives the same bytes.

  Args:
    figure: with black ink on nothing, and whatever colours its data have.
    alt: what it shows, for those who cannot see it; without, it counts as ornament.

  Returns:
    The element; its ids are those of no figure with other content.
  """
  nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
  file = io.StringIO()
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page"}):
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
  drawn = file.getvalue()
  drawn = drawn[drawn.index("<svg") :].rstrip().replace("#000000", "currentColor")
  # Its style sheet would hold for the whole page, its groups' ids are the same in every figure.
  drawn = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", drawn, count=1, flags=re.DOTALL)
  drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
  drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn)
  own = f"s{hashlib.sha256(drawn.encode()).hexdigest()[:8]}-"
  drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}", drawn)
  label = f'role="img" aria-label="{html.escape(alt)}"' if alt else 'aria-hidden="true"'
  return Html(drawn.replace("<svg", f"<svg {label}", 1))


def picture_size(height: int, width: int) -> tuple[int, int]:
  """Height and width, in pixels, of an image of this size in a page: as it is, or smaller."""
  shrink = min(1.0, LONGEST_SIDE / max(height, width))
  return max(1, round(height * shrink)), max(1, round(width * shrink))


def picture(image: np.ndarray, alt: str) -> Html:
  """Puts a picture into the page, as JPEG of at most `LONGEST_SIDE`.

  Args:
    image: [H, W, 3] uint8 RGB of any size.
    alt: what it shows; empty for an ornament.

  Returns:
    The element, as wide as the picture unless the style sheet says otherwise.
  """
  image = resize_image(image, *picture_size(*image.shape[:2]))
  options = [cv2.IMWRITE_JPEG_QUALITY, 88]
  # Thin coloured lines would bleed if colours had half the resolution.
  options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
  encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
  data = base64.b64encode(encoded.tobytes()).decode()
  height, width = image.shape[:2]
  size = f'width="{width}" height="{height}"'
  return Html(f'<img alt="{html.escape(alt)}" {size} src="data:image/jpeg;base64,{data}">')
