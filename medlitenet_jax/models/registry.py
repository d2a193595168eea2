"""Networks by name: `config.model` in, a Linen module out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medlitenet_jax.models import ops
from medlitenet_jax.models.medlitenet import network
from medlitenet_jax.system.errors import InputError

# Each entry: the module, and its variants as {name: {field: value}}. A module takes those fields
# and the other fields of `config.model` as attributes, besides `form` and `dtype`.
MODELS = {"medlitenet": (network.MedLiteNet, network.VARIANTS)}
MOST = 4096  # of blocks, layers, channels and the like: more fits no memory
MOST_DILATION = 256  # as wide as the grid of the largest image


def _look_up(kind: str, name: str, table: Mapping[str, Any]):
  if name not in table:
    raise InputError(f"config.model.{kind}: {name!r} is not one of {', '.join(table)}")
  return table[name]


def resolve_model(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fills in what the variant decides.

  Args:
    fields: `config.model` as a mapping; None stands for the variant's value.

  Returns:
    The same fields, none of them None.

  Raises:
    InputError: if the name, the variant, the form or a value is not one that exists, or a field is
      missing or unknown.
  """
  module, variants = _look_up("name", fields["name"], MODELS)
  defaults = _look_up("variant", fields["variant"], variants)
  attributes = {field.name for field in dataclasses.fields(module)} - {"parent", "name", "dtype"}
  unlike = (fields.keys() - {"name", "variant"}) ^ attributes
  if unlike:
    raise InputError(
      f"config.model: {', '.join(sorted(unlike))} missing from it, or unknown to this version"
    )
  resolved = {k: defaults[k] if v is None and k in defaults else v for k, v in fields.items()}
  _check(resolved)
  return resolved


def _whole(value, least: int, most: int = MOST) -> bool:
  """Whether value is a whole number from `least` to `most`."""
  return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _all_whole(values, count: int | None = None, most: int = MOST) -> bool:
  """Whether values are that many whole numbers from 1 to `most`; any number of them for None."""
  return len(values) == (count or len(values)) and all(_whole(value, 1, most) for value in values)


def _check(fields: Mapping[str, Any]) -> None:
  """Refuses values that no network can be built from, field by field."""
  dim, heads, dilations = (fields[k] for k in ("mixer_dim", "mixer_heads", "aspp_dilations"))
  up_to = f"from 1 to {MOST}"
  rules = {
    "form": (fields["form"] in ops.FORMS, f"takes one of {', '.join(ops.FORMS)}"),
    "encoder_blocks": (_all_whole(fields["encoder_blocks"], 4), f"takes four numbers {up_to}"),
    "mixer_heads": (_whole(heads, 1), f"takes a number {up_to}"),
    "mixer_dim": (
      _whole(dim, 4) and dim % 4 == 0 and _whole(heads, 1) and dim % heads == 0,
      f"takes a multiple of 4 and of mixer_heads, {heads}, up to {MOST}",
    ),
    "mixer_layers": (
      _whole(fields["mixer_layers"], 1),
      f"takes a number {up_to}; mixer=False is none",
    ),
    "mixer_mlp_ratio": (_whole(fields["mixer_mlp_ratio"], 1), f"takes a number {up_to}"),
    "aspp_branch_dim": (_whole(fields["aspp_branch_dim"], 1), f"takes a number {up_to}"),
    "aspp_dilations": (
      _all_whole(dilations, most=MOST_DILATION) and 0 < len(dilations) == len(set(dilations)),
      f"takes different whole numbers from 1 to {MOST_DILATION}",
    ),
    "decoder_dims": (_all_whole(fields["decoder_dims"], 4), f"takes four numbers {up_to}"),
    "gate_stages": (set(fields["gate_stages"]) <= set(range(5)), "takes stages 0 to 4"),
    "boundary_bias_stage": (fields["boundary_bias_stage"] in range(1, 5), "takes 1 to 4"),
    "dropout": (0 <= fields["dropout"] < 1, "takes a rate from 0 up to, not including, 1"),
  }
  for field, (holds, takes) in rules.items():
    if not holds:
      raise InputError(f"config.model.{field} {takes}; {fields[field]!r} is not")


def variable_shapes(model: nn.Module) -> dict[str, Any]:
  """Shapes of a network's parameters and running statistics, by module."""
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def create_model(fields: Mapping[str, Any], dtype: jnp.dtype) -> nn.Module:
  """Builds the network that `config.model` describes.

  Args:
    fields: `config.model` as a mapping, resolved or not.
    dtype: compute dtype; parameters are float32 in any case.

  Returns:
    An unbound module that maps [B, H, W, 3] images to [B, H, W, 1] float32 logits.

  Raises:
    InputError: as `resolve_model`.
  """
  attributes = resolve_model(fields)
  module, _ = MODELS[attributes.pop("name")]
  del attributes["variant"]
  return module(dtype=dtype, **attributes)
