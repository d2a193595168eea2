"""Losses from logits, per case, in float32 whatever the compute dtype, and the table of terms."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from medlitenet_jax.config import LARGEST_SIDE
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.rules import Rule, number, one_of, whole


def _as_float32(logits, mask):
  if logits.shape != mask.shape or logits.ndim != 4:
    raise ValueError(f"logits {logits.shape} and mask {mask.shape} must be one [B, H, W, 1] shape")
  return logits.astype(jnp.float32), mask.astype(jnp.float32)


def bce_loss(logits, mask, weight=None):
  """Binary cross-entropy, averaged over the pixels of each case (eq. 11).

  Args:
    logits: [B, H, W, 1] scores before the sigmoid, any float dtype.
    mask: [B, H, W, 1] ground truth in [0, 1].
    weight: [B, H, W, 1] weight of each pixel, or None for 1 everywhere.

  Returns:
    [B] float32.

  Raises:
    ValueError: if logits and mask differ in shape or are not rank 4.
  """
  logits, mask = _as_float32(logits, mask)
  pixels = optax.losses.sigmoid_binary_cross_entropy(logits, mask)
  if weight is None:
    return jnp.mean(pixels, axis=(1, 2, 3))
  return jnp.sum(pixels * weight, axis=(1, 2, 3)) / jnp.sum(weight, axis=(1, 2, 3))


def dice_loss(logits, mask, epsilon: float = 1.0):
  """Soft Dice loss of each case (eq. 10).

  Args:
    logits: [B, H, W, 1] scores before the sigmoid, any float dtype.
    mask: [B, H, W, 1] ground truth in [0, 1].
    epsilon: smoothing term, in pixels; makes an empty prediction of an empty mask cost nothing.

  Returns:
    [B] float32 in [0, 1].

  Raises:
    ValueError: if logits and mask differ in shape or are not rank 4.
  """
  logits, mask = _as_float32(logits, mask)
  probs = nn.sigmoid(logits)
  overlap = jnp.sum(probs * mask, axis=(1, 2, 3))
  total = jnp.sum(probs, axis=(1, 2, 3)) + jnp.sum(mask, axis=(1, 2, 3))
  return 1 - (2 * overlap + epsilon) / (total + epsilon)


def boundary_band(mask, width: int):
  """Pixels that have both lesion and skin within `width` pixels.

  Args:
    mask: [B, H, W, 1] ground truth, 0 or 1, any dtype.
    width: in pixels, on either side of the border.

  Returns:
    [B, H, W, 1] float32, 1 on the band and 0 elsewhere.
  """
  mask = mask.astype(jnp.float32)
  side = 2 * width + 1

  def spread(x):
    x = nn.max_pool(x, (side, 1), padding="SAME")
    return nn.max_pool(x, (1, side), padding="SAME")

  return spread(mask) * spread(1 - mask)


def _bce_term(outputs, targets, *, boundary_weight: float, boundary_width: int):
  """Cross-entropy of the mask; a pixel within `boundary_width` of the border weighs more."""
  weight = None
  if boundary_weight:
    weight = 1 + boundary_weight * boundary_band(targets["mask"], boundary_width)
  return bce_loss(outputs["mask"], targets["mask"], weight)


def _dice_term(outputs, targets, *, epsilon: float):
  """Soft Dice of the mask."""
  return dice_loss(outputs["mask"], targets["mask"], epsilon)


class Term(NamedTuple):
  """A term of the loss.

  Attributes:
    loss: (outputs of the network, targets of the batch, **options) to the [B] float32 loss of each
      case. Outputs and targets are dicts of arrays, the mask's logits and truth among them.
    options: what each of its options takes; `config.loss.NAME` has them besides the weight.
  """

  loss: Callable[..., jax.Array]
  options: Mapping[str, Rule] = MappingProxyType({})


TERMS: dict[str, Term] = {
  "bce": Term(
    _bce_term, {"boundary_weight": number(least=0), "boundary_width": whole(0, LARGEST_SIDE)}
  ),
  "dice": Term(_dice_term, {"epsilon": number(above=0)}),
}


def create_objective(
  terms: Mapping[str, Mapping[str, Any]],
) -> Callable[[Mapping, Mapping], tuple[jax.Array, dict[str, jax.Array]]]:
  """Builds the weighted sum of loss terms (eq. 12), averaged over the batch.

  Args:
    terms: `config.loss`: for each term of `TERMS` its weight and options.

  Returns:
    A function (outputs, targets) to

      loss: scalar float32.
      parts: {NAME_loss: the unweighted mean of each term in force}, scalar float32.

  Raises:
    InputError: if a term or an option is unknown or missing, a value cannot be used, or all weights
      are 0.
  """
  used: dict[str, tuple[float, Callable]] = {}
  for name, fields in terms.items():
    one_of(TERMS).check("the name of a section of config.loss", name)
    rules = {"weight": number(least=0), **TERMS[name].options}
    if odd := sorted(fields.keys() ^ rules.keys()):
      raise InputError(f"config.loss.{name} takes {', '.join(rules)}; look at {', '.join(odd)}")
    for option, rule in rules.items():
      rule.check(f"config.loss.{name}.{option}", fields[option])
    options = {option: fields[option] for option in TERMS[name].options}
    if fields["weight"]:
      used[name] = fields["weight"], functools.partial(TERMS[name].loss, **options)
  if not used:
    raise InputError(
      f"config.loss: the weights of {', '.join(terms) or 'its terms'} are all 0; give one of them"
    )

  def objective(outputs, targets):
    parts = {f"{name}_loss": jnp.mean(term(outputs, targets)) for name, (_, term) in used.items()}
    weighted = [weight * parts[f"{name}_loss"] for name, (weight, _) in used.items()]
    return functools.reduce(jnp.add, weighted), parts

  return objective
