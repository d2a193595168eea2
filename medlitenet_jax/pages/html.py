"""Self-contained pages without scripts: elements, tables, charts and pictures.

Every element is made by `tag`, which escapes everything that is not `Html`. Charts are drawn in
black, which `svg` replaces by the page's text colour, so that they fit light and dark pages.
"""

import base64
import hashlib
import html
import importlib.resources
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from medlitenet_jax.data.images.resize import resize_image
from medlitenet_jax.pages.pictures import encode_jpeg, shrink_to

if TYPE_CHECKING:
  from matplotlib.figure import Figure

LONGEST_SIDE = 480  # longest side of a picture in a page, in pixels
STYLE_FILE = "html.css"
# Pictures are in the page itself or, of a page that is opened as a file, in folders beside it.
SECURITY = "default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'"
EMPTY = "\N{EN DASH}"  # shown for an undefined number
_NUMBER = re.compile(rf"[+-]?\d|{EMPTY}$")


class Html(str):
  """Text that is already HTML; `tag` escapes any other text."""

  __slots__ = ()


def join(*parts: Html) -> Html:
  """Concatenates pieces of HTML."""
  return Html("".join(parts))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
  """Writes an element.

  Args:
    name: name of the element.
    *content: `Html` is inserted unchanged, anything else as escaped text.
    **attributes: by name; a trailing underscore is dropped, others become hyphens.

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
  """Formats a number, or returns `EMPTY` if it is None or not finite."""
  return EMPTY if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def page(title: str, body: str) -> str:
  """Makes a self-contained document.

  Args:
    title: plain text.
    body: HTML.

  Returns:
    The document, in English, with its style sheet; its security policy forbids scripts and
    requests to other places.
  """
  style = importlib.resources.files(__package__).joinpath(STYLE_FILE).read_text(encoding="utf-8")
  return "\n".join(
    (
      '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">',
      tag("title", title),
      '<link rel="icon" href="data:,">',  # otherwise browsers request an icon from the server
      f"<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
    )
  )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
  """Makes a table in a box that scrolls if the table is too wide.

  Args:
    columns: names of the columns.
    rows: one cell per column, `Html` or anything with a text form; the first cell names the row.

  Returns:
    The box. Columns of numbers, including `EMPTY`, are right-aligned.
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


def svg(figure: "Figure", alt: str = "") -> Html:
  """Renders a figure as an SVG element; the same figure gives the same bytes.

  Args:
    figure: transparent, with black text and lines; data in any colours.
    alt: alternative text; empty for a decorative figure.

  Returns:
    The element; its ids differ from those of figures with other content.
  """
  import matplotlib  # a page without charts is made without it

  no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
  file = io.StringIO()
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page"}):
    figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
  drawn = file.getvalue()
  drawn = drawn[drawn.index("<svg") :].rstrip().replace("#000000", "currentColor")
  # Its style sheet would apply to the whole page, and the ids of its groups repeat in every figure.
  drawn = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", drawn, count=1, flags=re.DOTALL)
  drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
  drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn)
  prefix = f"s{hashlib.sha256(drawn.encode()).hexdigest()[:8]}-"
  drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", drawn)
  label = f'role="img" aria-label="{html.escape(alt)}"' if alt else 'aria-hidden="true"'
  return Html(drawn.replace("<svg", f"<svg {label}", 1))


def image_file(path: PurePath, alt: str) -> Html:
  """Shows a picture that lies beside the page, loaded when it comes into view.

  Args:
    path: of the file, relative to the page.
    alt: alternative text.

  Returns:
    The element.
  """
  source, text = quote(path.as_posix()), html.escape(alt)
  return Html(f'<img loading="lazy" alt="{text}" src="{source}">')


def picture_size(height: int, width: int) -> tuple[int, int]:
  """(height, width) in pixels at which a page shows an image: unchanged, or reduced."""
  return shrink_to(height, width, LONGEST_SIDE)


def picture(image: np.ndarray, alt: str) -> Html:
  """Embeds a picture as JPEG, reduced to at most `LONGEST_SIDE`.

  Args:
    image: [H, W, 3] uint8 RGB of any size.
    alt: alternative text; empty for a decorative picture.

  Returns:
    The element; it has the size of the picture unless the style sheet overrides it.
  """
  image = resize_image(image, *picture_size(*image.shape[:2]))
  data = base64.b64encode(encode_jpeg(image)).decode()
  height, width = image.shape[:2]
  size = f'width="{width}" height="{height}"'
  return Html(f'<img alt="{html.escape(alt)}" {size} src="data:image/jpeg;base64,{data}">')
