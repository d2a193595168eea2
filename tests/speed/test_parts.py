"""Operations of published networks, against sums over the layers of their plans."""

import itertools

import jax.numpy as jnp
import pytest

from medlitenet_jax.models.registry import resolve_model
from medlitenet_jax.speed.parts import count_forward, count_parts

WIDTHS = (64, 128, 256, 512, 1024)  # of a U-Net's levels


def conv(out, k, before, after):
  """Multiply-adds of a k x k convolution to a map of out x out pixels."""
  return out**2 * k**2 * before * after


def double_conv(side, before, after):
  return conv(side, 3, before, after) + conv(side, 3, after, after)


def contraction(size):
  levels = enumerate(itertools.pairwise((3, *WIDTHS)))
  return sum(double_conv(size // 2**i, *widths) for i, widths in levels)


def unet(size):
  total = contraction(size) + conv(size, 1, 64, 1)
  for i, width in enumerate(WIDTHS[:-1]):
    side = size // 2**i
    # Of a transposed 2x2 convolution with stride 2 one tap meets each output.
    total += conv(side, 1, 2 * width, width) + double_conv(side, 2 * width, width)
  return total


def attention_unet(size):
  total = contraction(size) + conv(size, 1, 64, 1)
  for i, width in enumerate(WIDTHS[:-1]):
    side = size // 2**i
    gate = 2 * conv(side, 1, width, width // 2) + conv(side, 1, width // 2, 1)
    total += conv(side, 3, 2 * width, width) + gate + double_conv(side, 2 * width, width)
  return total


def transformer_layer(tokens, seen, dim, hidden):
  """Projections, both products of attention to as many tokens as each sees, and two layers."""
  return tokens * (4 * dim**2 + 2 * seen * dim + 2 * dim * hidden)


def transunet(size):
  total = conv(size // 2, 7, 3, 64)
  side, before = (size // 2 - 3) // 2 + 1, 64  # after a max-pooling without zeros around the map
  for units, width, grid in ((3, 64, side), (4, 128, size // 8), (9, 256, size // 16)):
    for unit in range(units):
      total += conv(side, 1, before, width) + conv(grid, 3, width, width)
      total += conv(grid, 1, width, 4 * width)
      if unit == 0:
        total += conv(grid, 1, before, 4 * width)
      side, before = grid, 4 * width
  total += conv(grid, 1, 1024, 768) + 12 * transformer_layer(grid**2, grid**2, 768, 3072)
  total += conv(grid, 3, 768, 512)
  before = 512
  for width, skip in ((256, 512), (128, 256), (64, 64), (16, 0)):
    grid *= 2
    total += double_conv(grid, before + skip, width)
    before = width
  return total + conv(size, 3, 16, 1)


def swin_unet(size):
  side, dim = size // 4, 96
  total = conv(side, 4, 3, dim) + conv(side, 1, dim, 16 * dim) + conv(size, 1, dim, 1)
  for stage in range(4):
    blocks = 2 * transformer_layer(side**2, 49, dim, 4 * dim)
    if stage == 3:
      return total + blocks
    # Encoder and decoder; the skip joined; four pixels merged; the coarser map's channels spread.
    total += 2 * blocks + conv(side, 1, 2 * dim, dim)
    side //= 2
    total += conv(side, 1, 4 * dim, 2 * dim) + conv(side, 1, 2 * dim, 4 * dim)
    dim *= 2
  return total


@pytest.mark.parametrize(
  ("plan", "size"), [(unet, 256), (attention_unet, 256), (transunet, 224), (swin_unet, 224)]
)
def test_operations_are_those_of_the_published_plan(plan, size):
  fields = resolve_model({"name": plan.__name__, "variant": "base"})
  assert count_forward(fields, jnp.float32, 1, size).flops == 2 * plan(size)


def test_parts_have_the_operations_of_the_whole():
  fields = resolve_model({"name": "unet", "variant": "base"})
  total = sum(part.flops for part in count_parts(fields, 16))
  assert count_forward(fields, jnp.float32, 2, 16).flops == 2 * total
