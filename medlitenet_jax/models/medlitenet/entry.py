"""MedLiteNet's place in the registry: its variants, rules, sizes, parts and picture."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from medlitenet_jax.models.entry import Drawing, Entry
from medlitenet_jax.models.medlitenet.network import SIZES, VARIANTS, MedLiteNet

LARGEST = 4096  # number of blocks, layers, channels and the like: more fits no memory
LARGEST_DILATION = 256  # as wide as the grid of the largest image

PARTS = {  # a gate stands inside a decoder's stage, so it comes first
  "gate": ("gate", "encoder_gate"),
  "encoder": ("encoder",),
  "mixer": ("mixer", "bias_boundary", "fine_return", "fusion"),
  "aspp": ("aspp", "aspp_norm"),
  "decoder": ("decoder1", "decoder2", "decoder3", "decoder4", "head"),
}


def _whole(value, least: int, most: int = LARGEST) -> bool:
  """Whether value is a whole number from `least` to `most`."""
  return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _all_whole(values, count: int | None = None, most: int = LARGEST) -> bool:
  """Whether values are that many whole numbers from 1 to `most`; any number of them for None."""
  return len(values) == (count or len(values)) and all(_whole(value, 1, most) for value in values)


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """By field of `config.model.medlitenet`: whether its value can be used, and what it takes."""
  dim, heads, dilations = (fields[k] for k in ("mixer_dim", "mixer_heads", "aspp_dilations"))
  up_to = f"from 1 to {LARGEST}"
  return {
    "encoder_blocks": (_all_whole(fields["encoder_blocks"], 4), f"takes four numbers {up_to}"),
    "mixer_heads": (_whole(heads, 1), f"takes a number {up_to}"),
    "mixer_dim": (
      _whole(dim, 4) and dim % 4 == 0 and _whole(heads, 1) and dim % heads == 0,
      f"takes a multiple of 4 and of mixer_heads, {heads}, up to {LARGEST}",
    ),
    "mixer_layers": (
      _whole(fields["mixer_layers"], 1),
      f"takes a number {up_to}; mixer=False is none",
    ),
    "mixer_mlp_ratio": (_whole(fields["mixer_mlp_ratio"], 1), f"takes a number {up_to}"),
    "aspp_branch_dim": (_whole(fields["aspp_branch_dim"], 1), f"takes a number {up_to}"),
    "aspp_dilations": (
      _all_whole(dilations, most=LARGEST_DILATION) and 0 < len(dilations) == len(set(dilations)),
      f"takes different whole numbers from 1 to {LARGEST_DILATION}",
    ),
    "decoder_dims": (_all_whole(fields["decoder_dims"], 4), f"takes four numbers {up_to}"),
    "gate_stages": (set(fields["gate_stages"]) <= set(range(5)), "takes stages 0 to 4"),
    "boundary_bias_stage": (fields["boundary_bias_stage"] in range(1, 5), "takes 1 to 4"),
    "dropout": (0 <= fields["dropout"] < 1, "takes a rate from 0 up to, not including, 1"),
  }


# Where the bottleneck's parts stand, and what feeds them besides the part before.
_PLACES = {
  "bias_boundary": (1.5, 2.5),
  "mixer": (1.5, 1.5),
  "fine_return": (3.0, 1.5),
  "fusion": (1.5, 0.3),
  "aspp": (3.0, 0.3),
  "aspp_norm": (3.0, -0.6),
  "encoder_gate": (4.5, 0.3),
}
_PATH = ("encoder/stage4", "mixer", "fusion", "aspp", "encoder_gate", "decoder1")
_BRANCHES = (
  ("bias_boundary", "mixer"),
  ("encoder/stage3", "mixer"),
  ("encoder/stage4", "fusion"),
  ("mixer", "fine_return"),
  ("fine_return", "decoder1"),
)
_RIGHT = 6.0  # where the decoder stands


def drawing(names: Sequence[str], fields: Mapping[str, Any]) -> Drawing:
  """A U: encoder down the left, bottleneck along the foot, decoder up the right."""
  encoder = [name for name in names if name.startswith("encoder/")]
  decoder = [name for name in names if name.startswith("decoder") or name == "head"]
  places = {name: (0.0, float(len(encoder) - i)) for i, name in enumerate(encoder)}
  places |= {name: (_RIGHT, float(i + 2)) for i, name in enumerate(decoder)}
  places |= {name: _PLACES[name] for name in names if name in _PLACES}
  main = [name for name in _PATH if name in places]
  source = (f"encoder/stage{fields['boundary_bias_stage']}", "bias_boundary")
  wires = [*itertools.chain(*map(itertools.pairwise, (encoder, decoder, main))), source, *_BRANCHES]
  skips = zip(reversed(encoder[:-1]), decoder, strict=False)
  return Drawing(places, [(a, b) for a, b in wires if a in places and b in places], list(skips))


ENTRY = Entry(
  MedLiteNet,
  variants=VARIANTS,
  rules=rules,
  sizes=lambda fields: SIZES,
  parts=PARTS,
  expanded=("encoder",),
  drawing=drawing,
)
