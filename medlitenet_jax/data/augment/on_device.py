"""Applies augmentations on the device, inside the training step.

The reader threads then only decode photographs and draw the parameters of the augmentations. They
draw the same numbers as `augment`, so host and device give the same view, except for rounding, for
the values of the noise, and for crops smaller than half a side, which are less sharp here.
"""

import functools
from collections.abc import Mapping

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np

from medlitenet_jax.data.augment.draws import between
from medlitenet_jax.data.augment.geometry import draw_applied, draw_geometry, needed_size
from medlitenet_jax.data.augment.photometric import clahe_tiles
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.images.resize import mask_coverage, resize_image
from medlitenet_jax.system.errors import InputError

CANVAS = 2  # side of the canvas that carries a photograph to the device, over that of the view
ON_HOST = ("hairs", "ruler", "shadow", "uneven_light", "skin_tone", "faint_border")


def refuse_undrawable(policy: AugmentPolicy) -> None:
  """Raises InputError if a policy has an augmentation that only the host can apply."""
  for name in ON_HOST:
    if getattr(policy, f"{name}_probability"):
      raise InputError(
        f"augment.{name}_probability is above 0, but only the host can apply it; set "
        "config.data.augment_on=host"
      )


def pack_view(
  rng: np.random.Generator,
  image: np.ndarray,
  mask: np.ndarray,
  image_size: int,
  policy: AugmentPolicy,
) -> dict[str, np.ndarray]:
  """Draws the parameters of a view, with the same numbers as `augment`, for `unpack_views`.

  Args:
    rng: the only source of randomness.
    image: [H, W, 3] uint8 RGB.
    mask: [H, W] uint8, 0 or 1.
    image_size: side of the view in pixels, S.
    policy: the augmentations, none of `ON_HOST`.

  Returns:
    "canvas": [C, C, 4] uint8 with C = 2 S; the photograph, and 255 times its mask as the fourth
      channel, in the upper left corner.
    "extent": [2] int32, their width and height on the canvas.
    "needed": [2] int32, width and height to average them to before sampling.
    The parameters, float32: "matrix" [2, 2], "offset" [2], "bend" [G, G, 2] and scalars.
  """
  applied = draw_applied(rng, policy)
  matrix, offset, bend = draw_geometry(policy, applied, image.shape[1] / image.shape[0])
  side = CANVAS * image_size
  # As in evaluation, a photograph smaller than the view is enlarged first.
  height, width = (min(max(size, image_size), side) for size in image.shape[:2])
  canvas = np.zeros((side, side, 4), np.uint8)
  canvas[:height, :width, :3] = resize_image(image, height, width)
  canvas[:height, :width, 3] = mask_coverage(mask, height, width)

  def strength(bounds, name: str, index: int, off: float) -> float:
    return float(between(bounds, applied[name][index])) if name in applied else off

  grid = (policy.elastic_grid, policy.elastic_grid, 2)
  numbers = {
    "matrix": matrix,
    "offset": offset,
    "bend": np.zeros(grid) if bend is None else bend,
    "contrast": strength(policy.contrast_range, "brightness_contrast", 0, 1.0),
    "brightness": strength(policy.brightness_range, "brightness_contrast", 1, 0.0),
    "gamma": strength(policy.gamma_range, "gamma", 0, 1.0),
    "clahe": strength(policy.clahe_clip_limit, "clahe", 0, 0.0),
    "blur": strength(policy.blur_sigma, "blur", 0, 0.0),
    "noise": strength(policy.noise_std, "noise", 0, 0.0),
    "noise_seed": float(applied["noise"][1]) if "noise" in applied else 0.0,
  }
  packed = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
  extent = np.array((width, height), np.int32)
  needed = needed_size(matrix, image_size, extent).astype(np.int32)
  return {"canvas": canvas, "extent": extent, "needed": needed, **packed}


def unpack_views(
  packed: Mapping[str, jax.Array], policy: AugmentPolicy
) -> tuple[jax.Array, jax.Array]:
  """Applies the augmentations that `pack_view` drew, on the device.

  Args:
    packed: the arrays of `pack_view`, each with a leading axis of B photographs.
    policy: the policy given to `pack_view`.

  Returns:
    image: [B, S, S, 3] uint8.
    mask: [B, S, S, 1] uint8, 0 or 1.

  Raises:
    AssertionError: if an array has another shape, when traced.
  """
  _assert_packed(packed)
  size = packed["canvas"].shape[1] // CANVAS
  averaged = jax.vmap(_average)(packed["canvas"], packed["extent"], packed["needed"])
  geometry = (packed[name] for name in ("needed", "matrix", "offset", "bend"))
  view = jax.vmap(functools.partial(_sample, size))(averaged, *geometry)
  mask = (view[..., 3:] >= 127.5).astype(jnp.uint8)
  image = jnp.round(view[..., :3])
  image = jax.vmap(_tone)(image, packed["contrast"], packed["brightness"], packed["gamma"])
  if policy.clahe_probability:
    tiles = clahe_tiles(policy.clahe_tiles, size)
    image = jax.vmap(lambda a, clip: _clahe(a, clip, tiles))(image, packed["clahe"])
  if policy.blur_probability:
    reach = round(3 * policy.blur_sigma[1] * size) + 1
    image = jax.vmap(lambda a, sigma: _blur(a, sigma * size, reach))(image, packed["blur"])
  if policy.noise_probability:
    image = jax.vmap(_add_noise)(image, packed["noise"], packed["noise_seed"])
  return jnp.clip(image, 0, 255).astype(jnp.uint8), mask


