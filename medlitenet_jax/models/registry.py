"""Networks by name: `config.model` in, a Linen module out."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.errors import InputError
from medlitenet_jax.models import medlitenet, ops

# Each entry: the module, and its variants as {name: {field: value}}. A module takes those fields
# and the other fields of `config.model` as attributes, besides `form` and `dtype`.
MODELS = {"medlitenet": (medlitenet.MedLiteNet, medlitenet.VARIANTS)}


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
    InputError: if the name, the variant, the form or a value is not one that exists.
  """
  _, variants = _look_up("name", fields["name"], MODELS)
  defaults = _look_up("variant", fields["variant"], variants)
  resolved = {k: defaults[k] if v is None and k in defaults else v for k, v in fields.items()}
  _check(resolved)
  return resolved


def _check(fields: Mapping[str, Any]) -> None:
  """Refuses values that no network can be built from, field by field."""
  dims, heads = fields["mixer_dim"], fields["mixer_heads"]
  problems = {
    "form": fields["form"] not in ops.FORMS and f"takes one of {', '.join(ops.FORMS)}",
    "encoder_blocks": (len(fields["encoder_blocks"]) != 4 or min(fields["encoder_blocks"]) < 1)
    and "takes four whole numbers from 1 up",
    "mixer_dim": (dims < 4 or dims % 4 or dims % heads)
    and f"takes a multiple of 4 and of mixer_heads ({heads})",
    "mixer_layers": fields["mixer_layers"] < 1 and "takes 1 or more; mixer=False removes the mixer",
    "mixer_mlp_ratio": fields["mixer_mlp_ratio"] < 1 and "takes 1 or more",
    "aspp_branch_dim": fields["aspp_branch_dim"] < 1 and "takes 1 or more",
    "aspp_dilations": (not fields["aspp_dilations"] or min(fields["aspp_dilations"]) < 1)
    and "takes a tuple of whole numbers from 1 up",
    "decoder_dims": (len(fields["decoder_dims"]) != 4 or min(fields["decoder_dims"]) < 1)
    and "takes four whole numbers from 1 up",
    "gate_stages": not set(fields["gate_stages"]) <= set(range(5)) and "takes stages 0 to 4",
    "boundary_bias_stage": fields["boundary_bias_stage"] not in range(1, 5) and "takes 1 to 4",
    "dropout": not 0 <= fields["dropout"] < 1 and "takes a rate from 0 up to, not including, 1",
  }
  for field, problem in problems.items():
    if problem:
      raise InputError(f"config.model.{field} {problem}, not {fields[field]!r}")


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
