"""MedLiteNet's place in the registry: its variants, rules, sizes, parts and picture."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from medlitenet_jax.models import knockout
from medlitenet_jax.models.entry import Drawing, Entry
from medlitenet_jax.models.medlitenet.network import SIZES, VARIANTS, MedLiteNet

MAX_COUNT = 4096  # blocks, layers, channels and the like: no memory holds more
MAX_DILATION = 256  # the side of the bottleneck's grid for the largest image

PARTS = {  # gates come first: they also lie inside the decoder's stages, and the first match counts
  "gate": ("gate", "encoder_gate"),
  "encoder": ("encoder",),
  "mixer": ("mixer", "bias_boundary", "fine_return", "fusion"),
  "aspp": ("aspp", "aspp_norm"),
  "decoder": ("decoder1", "decoder2", "decoder3", "decoder4", "head"),
  "boundaries": ("boundaries",),
  "classes": ("classes",),
}

KNOCKOUTS: dict[str, knockout.Knockout] = {
  "attention": {"*/attention": knockout.zero},
  "attention_pattern": {
    "*/attention/qkv": knockout.uniform_queries_and_keys,
    "*/attention/queries_and_keys": knockout.zero,
  },
  "token_mlp": {"*/mlp_out": knockout.zero},
  "mixer": {
    "fusion": knockout.unchanged,
    "fine_return": knockout.zero,
    "*gate/context": knockout.zero,
  },
  "boundary": {"bias_boundary": knockout.zero, "*/boundary": knockout.zero},
  "boundary_bias": {"bias_boundary": knockout.zero},
  "gate_boundary": {"*/boundary": knockout.zero},
  "gate_context": {"*gate/context": knockout.zero},
  "gate": {"*gate/gate": knockout.even},
  "boundary_parts": {"bias_boundary": knockout.zero, "*gate/gate": knockout.even},
  "aspp_branches": {f"aspp/dilation{'?' * digits}": knockout.zero for digits in (1, 2, 3)},
  "scse": {"*/scse": knockout.unchanged},
}


def _whole(value, least: int, most: int = MAX_COUNT) -> bool:
  """Whether value is an integer from `least` to `most`."""
  return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _all_whole(values, count: int | None = None, most: int = MAX_COUNT) -> bool:
  """Whether values are `count` (None: any number of) integers from 1 to `most`."""
  return len(values) == (count or len(values)) and all(_whole(value, 1, most) for value in values)


def rules(fields: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
  """{field of `config.model.medlitenet`: (is its value valid, which values are)}."""
  dim, heads, dilations = (fields[k] for k in ("mixer_dim", "mixer_heads", "aspp_dilations"))
  up_to = f"from 1 to {MAX_COUNT}"
  return {
    "encoder_blocks": (_all_whole(fields["encoder_blocks"], 4), f"takes four numbers {up_to}"),
    "mixer_heads": (_whole(heads, 1), f"takes a number {up_to}"),
    "mixer_dim": (
      _whole(dim, 4) and dim % 4 == 0 and _whole(heads, 1) and dim % heads == 0,
      f"takes a multiple of 4 and of mixer_heads, {heads}, up to {MAX_COUNT}",
    ),
    "mixer_layers": (
      _whole(fields["mixer_layers"], 1),
      f"takes a number {up_to}; mixer=False removes them",
    ),
    "mixer_mlp_ratio": (_whole(fields["mixer_mlp_ratio"], 1), f"takes a number {up_to}"),
    "aspp_branch_dim": (_whole(fields["aspp_branch_dim"], 1), f"takes a number {up_to}"),
    "aspp_dilations": (
      _all_whole(dilations, most=MAX_DILATION) and 0 < len(dilations) == len(set(dilations)),
      f"takes different whole numbers from 1 to {MAX_DILATION}",
    ),
    "decoder_dims": (_all_whole(fields["decoder_dims"], 4), f"takes four numbers {up_to}"),
    "gate_stages": (set(fields["gate_stages"]) <= set(range(5)), "takes stages 0 to 4"),
    "boundary_bias_stage": (fields["boundary_bias_stage"] in range(1, 5), "takes 1 to 4"),
    "position_cycles": (0.5 <= fields["position_cycles"] <= 64, "takes 0.5 to 64 cycles a frame"),
    "aspp_grid": (_whole(fields["aspp_grid"], 0), f"takes a number from 0 to {MAX_COUNT}"),
    "classes": (
      _whole(fields["classes"], 0) and fields["classes"] != 1,
      f"takes 0 or a number from 2 to {MAX_COUNT}",
    ),
    "dropout": (0 <= fields["dropout"] < 1, "takes a rate from 0 up to, not including, 1"),
  }


# Boxes of the bottleneck's parts, the main path through them, and the other arrows.
_PLACES = {
  "bias_boundary": (1.5, 2.5),
  "mixer": (1.5, 1.5),
  "fine_return": (3.0, 1.5),
  "fusion": (1.5, 0.3),
  "aspp": (3.0, 0.3),
  "aspp_norm": (3.0, -0.6),
  "classes": (4.5, -0.6),
  "encoder_gate": (4.5, 0.3),
  "boundaries": (4.5, 2.5),
}
_MAIN_PATH = ("encoder/stage4", "mixer", "fusion", "aspp", "encoder_gate", "decoder1")
_BRANCHES = (
  ("bias_boundary", "mixer"),
  ("encoder/stage3", "mixer"),
  ("encoder/stage4", "fusion"),
  ("mixer", "fine_return"),
  ("fine_return", "decoder1"),
  ("aspp", "classes"),
  ("encoder_gate", "boundaries"),
)
_DECODER_X = 6.0


def drawing(names: Sequence[str], fields: Mapping[str, Any]) -> Drawing:
  """A U: encoder down the left, bottleneck along the bottom, decoder up the right."""
  encoder = [name for name in names if name.startswith("encoder/")]
  decoder = [name for name in names if name.startswith("decoder") or name == "head"]
  places = {name: (0.0, float(len(encoder) - i)) for i, name in enumerate(encoder)}
  places |= {name: (_DECODER_X, float(i + 2)) for i, name in enumerate(decoder)}
  places |= {name: _PLACES[name] for name in names if name in _PLACES}
  main = [name for name in _MAIN_PATH if name in places]
  source = (f"encoder/stage{fields['boundary_bias_stage']}", "bias_boundary")
  wires = [*itertools.chain(*map(itertools.pairwise, (encoder, decoder, main))), source, *_BRANCHES]
  skips = zip(reversed(encoder[:-1]), decoder, strict=False)
  return Drawing(places, [(a, b) for a, b in wires if a in places and b in places], list(skips))


def loss_weights(fields: Mapping[str, Any]) -> dict[str, float]:
  """The boundary maps count where they are such that they can be supervised."""
  biased = fields["mixer"] and fields["attention"] and fields["boundary_bias"]
  has_maps = fields["boundary_magnitude"] and (fields["gate_stages"] or biased)
  return {"boundaries": 0.2 if has_maps else 0.0}


ENTRY = Entry(
  MedLiteNet,
  variants=VARIANTS,
  rules=rules,
  sizes=lambda fields: SIZES,
  loss_weights=loss_weights,
  parts=PARTS,
  expanded=("encoder",),
  knockouts=KNOCKOUTS,
  drawing=drawing,
)
