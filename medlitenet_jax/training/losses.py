"""Losses of each case from its logits, and the table of terms that make up a run's loss.

Losses are computed in float32 whatever the compute dtype is.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from medlitenet_jax.data.cases import CLASS
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.rules import Rule, number, one_of


def _as_float32(logits, mask):
  chex.assert_shape([logits, mask], (None, None, None, 1))
  chex.assert_equal_shape([logits, mask])
  chex.assert_type(logits, float)
  return logits.astype(jnp.float32), mask.astype(jnp.float32)


def bce_loss(logits, mask, weight=None):
  """Binary cross-entropy, averaged over the pixels of each case (eq. 11).

  Args:
    logits: [B, H, W, 1] scores before the sigmoid, any float dtype.
    mask: [B, H, W, 1] ground truth in [0, 1].
    weight: [B, H, W, 1] weight of each pixel, any float dtype, or None for 1 everywhere.

  Returns:
    [B] float32.

  Raises:
    AssertionError: if the arrays are not of one [B, H, W, 1] shape.
  """
  logits, mask = _as_float32(logits, mask)
  pixels = optax.losses.sigmoid_binary_cross_entropy(logits, mask)
  if weight is None:
    return jnp.mean(pixels, axis=(1, 2, 3))
  chex.assert_equal_shape([weight, mask])
  return jnp.sum(pixels * weight, axis=(1, 2, 3)) / jnp.sum(weight, axis=(1, 2, 3))


def dice_loss(logits, mask, epsilon: float = 1.0):
  """Soft Dice loss of each case (eq. 10).

  Args:
    logits: [B, H, W, 1] scores before the sigmoid, any float dtype.
    mask: [B, H, W, 1] ground truth in [0, 1].
    epsilon: smoothing term in pixels, above 0; with it, the loss of an empty prediction of an empty
      mask is 0.

  Returns:
    [B] float32 in [0, 1].

  Raises:
    AssertionError: if the arrays are not of one [B, H, W, 1] shape.
  """
  logits, mask = _as_float32(logits, mask)
  probs = nn.sigmoid(logits)
  overlap = jnp.sum(probs * mask, axis=(1, 2, 3))
  total = jnp.sum(probs, axis=(1, 2, 3)) + jnp.sum(mask, axis=(1, 2, 3))
  return 1 - (2 * overlap + epsilon) / (total + epsilon)


def boundary_band(mask, width: float):
  """Marks the pixels that have both lesion and skin in the square that reaches `width` out.

  Args:
    mask: [B, H, W, 1] ground truth, 0 or 1, any dtype.
    width: on either side of the border, as a fraction of the height; at least one pixel. 0 marks
      nothing.

  Returns:
    [B, H, W, 1] float32, 1 on the band and 0 elsewhere.

  Raises:
    AssertionError: if the mask is of another shape.
  """
  chex.assert_shape(mask, (None, None, None, 1))
  mask = mask.astype(jnp.float32)
  side = 2 * max(1, round(width * mask.shape[1])) + 1 if width else 1

  def spread(x):
    x = nn.max_pool(x, (side, 1), padding="SAME")
    return nn.max_pool(x, (1, side), padding="SAME")

  return spread(mask) * spread(1 - mask)


def _bce_term(outputs, targets, *, boundary_weight: float, boundary_width: float):
  """Cross-entropy of the mask; pixels near the border have the weight 1 + boundary_weight."""
  weight = None
  if boundary_weight:
    weight = 1 + boundary_weight * boundary_band(targets["mask"], boundary_width)
  return bce_loss(outputs["mask"], targets["mask"], weight)


def _dice_term(outputs, targets, *, epsilon: float):
  """Soft Dice of the mask."""
  return dice_loss(outputs["mask"], targets["mask"], epsilon)


def _boundaries_term(outputs, targets, *, width: float):
  """Mean of cross-entropy and soft Dice of every boundary map that the network returns.

  A cell of a map is on the border if a pixel in it is.
  """
  if not outputs.get("boundaries"):
    raise InputError(
      "config.loss.boundaries: the network returns no boundary maps; BACANet does, and MedLiteNet "
      "with boundary_magnitude=True and a gate or a bias; otherwise set the weight to 0"
    )
  band = boundary_band(targets["mask"], width)
  losses = []
  for logits in outputs["boundaries"].values():
    factor = band.shape[1] // logits.shape[1]
    border = nn.max_pool(band, (factor, factor), (factor, factor))
    losses.append(_bce_and_dice(logits, border))
  return _mean(losses)


def _deep_term(outputs, targets):
  """Mean of cross-entropy and soft Dice of every further mask that the network returns."""
  if not outputs.get("deep"):
    raise InputError(
      "config.loss.deep: the network returns no masks of its inner layers; U-Net++ does with "
      "deep_supervision=True; otherwise set the weight to 0"
    )
  return _mean([_bce_and_dice(logits, targets["mask"]) for logits in outputs["deep"].values()])


def _bce_and_dice(logits, mask):
  return 0.5 * (bce_loss(logits, mask) + dice_loss(logits, mask))


def _mean(losses):
  return functools.reduce(jnp.add, losses) / len(losses)


def _classes_term(outputs, targets):
  """Cross-entropy of the classes; 0 for a case whose class is not known."""
  if CLASS not in outputs or CLASS not in targets:
    raise InputError(
      "config.loss.classes: needs cases with a class and a network that tells classes apart; "
      "otherwise set the weight to 0"
    )
  logits, given = outputs[CLASS], targets[CLASS]
  chex.assert_rank([logits, given], [2, 1])
  places = jnp.maximum(given, 0)
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, places) * (given >= 0)


class Term(NamedTuple):
  """A term of the loss.

  Attributes:
    loss: (outputs, targets, **options) to the [B] float32 loss of each case. Outputs are those of
      the network, targets those of the batch; both are dicts of arrays in which "mask" is the
      logits and the ground truth.
    options: what each of its options takes. `config.loss.NAME` holds them beside the weight.
  """

  loss: Callable[..., jax.Array]
  options: Mapping[str, Rule] = MappingProxyType({})


TERMS: dict[str, Term] = {
  "bce": Term(
    _bce_term, {"boundary_weight": number(least=0), "boundary_width": number(least=0, most=0.5)}
  ),
  "dice": Term(_dice_term, {"epsilon": number(above=0)}),
  "boundaries": Term(_boundaries_term, {"width": number(least=0, most=0.5)}),
  "deep": Term(_deep_term),
  "classes": Term(_classes_term),
}


def create_objective(
  terms: Mapping[str, Mapping[str, Any]],
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
  """Builds the weighted sum of loss terms (eq. 12), averaged over the batch.

  Args:
    terms: `config.loss`: for each term of `TERMS` its weight and options.

  Returns:
    A function (outputs, targets, weights) to the two below. The weights, scalars by the name of
    their term, replace those of `terms` that are not 0; they may be traced.

      loss: scalar float32.
      parts: {NAME_loss: the unweighted mean of each term whose weight is not 0}, scalar float32.

  Raises:
    InputError: if a term is unknown, if an option is unknown or missing, if a value cannot be used,
      or if all weights are 0.
  """
  used: dict[str, tuple[float, Callable]] = {}
  for name, fields in terms.items():
    one_of(TERMS).check("the name of a section of config.loss", name)
    rules = {"weight": number(least=0), **TERMS[name].options}
    if odd := sorted(fields.keys() ^ rules.keys()):
      raise InputError(
        f"config.loss.{name} takes {', '.join(rules)}; add or remove {', '.join(odd)}"
      )
    for option, rule in rules.items():
      rule.check(f"config.loss.{name}.{option}", fields[option])
    options = {option: fields[option] for option in TERMS[name].options}
    if fields["weight"]:
      used[name] = fields["weight"], functools.partial(TERMS[name].loss, **options)
  if not used:
    raise InputError(
      f"config.loss: the weights of {', '.join(terms) or 'its terms'} are all 0; set one above 0"
    )

  def objective(outputs, targets, weights: Mapping[str, Any] = MappingProxyType({})):
    parts = {f"{name}_loss": jnp.mean(term(outputs, targets)) for name, (_, term) in used.items()}
    weighted = [
      weights.get(name, weight) * parts[f"{name}_loss"] for name, (weight, _) in used.items()
    ]
    return functools.reduce(jnp.add, weighted), parts

  return objective
