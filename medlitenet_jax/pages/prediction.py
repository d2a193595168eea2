"""The page that predict leaves: every photograph with its outline, those to be looked at first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medlitenet_jax.pages.html import Html, html_table, image_file, join, page, tag

# What a caption shows of a row of measurements.csv, by its column: (title, unit).
SHOWN = {
  "confidence": ("confidence", ""),
  "likeness": ("likeness", ""),
  "area_mm2": ("area", " mm²"),
  "largest_diameter_mm": ("largest diameter", " mm"),
  "area_px": ("area", " px"),
  "largest_diameter_px": ("largest diameter", " px"),
}
IN_PIXELS = ("area_px", "largest_diameter_px")  # left out where there are millimetres


def prediction_page(
  rows: Sequence[Mapping[str, Any]],
  reasons: Mapping[str, str],
  failed: Sequence[Mapping[str, str]],
  files: Mapping[str, Mapping[str, Path]],
) -> str:
  """Makes the page.

  Args:
    rows: of `measurements.csv`; values are numbers or their text.
    reasons: why a person should look at an outline, by its "case_id", in the order in which they
      should be looked at.
    failed: rows of `failed.csv`.
    files: pictures of each photograph by their folder, "overlays" and "thumbnails" among them,
      relative to the page.

  Returns:
    The document; its pictures are loaded as they come into view.
  """
  by_name = {str(row["case_id"]): row for row in rows}
  others = sorted(by_name.keys() - reasons.keys(), key=lambda n: (_confidence(by_name[n]), n))
  counts = {
    "photographs outlined": len(rows),
    "to be looked at": len(reasons),
    "could not be read": len(failed),
  }
  tiles = (tag("div", tag("dt", n), tag("dd", c, class_="value")) for n, c in counts.items())
  parts = [
    tag("header", tag("h1", "Outlined photographs"), tag("p", HOW_TO_READ)),
    tag("dl", *tiles, class_="tiles"),
    _section("To be looked at, most likely wrong first", reasons, by_name, reasons, files),
    _section("The others, by rising confidence", others, by_name, reasons, files),
  ]
  if failed:
    listed = [(row["photograph"], row["reason"]) for row in failed]
    table = html_table(("photograph", "reason"), listed)
    parts.append(tag("section", tag("h2", "Could not be read"), table))
  return page("Outlined photographs", join(*parts))


HOW_TO_READ = (
  "The confidence is the Dice that the network expects of its outline. The likeness is how much a "
  "photograph looks like those that the network has learned from; half of such photographs have 1. "
  "A picture leads to the whole photograph; measurements.csv has all measurements."
)


def _confidence(row: Mapping[str, Any]) -> float:
  return float(row["confidence"])


def _section(title, names, by_name, reasons, files) -> Html:
  figures = [
    tag("figure", _figure(by_name[name], reasons.get(name, ""), files[name])) for name in names
  ]
  content = tag("div", *figures, class_="photographs") if figures else tag("p", "None.")
  return tag("section", tag("h2", f"{title} ({len(figures)})"), content)


def _figure(row: Mapping[str, Any], reasons: str, files: Mapping[str, Path]) -> Html:
  name = str(row["case_id"])
  thumbnail = image_file(files["thumbnails"], f"{name}, outlined")
  link = tag("a", thumbnail, href=quote(files["overlays"].as_posix()))
  lines = [tag("strong", name)]
  lines += [tag("span", reason, class_="reason") for reason in reasons.split("; ") if reason]
  lines.append(tag("span", ", ".join(_facts(row))))
  return join(link, tag("figcaption", *lines))


def _facts(row: Mapping[str, Any]) -> list[str]:
  in_mm = row.get("area_mm2") not in (None, "")
  facts = []
  for column, (title, unit) in SHOWN.items():
    value = row.get(column)
    if value in (None, "") or (in_mm and column in IN_PIXELS):
      continue
    digits = ".3f" if not unit else ",.0f" if unit == " px" else ".1f"
    facts.append(f"{title} {float(value):{digits}}{unit}")
  return facts
