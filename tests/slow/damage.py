"""Random damage: to bytes, to JSON and to names, from a seed."""

import copy
import json

import numpy as np

ODD_NAMES = (
  *("a..b", "...", "with space", " lead", "trail ", "Umläut", "e\u0301", "写真", "😀", "A", "a"),
  *("=1+2", "+x", "-1", "@sum", "'quoted", "a,b", 'say "x"', "a;b", "$x_{$", "%s%n", "{0}", "~"),
  *("line\nbreak", "tab\tx", "esc\x1b[2J", "x" * 200, "CON", "a\\b", "<b>", "&amp;", "\u202egpj"),
)
ODD_VALUES = (
  *(None, True, False, 0, -1, 1, 10**30, -(10**30), 0.5, 1e300, float("nan"), float("inf")),
  *("", "x", "../../etc/passwd", "=1+2", "x" * 3000, "\x00", "\ud800", [], {}, [[]], ["a", 1]),
  *({"a": {"b": []}}, [None], [64, 96], "none"),
)


def pick(rng: np.random.Generator, items):
  """One of the items."""
  return items[int(rng.integers(len(items)))]


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
  """Content with one to three injuries, or content of another kind altogether."""
  for _ in range(rng.integers(1, 4)):
    content = _injured(rng, bytearray(content))
  return content


def _injured(rng: np.random.Generator, content: bytearray) -> bytes:
  if not content:
    return rng.bytes(rng.integers(0, 64))
  # Heads are hit more often than bodies: that is where sizes and kinds are declared.
  start = int(rng.integers(min(len(content), pick(rng, (64, len(content))))))
  length = int(min(len(content) - start, rng.integers(1, 40)))
  kind = rng.integers(9)
  if kind == 0:
    return bytes(content[:start])
  if kind == 1:
    content[start : start + length] = bytes(length)
  elif kind == 2:
    content[start : start + length] = rng.bytes(length)
  elif kind == 3:
    content[start:start] = rng.bytes(length)
  elif kind == 4:
    del content[start : start + length]
  elif kind == 5:
    content[start : start + 4] = pick(rng, (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
  elif kind == 6:
    content += rng.bytes(length)
  elif kind == 7:
    content[start] ^= 1 << int(rng.integers(8))
  else:
    return pick(rng, (b"", b"\0" * 500, b"[" * 100_000, b"{" * 9, rng.bytes(300), b"<html></html>"))
  return bytes(content)


def damaged_json(rng: np.random.Generator, tree) -> bytes:
  """JSON of a tree in which values are missing, odd or of another type, or its bytes damaged."""
  tree = copy.deepcopy(tree)
  for _ in range(rng.integers(1, 4)):
    place = tree
    while True:
      keys = list(place) if isinstance(place, dict) else list(range(len(place)))
      if not keys:
        break
      key = pick(rng, keys)
      if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
        place = place[key]
      elif rng.random() < 0.25:
        del place[key]
        break
      else:
        place[key] = copy.deepcopy(pick(rng, ODD_VALUES))
        break
  content = json.dumps(tree).encode()
  return damaged(rng, content) if rng.random() < 0.3 else content