def _assert_packed(packed: Mapping[str, jax.Array]) -> None:
  batch, side = packed["canvas"].shape[:2]
  chex.assert_shape(packed["canvas"], (batch, side, side, 4))
  chex.assert_type(packed["canvas"], jnp.uint8)
  chex.assert_shape([packed[name] for name in ("extent", "needed", "offset")], (batch, 2))
  chex.assert_shape(packed["matrix"], (batch, 2, 2))
  grid = packed["bend"].shape[1]
  chex.assert_shape(packed["bend"], (batch, grid, grid, 2))
  scalars = ("contrast", "brightness", "gamma", "clahe", "blur", "noise", "noise_seed")
  chex.assert_shape([packed[name] for name in scalars], (batch,))


def _average(canvas, extent, needed):
  """Averages the photograph on a canvas from extent to needed: [C, C, 4] float32, rounded."""
  edges = jnp.arange(canvas.shape[0], dtype=jnp.float32)

  def weights(axis: int):
    step = extent[axis] / needed[axis]
    low, high = (edges * step)[:, None], ((edges + 1) * step)[:, None]
    overlap = jnp.minimum(high, edges + 1) - jnp.maximum(low, edges)
    inside = (edges < needed[axis])[:, None] & (edges < extent[axis])
    return jnp.where(inside, jnp.maximum(overlap, 0), 0) / step

  levels = canvas.astype(jnp.float32)
  return jnp.round(
    jnp.einsum("ij,jkc,lk->ilc", weights(1), levels, weights(0), precision="highest")
  )


def _sample(size: int, image, extent, matrix, offset, bend):
  """View [size, size, 4] float32 of an image: bilinear, mirrored at the edges of its extent."""
  steps = (jnp.arange(size) + 0.5) / size - 0.5
  # The host's cubic `cv2.resize` as a matrix, which is exact because it is linear.
  control = np.eye(bend.shape[0], dtype=np.float32)
  spread = jnp.asarray(cv2.resize(control, (bend.shape[0], size), interpolation=cv2.INTER_CUBIC))
  bent = jnp.einsum("ag,bh,ghi->abi", spread, spread, bend, precision="highest")
  point = bent + jnp.stack(jnp.meshgrid(steps, steps), -1)
  position = jnp.einsum("ij,abj->abi", matrix, point, precision="highest") + offset
  position = position * extent - 0.5
  low = jnp.floor(position)
  share = position - low
  texels = image.reshape(-1, 4)

  def texel(right: int, down: int):
    x, y = (
      _mirror(low[..., axis].astype(jnp.int32) + ahead, extent[axis])
      for axis, ahead in ((0, right), (1, down))
    )
    weight = (share[..., 0] if right else 1 - share[..., 0]) * (
      share[..., 1] if down else 1 - share[..., 1]
    )
    return weight[..., None] * texels[y * image.shape[0] + x]

  return texel(0, 0) + texel(1, 0) + texel(0, 1) + texel(1, 1)


def _mirror(index, size):
  """Maps an index outside the image to its mirror image; the outermost pixel is not repeated."""
  period = jnp.maximum(2 * (size - 1), 1)
  index = jnp.mod(index, period)
  return jnp.minimum(index, period - index)


def _tone(image, contrast, brightness, gamma):
  """Changes contrast, brightness and gamma of an image [S, S, 3] of integer levels in float32."""
  mean = image.mean() / 255
  level = jnp.clip((image / 255 - mean) * contrast + mean + brightness, 0, 1)
  return jnp.round(255 * level**gamma)


