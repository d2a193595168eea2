"""Losses against NumPy in float64, at the masks and logits where formulas break."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.losses import (
  bce_loss,
  boundary_band,
  create_objective,
  dice_loss,
)


def objective(*, bce=0.5, dice=0.5, boundary_weight=0.0, width=3 / 8):
  """A function (logits, mask) to (loss, parts)."""
  terms = {
    "bce": {"weight": bce, "boundary_weight": boundary_weight, "boundary_width": width},
    "dice": {"weight": dice, "epsilon": 1.0},
  }
  loss_fn = create_objective(terms)
  return lambda logits, mask: loss_fn({"mask": logits}, {"mask": mask})


def cross_entropy(logits, mask, weight=None):
  """Eq. 11 of each case; log(1 + e^z) is written so that it does not overflow."""
  z, y = np.asarray(logits, np.float64), np.asarray(mask, np.float64)
  weight = np.ones_like(z) if weight is None else np.asarray(weight, np.float64)
  pixels = np.logaddexp(0, z) - z * y
  return (pixels * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def soft_dice(logits, mask, epsilon=1.0):
  """Eq. 10 of each case."""
  p, g = 1 / (1 + np.exp(-np.asarray(logits, np.float64))), np.asarray(mask, np.float64)
  overlap, total = (p * g).sum((1, 2, 3)), p.sum((1, 2, 3)) + g.sum((1, 2, 3))
  return 1 - (2 * overlap + epsilon) / (total + epsilon)


def band(mask, width):
  """Pixels in whose window, cut at the frame, both values occur."""
  out = np.zeros(mask.shape, np.float32)
  for b, i, j, _ in np.ndindex(mask.shape):
    rows, columns = (slice(max(0, n - width), n + width + 1) for n in (i, j))
    out[b, i, j] = len(np.unique(mask[b, rows, columns])) == 2
  return out


def cases():
  """Logits and masks: random, empty, full, and logits of +-80 that are right and wrong."""
  rng = np.random.default_rng(0)
  mask = (rng.uniform(size=(6, 8, 9, 1)) < 0.4).astype(np.float32)
  mask[1], mask[2] = 0, 1
  logits = 3 * rng.normal(size=mask.shape).astype(np.float32)
  logits[3], logits[4] = 160 * mask[3] - 80, 80 - 160 * mask[4]
  logits[5], mask[5] = -80, 0
  return logits, mask


class EagerAndCompiled(chex.TestCase):
  """What must hold with and without jit."""

  @chex.variants(with_jit=True, without_jit=True)
  def test_losses_are_their_equations(self):
    bce_fn, dice_fn = self.variant(bce_loss), self.variant(dice_loss)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
      logits, mask = cases()
      logits = jnp.asarray(logits, dtype)  # the reference sees the rounded ones
      for mask_dtype in (np.float32, np.uint8, bool):
        truth = jnp.asarray(mask.astype(mask_dtype))
        bce, dice = bce_fn(logits, truth), dice_fn(logits, truth)
        chex.assert_shape([bce, dice], (6,))
        chex.assert_type([bce, dice], jnp.float32)
        np.testing.assert_allclose(bce, cross_entropy(logits, mask), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dice, soft_dice(logits, mask), rtol=1e-5, atol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_band_has_both_lesion_and_skin_nearby(self):
    mask = np.zeros((5, 9, 11, 1), np.uint8)
    mask[0, 3:6, 4:9] = 1
    mask[1, :4, :5] = 1  # touches the frame, which is no border of the lesion
    mask[2, 4, 4] = 1
    mask[3] = 1
    for width in range(4):
      expected = band(mask, width)
      got = self.variant(boundary_band, static_argnums=1)(jnp.asarray(mask), width / 9)
      assert got.dtype == jnp.float32
      np.testing.assert_array_equal(got, expected)
      assert not expected[3:].any() and expected[:3].any() == (width > 0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_the_objective_is_the_weighted_sum(self):
    logits, mask = cases()
    for boundary_weight in (0.0, 2.0):
      loss_fn = self.variant(objective(bce=0.3, dice=0.9, boundary_weight=boundary_weight))
      loss, parts = loss_fn(logits, mask)
      bce = cross_entropy(logits, mask, 1 + boundary_weight * band(mask, 3)).mean()
      dice = soft_dice(logits, mask).mean()
      np.testing.assert_allclose(parts["bce_loss"], bce, rtol=1e-5)
      np.testing.assert_allclose(parts["dice_loss"], dice, rtol=1e-5)
      np.testing.assert_allclose(loss, 0.3 * bce + 0.9 * dice, rtol=1e-5)
      chex.assert_shape(loss, ())
      chex.assert_type(loss, jnp.float32)


def test_losses_at_certain_predictions():
  logits, mask = cases()
  bce, dice = bce_loss(logits, mask), dice_loss(logits, mask)
  for case, (entropy, overlap) in {3: (0, 0), 4: (80, 1), 5: (0, 0)}.items():
    np.testing.assert_allclose(bce[case], entropy, atol=1e-5)
    np.testing.assert_allclose(dice[case], overlap, atol=0.02)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_gradients_stay_finite(dtype):
  logits, mask = cases()
  grad = jax.grad(lambda z: objective()(z, mask)[0])(jnp.asarray(logits, dtype))
  assert grad.dtype == dtype and np.all(np.isfinite(grad))
  assert np.all(np.asarray(grad)[4][mask[4] == 0] > 0) and np.all(np.asarray(grad)[3] < 1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_over_more_pixels_than_float16_can_count(dtype):
  mask = jnp.ones((1, 300, 300, 1), dtype)  # 90,000 pixels
  assert dice_loss(80 * mask, mask)[0] == 0
  assert bce_loss(80 * mask, mask)[0] < 1e-30
  half = mask.at[:, :150].set(0)
  np.testing.assert_allclose(dice_loss(80 * mask, half)[0], 1 - 90001 / 135001, rtol=1e-5)
  np.testing.assert_allclose(bce_loss(80 * mask, half)[0], 40, rtol=1e-5)


def test_dice_epsilon_is_in_pixels():
  logits, mask = cases()
  for epsilon in (1e-3, 1.0, 50.0):
    np.testing.assert_allclose(
      dice_loss(logits, mask, epsilon), soft_dice(logits, mask, epsilon), rtol=1e-4, atol=1e-5
    )


def test_weighted_cross_entropy_is_a_weighted_mean():
  logits, mask = cases()
  weight = np.random.default_rng(1).uniform(0.1, 3, mask.shape).astype(np.float32)
  np.testing.assert_allclose(
    bce_loss(logits, mask, weight), cross_entropy(logits, mask, weight), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    bce_loss(logits, mask, 7 * np.ones_like(mask)), bce_loss(logits, mask), rtol=1e-5, atol=1e-6
  )


def test_boundary_weight_stresses_mistakes_at_the_border():
  mask = np.zeros((1, 32, 32, 1), np.float32)
  mask[:, 8:24, 8:24] = 1
  near, far = (20 * mask - 10 for _ in range(2))
  near[0, 8, 8:24] *= -1  # the lesion's first row is missed
  far[0, 0, 8:24] *= -1  # as many pixels of skin, at the frame
  plain, weighted = (
    objective(dice=0.0, boundary_weight=weight, width=3 / 32) for weight in (0.0, 2.0)
  )
  np.testing.assert_allclose(plain(near, mask)[0], plain(far, mask)[0], rtol=1e-5)
  assert weighted(near, mask)[0] > 2 * weighted(far, mask)[0]


def test_boundary_maps_are_compared_with_the_border_in_each_of_their_cells():
  mask = np.zeros((2, 16, 16, 1), np.uint8)
  mask[0, 4:11, 2:9] = 1
  mask[1, :, 8:] = 1
  rng = np.random.default_rng(0)
  maps = {side: rng.normal(size=(2, side, side, 1)).astype(np.float32) for side in (4, 16)}
  terms = {"boundaries": {"weight": 1.0, "width": 0.005}}  # less than a pixel: one
  loss, parts = create_objective(terms)({"boundaries": maps}, {"mask": mask})
  expected = []
  for side, logits in maps.items():
    cell = 16 // side
    border = band(mask, 1).reshape(2, side, cell, side, cell, 1).max((2, 4))
    expected.append(0.5 * (cross_entropy(logits, border) + soft_dice(logits, border)))
  np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
  assert set(parts) == {"boundaries_loss"}
  with pytest.raises(InputError, match="returns no boundary maps"):
    create_objective(terms)({"mask": maps[16]}, {"mask": mask})


def test_every_further_mask_counts_alike():
  rng = np.random.default_rng(0)
  mask = (rng.random((2, 8, 8, 1)) > 0.6).astype(np.uint8)
  masks = {name: rng.normal(size=(2, 8, 8, 1)).astype(np.float32) for name in ("first", "second")}
  objective = create_objective({"deep": {"weight": 2.0}})
  loss, parts = objective({"mask": masks["first"], "deep": masks}, {"mask": mask})
  each = [0.5 * (cross_entropy(x, mask) + soft_dice(x, mask)) for x in masks.values()]
  np.testing.assert_allclose(loss, 2 * np.mean(each), rtol=1e-5)
  assert set(parts) == {"deep_loss"}
  with pytest.raises(InputError, match="returns no masks of its inner layers"):
    objective({"mask": masks["first"]}, {"mask": mask})


def test_a_term_of_weight_0_is_left_out():
  _, parts = objective(dice=0.0)(*cases())
  assert set(parts) == {"bce_loss"}


def test_classes_are_scored_where_they_are_known():
  logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  numbers = np.array([2, -1, 0, 1], np.int32)
  loss, parts = create_objective({"classes": {"weight": 2.0}})(
    {"class": jnp.asarray(logits)}, {"class": jnp.asarray(numbers)}
  )
  wide = logits.astype(np.float64)
  chosen = wide[np.arange(4), np.maximum(numbers, 0)]
  expected = np.mean((np.log(np.exp(wide).sum(1)) - chosen) * (numbers >= 0))
  np.testing.assert_allclose(parts["classes_loss"], expected, rtol=1e-5)
  np.testing.assert_allclose(loss, 2 * expected, rtol=1e-5)
  for outputs, targets in (({}, {"class": numbers}), ({"class": logits}, {})):
    with pytest.raises(InputError, match=r"config\.loss\.classes: needs"):
      create_objective({"classes": {"weight": 1.0}})(outputs, targets)


@pytest.mark.parametrize(
  ("terms", "says"),
  [
    ({"focal": {"weight": 1.0}}, "bce, dice, boundaries, deep, classes"),
    ({"dice": {"weight": 1.0}}, r"config\.loss\.dice takes weight, epsilon; .* epsilon"),
    ({"dice": {"weight": 1.0, "epsilon": 1.0, "width": 2}}, "width"),
    ({"dice": {"weight": -1.0, "epsilon": 1.0}}, r"config\.loss\.dice\.weight"),
    ({"dice": {"weight": 0.0, "epsilon": 1.0}}, "are all 0"),
    ({}, "are all 0"),
  ],
)
def test_terms_that_cannot_be_used_are_refused_by_name(terms, says):
  with pytest.raises(InputError, match=says):
    create_objective(terms)


@pytest.mark.parametrize("loss", [bce_loss, dice_loss])
@pytest.mark.parametrize(
  "shapes",
  [
    ((2, 4, 4, 1), (2, 4, 4)),
    ((4, 4, 1), (4, 4, 1)),
    ((2, 4, 4, 1), (2, 4, 5, 1)),
    ((2, 4, 4, 2),) * 2,
  ],
)
def test_other_shapes_are_refused(loss, shapes):
  with pytest.raises(AssertionError, match="shape"):
    loss(*(jnp.zeros(shape) for shape in shapes))


def test_logits_that_are_no_floats_and_weights_of_another_shape_are_refused():
  mask = jnp.ones((2, 4, 4, 1))
  with pytest.raises(AssertionError, match="type"):
    dice_loss(mask.astype(jnp.uint8), mask)
  with pytest.raises(AssertionError, match="shape"):
    bce_loss(mask, mask, mask[:1])
