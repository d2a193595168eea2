"""Cases on a page, in groups: photographs with both outlines, uncertainty and scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from medlitenet_jax.data.images.resize import resize_image, resize_mask
from medlitenet_jax.pages.html import EMPTY, Html, join, number, picture, picture_size, tag
from medlitenet_jax.pages.outlines import PREDICTION_COLOR, TRUTH_COLOR, outlined

UNCERTAINTY_COLORS = "magma"


class PageCase(NamedTuple):
  """A case for a page.

  Attributes:
    row: its row of `cases.csv`.
    image: [H, W, 3] uint8 photograph.
    truth: [H, W] uint8, 0 or 1.
    prediction: [H, W] uint8, 0 or 1.
    uncertainty: [S, S] float32 entropy in bits, 0 to 1, at the network's input size; or None.
  """

  row: Mapping[str, Any]
  image: np.ndarray
  truth: np.ndarray
  prediction: np.ndarray
  uncertainty: np.ndarray | None


def case_groups(groups: Mapping[str, Sequence[PageCase]]) -> tuple[Html, dict[str, str]]:
  """Shows groups of cases, each under its title.

  Args:
    groups: cases by title; a case may be in several.

  Returns:
    html: the legend of the colours, and the groups.
    anchors: {name of each case shown: its id in the page}.
  """
  anchors: dict[str, str] = {}
  parts = [_legend()]
  for title, cases in groups.items():
    figures = []
    for case in cases:
      name = str(case.row["case_id"])
      anchor = {} if name in anchors else {"id": f"case-{len(anchors) + 1}"}
      anchors.update({name: anchor["id"]} if anchor else {})
      figures.append(tag("figure", _case(case), **anchor))
    content = tag("div", *figures, class_="cases") if figures else tag("p", "None.")
    parts += [tag("h3", title), content]
  return join(*parts), anchors


def case_names(case_ids: Iterable[Any], anchors: Mapping[str, str]) -> Html:
  """Lists names of cases in the given order.

  Args:
    case_ids: the names.
    anchors: from `case_groups`; names of cases shown on the page become links.

  Returns:
    An ordered list.
  """
  items = (
    tag("li", tag("a", name, href=f"#{anchors[name]}") if name in anchors else name)
    for name in map(str, case_ids)
  )
  return tag("ol", *items, class_="ids")


def _case(case: PageCase) -> Html:
  name, row = str(case.row["case_id"]), case.row
  # Shrunk before drawing the outlines, so that they stay sharp.
  height, width = picture_size(*case.truth.shape)
  image = resize_image(case.image, height, width)
  truth, prediction = (resize_mask(m, height, width) for m in (case.truth, case.prediction))
  image = outlined(image, (truth, TRUTH_COLOR), (prediction, PREDICTION_COLOR))
  pictures = [picture(image, f"{name} with the outlines of truth and prediction")]
  if case.uncertainty is not None:
    colors = resize_image(_colored(case.uncertainty), height, width)
    pictures.append(picture(colors, f"Uncertainty of the network on {name}"))
  hd95 = number(row["hd95"], 1)
  unit = "" if hd95 == EMPTY else " px"
  scores = f"Dice {number(row['dice'])}, IoU {number(row['iou'])}, HD95 {hd95}{unit}"
  caption = tag("figcaption", tag("strong", name), Html("<br>"), scores)
  return join(tag("div", *pictures, class_="pair"), caption)


def _colored(uncertainty: np.ndarray) -> np.ndarray:
  colors = matplotlib.colormaps[UNCERTAINTY_COLORS](uncertainty, bytes=True)
  return np.ascontiguousarray(colors[..., :3])


def _legend() -> Html:
  outlines = (
    tag("span", tag("i", style=f"background: rgb{color}"), name)
    for name, color in (("truth", TRUTH_COLOR), ("prediction", PREDICTION_COLOR))
  )
  scale = _colored(np.tile(np.linspace(0, 1, 224, dtype=np.float32), (16, 1)))
  return tag(
    "p", *outlines, tag("span", "uncertainty: 0", picture(scale, ""), "1 bit"), class_="key"
  )
