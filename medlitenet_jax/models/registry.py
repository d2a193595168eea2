"""The networks by name; builds a Linen module from `config.model`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import ops
from medlitenet_jax.models.attention_unet import ENTRY as ATTENTION_UNET
from medlitenet_jax.models.bacanet import ENTRY as BACANET
from medlitenet_jax.models.deeplab_v3_plus import ENTRY as DEEPLAB_V3_PLUS
from medlitenet_jax.models.entry import Entry, Sizes
from medlitenet_jax.models.fat_net import ENTRY as FAT_NET
from medlitenet_jax.models.medlitenet.entry import ENTRY as MEDLITENET
from medlitenet_jax.models.segformer import ENTRY as SEGFORMER
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.models.swin_unet import ENTRY as SWIN_UNET
from medlitenet_jax.models.transunet import ENTRY as TRANSUNET
from medlitenet_jax.models.unet import ENTRY as UNET
from medlitenet_jax.models.unet_plus_plus import ENTRY as UNET_PLUS_PLUS
from medlitenet_jax.system.errors import InputError

NETWORKS: dict[str, Entry] = {
  "medlitenet": MEDLITENET,
  "unet": UNET,
  "unet_plus_plus": UNET_PLUS_PLUS,
  "attention_unet": ATTENTION_UNET,
  "deeplab_v3_plus": DEEPLAB_V3_PLUS,
  "swin_unet": SWIN_UNET,
  "transunet": TRANSUNET,
  "fat_net": FAT_NET,
  "bacanet": BACANET,
  "segformer": SEGFORMER,
}
# Fields of `config.model` that all networks share, each with the value that every network accepts.
# A network that accepts other values has a module attribute of the same name.
SHARED_FIELDS = {"form": "platform", "remat": False}


def _look_up(kind: str, name: str, table: Mapping[str, Any]):
  if name not in table:
    raise InputError(f"config.model.{kind}: {name!r} is not one of {', '.join(table)}")
  return table[name]


def _attributes(module: type[nn.Module]) -> dict[str, Any]:
  """Attributes of a module that the configuration sets, each with its default or MISSING."""
  defaults = {field.name: field.default for field in dataclasses.fields(module)}
  return {name: defaults[name] for name in defaults if name not in ("parent", "name", "dtype")}


def resolve_model(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fills in the values of the variant and checks the result.

  Args:
    fields: `config.model` as a mapping: "name", "variant", the shared fields, and one mapping per
      network. In it, None or a missing field means the variant's value.

  Returns:
    {"name", "variant", the shared fields, NAME: every field of that network}, without None values
    and without the sections of other networks.

  Raises:
    InputError: if the name or variant does not exist, a field is unknown, or a value is not valid.
  """
  name = fields["name"]
  entry = _look_up("name", name, NETWORKS)
  variant = _look_up("variant", fields["variant"], entry.variants)
  attributes = _attributes(entry.module)
  given = dict(fields.get(name) or {})
  own = {
    attribute: value for attribute, value in attributes.items() if attribute not in SHARED_FIELDS
  }
  own |= variant | {field: value for field, value in given.items() if value is not None}
  known = {"name", "variant", *SHARED_FIELDS, *NETWORKS}
  unknown = [f"config.model.{field}" for field in sorted(fields.keys() - known)]
  unknown += [f"config.model.{name}.{field}" for field in sorted(own.keys() - attributes.keys())]
  if unknown:
    raise InputError(f"{unknown[0]}: {name} has no such field")
  shared = {field: fields.get(field, value) for field, value in SHARED_FIELDS.items()}
  if shared["form"] not in ops.FORMS:
    raise InputError(
      f"config.model.form takes one of {', '.join(ops.FORMS)}; {shared['form']!r} is not"
    )
  if shared["remat"] and "remat" not in attributes:
    raise InputError(f"config.model.remat: {name} does not support it; set it to False")
  for field, (holds, takes) in _rules(entry, own):
    if not holds:
      raise InputError(f"config.model.{name}.{field} {takes}; {own[field]!r} is not")
  return {"name": name, "variant": fields["variant"], **shared, name: own}


def with_newer_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the fields that a network has got since it was saved.

  Args:
    fields: `config.model` of a saved network.

  Returns:
    The same, and the module's default for each field of the network that is missing: a new field is
    to leave saved networks as they are by its default, whatever it is in a variant of today.
  """
  name = fields.get("name")
  if not isinstance(name, str) or name not in NETWORKS or not isinstance(fields.get(name), Mapping):
    return dict(fields)
  defaults = {
    field: default
    for field, default in _attributes(NETWORKS[name].module).items()
    if field not in SHARED_FIELDS and default is not dataclasses.MISSING
  }
  return {**fields, name: {**defaults, **fields[name]}}


def _rules(entry: Entry, own: Mapping[str, Any]):
  """Applies a network's rules; a rule that fails on a value of the wrong type is an InputError."""
  try:
    return entry.rules(own).items()
  except TypeError as error:
    raise InputError(f"config.model: a field has a value of the wrong type ({error})") from error


def model_sizes(fields: Mapping[str, Any]) -> Sizes:
  """Input sizes that the network of a resolved `config.model` accepts."""
  return NETWORKS[fields["name"]].sizes(fields[fields["name"]])


def model_loss_weights(fields: Mapping[str, Any]) -> Mapping[str, float]:
  """Weights of terms of the loss by the network of a resolved `config.model`."""
  return NETWORKS[fields["name"]].loss_weights(fields[fields["name"]])


def model_parts(fields: Mapping[str, Any], image_size: int) -> dict[str, Sequence[str]]:
  """Names of a network's submodules by part, see `Entry.parts`.

  Args:
    fields: `config.model`, resolved.
    image_size: side in pixels, any that the network accepts.

  Returns:
    The parts that the network defines; if it defines none, each submodule as a part of its own.
  """
  if named := NETWORKS[fields["name"]].parts:
    return dict(named)
  structure = inspect_model(create_model(fields, jnp.float32), image_size)
  return {name: (name,) for name in structure.shapes["params"]}


def variable_shapes(fields: Mapping[str, Any], image_size: int) -> dict[str, Any]:
  """Shapes of the variables of a saved network, which what is saved has to have.

  Args:
    fields: `config.model` as a mapping, resolved or not.
    image_size: pixels a side.

  Returns:
    {"params", "batch_stats"} of shapes and dtypes, by module.

  Raises:
    InputError: as `resolve_model`.
    ValueError: if the network does not take the size.
  """
  resolved = resolve_model(fields)
  model_sizes(resolved).check(image_size)
  return inspect_model(create_model(resolved, jnp.float32), image_size).shapes


def create_model(fields: Mapping[str, Any], dtype: jnp.dtype) -> nn.Module:
  """Builds the network that `config.model` describes.

  Args:
    fields: `config.model` as a mapping, resolved or not.
    dtype: compute dtype; parameters are always float32.

  Returns:
    An unbound module that maps [B, H, W, 3] images to {"mask": [B, H, W, 1] float32 logits, ...}.

  Raises:
    InputError: see `resolve_model`.
  """
  resolved = resolve_model(fields)
  module = NETWORKS[resolved["name"]].module
  shared = {field: resolved[field] for field in SHARED_FIELDS if field in _attributes(module)}
  return module(dtype=dtype, **shared, **resolved[resolved["name"]])