def _clahe(image, clip_limit, tiles: int):
  """Contrast-limited adaptive histogram equalisation of the lightness, as OpenCV does it.

  A clip limit of 0 leaves the image unchanged. Reference: Zuiderveld, Graphics Gems IV, 1994.
  """
  size = image.shape[0]
  lab = _lab_from_rgb(image)
  padded = jnp.pad(lab[..., 0], (0, -size % tiles), mode="reflect").astype(jnp.int32)
  tile = padded.shape[0] // tiles
  of_tile = jnp.arange(padded.shape[0]) // tile
  number = of_tile[:, None] * tiles + of_tile[None, :]
  histogram = jnp.zeros((tiles * tiles, 256), jnp.int32).at[number, padded].add(1)
  limit = jnp.maximum((clip_limit * tile * tile / 256).astype(jnp.int32), 1)
  excess = jnp.sum(jnp.maximum(histogram - limit, 0), -1, keepdims=True)
  rest = excess % 256
  bins = jnp.arange(256)
  apart = jnp.maximum(256 // jnp.maximum(rest, 1), 1)
  one_more = (bins % apart == 0) & (bins // apart < rest)
  clipped = jnp.minimum(histogram, limit) + excess // 256 + one_more
  tables = jnp.clip(jnp.round(jnp.cumsum(clipped, -1) * (255 / (tile * tile))), 0, 255)

  position = jnp.arange(size) / tile - 0.5
  low = jnp.floor(position)
  share = position - low
  first = jnp.clip(low, 0, tiles - 1).astype(jnp.int32)
  second = jnp.clip(low + 1, 0, tiles - 1).astype(jnp.int32)
  level = lab[..., 0].astype(jnp.int32)

  def looked_up(rows, columns):
    return tables[rows[:, None] * tiles + columns[None, :], level]

  across = share[None, :]
  upper = looked_up(first, first) * (1 - across) + looked_up(first, second) * across
  lower = looked_up(second, first) * (1 - across) + looked_up(second, second) * across
  equalised = jnp.round(upper * (1 - share[:, None]) + lower * share[:, None])
  changed = _rgb_from_lab(lab.at[..., 0].set(equalised))
  return jnp.where(clip_limit > 0, changed, image)


# Linear sRGB to XYZ (IEC 61966-2-1), and the same relative to the white point D65.
_XYZ = np.array(
  [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_XYZ_OVER_WHITE = _XYZ / np.array([0.950456, 1.0, 1.088754])[:, None]


# OpenCV's fixed-point arithmetic is reproduced because equalisation amplifies an error of one level
# of lightness: linear levels in steps of 1/2040, the matrix in 2**-12, cube roots in 2**-15.
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS > 0.04045, ((_LEVELS + 0.055) / 1.055) ** 2.4, _LEVELS / 12.92)
_LINEAR_TABLE = np.rint(2040 * _LINEAR).astype(np.int32)
_SHARES = np.arange(3072) / 2040
_ROOTS = np.where(_SHARES > 0.008856, np.cbrt(_SHARES), 7.787 * _SHARES + 16 / 116)
_ROOT_TABLE = np.rint(2**15 * _ROOTS).astype(np.int32)
_XYZ_TABLE = np.rint(2**12 * _XYZ_OVER_WHITE).astype(np.int32)


def _lab_from_rgb(image):
  """CIELAB (CIE 1976) of an RGB image, in OpenCV's 8-bit scale: 2.55 L, a + 128, b + 128."""
  linear = jnp.asarray(_LINEAR_TABLE)[image.astype(jnp.int32)]
  xyz = (jnp.sum(linear[..., None, :] * _XYZ_TABLE, -1) + 2**11) >> 12
  roots = jnp.asarray(_ROOT_TABLE)[xyz]
  x, y, z = roots[..., 0], roots[..., 1], roots[..., 2]
  offset = 16 * 255 * 2**15 // 100
  lab = jnp.stack([296 * y - offset, 500 * (x - y) + (128 << 15), 200 * (y - z) + (128 << 15)], -1)
  return jnp.clip((lab + 2**14) >> 15, 0, 255).astype(jnp.float32)


def _rgb_from_lab(lab):
  """RGB levels of an image that is in OpenCV's 8-bit scale of CIELAB."""
  y = (lab[..., 0] / 2.55 + 16) / 116
  f = jnp.stack([y + (lab[..., 1] - 128) / 500, y, y - (lab[..., 2] - 128) / 200], -1)
  xyz = jnp.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787)
  to_rgb = jnp.asarray(np.linalg.inv(_XYZ_OVER_WHITE), jnp.float32)
  linear = jnp.einsum("ij,abj->abi", to_rgb, xyz, precision="highest")
  linear = jnp.clip(linear, 0, 1)
  level = jnp.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
  return jnp.round(255 * level)


def _blur(image, sigma, reach: int):
  """Gaussian blur with standard deviation sigma in pixels; 0 leaves the image unchanged."""
  away = jnp.arange(-reach, reach + 1)
  radius = jnp.round(3 * sigma)  # as in OpenCV's kernel for 8 bits
  bell = jnp.exp(-0.5 * (away / jnp.maximum(sigma, 1e-6)) ** 2) * (jnp.abs(away) <= radius)
  bell = bell / bell.sum()
  size = image.shape[0]
  padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
  taps = range(2 * reach + 1)
  rows = jnp.sum(jnp.stack([bell[i] * padded[i : i + size] for i in taps]), 0)
  return jnp.round(jnp.sum(jnp.stack([bell[i] * rows[:, i : i + size] for i in taps]), 0))


def _add_noise(image, std, seed):
  key = jax.random.key(jax.lax.bitcast_convert_type(seed, jnp.uint32))
  noise = jax.random.normal(key, image.shape, jnp.float32)
  return jnp.round(image + 255 * std * noise)
