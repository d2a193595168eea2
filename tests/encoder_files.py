"""Names and shapes of the arrays in files of pretrained encoders, and files with random ones.

`tests/slow/references/encoders.py` compares these with what torchvision, timm and
segmentation_models_pytorch define. Each function gives the published size unless it is told others.
"""

import numpy as np
from safetensors.numpy import save_file


def _linear(name, before, after, bias=True):
  return {f"{name}.weight": (after, before), **({f"{name}.bias": (after,)} if bias else {})}


def _norm(name, channels):
  return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _batch_norm(name, channels):
  statistics = {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
  return {**_norm(name, channels), **statistics, f"{name}.num_batches_tracked": ()}


def _conv(name, before, after, side, bias=False):
  own = {f"{name}.weight": (after, before, side, side)}
  return own | ({f"{name}.bias": (after,)} if bias else {})


def _layer(name, dim, hidden):
  """A layer of a transformer."""
  return {
    **_norm(f"{name}.norm1", dim),
    **_linear(f"{name}.attn.qkv", dim, 3 * dim),
    **_linear(f"{name}.attn.proj", dim, dim),
    **_norm(f"{name}.norm2", dim),
    **_linear(f"{name}.mlp.fc1", dim, hidden),
    **_linear(f"{name}.mlp.fc2", hidden, dim),
  }


def resnet34(width=64, units=(3, 4, 6, 3), classes=1000):
  """torchvision's."""
  found = {**_conv("conv1", 3, width, 7), **_batch_norm("bn1", width)}
  before = width
  for stage, count in enumerate(units, 1):
    after = width * 2 ** (stage - 1)
    for unit in range(count):
      name = f"layer{stage}.{unit}"
      for i, into in ((1, before), (2, after)):
        found |= _conv(f"{name}.conv{i}", into, after, 3) | _batch_norm(f"{name}.bn{i}", after)
      if before != after:
        found |= _conv(f"{name}.downsample.0", before, after, 1)
        found |= _batch_norm(f"{name}.downsample.1", after)
      before = after
  return found | _linear("fc", before, classes)


def deit_tiny(dim=192, layers=12, classes=1000):
  """The distilled one, of its authors and timm."""
  found = {"cls_token": (1, 1, dim), "pos_embed": (1, 198, dim), "dist_token": (1, 1, dim)}
  found |= _conv("patch_embed.proj", 3, dim, 16, bias=True)
  for i in range(layers):
    found |= _layer(f"blocks.{i}", dim, 4 * dim)
  found |= _norm("norm", dim) | _linear("head", dim, classes)
  return found | _linear("head_dist", dim, classes)


def swin_tiny(dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), classes=1000, microsoft=False):
  """timm's, or Microsoft's without what it only works out."""
  found = _conv("patch_embed.proj", 3, dim, 4, bias=True) | _norm("patch_embed.norm", dim)
  for stage, depth in enumerate(depths):
    own = dim * 2**stage
    for i in range(depth):
      name = f"layers.{stage}.blocks.{i}"
      found |= _layer(name, own, 4 * own)
      found[f"{name}.attn.relative_position_bias_table"] = (169, heads[stage])
    if stage < len(depths) - 1:
      name = f"layers.{stage if microsoft else stage + 1}.downsample"
      found |= _norm(f"{name}.norm", 4 * own)
      found |= _linear(f"{name}.reduction", 4 * own, 2 * own, bias=False)
  found |= _norm("norm", 8 * dim)
  return found | _linear("head" if microsoft else "head.fc", 8 * dim, classes)


def r50_vit(width=64, units=(3, 4, 9), dim=768, layers=12, hidden=3072, grid=14):
  """timm's, without a classifier."""
  found = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + grid**2, dim)}
  root = "patch_embed.backbone"
  found |= _conv(f"{root}.stem.conv", 3, width, 7) | _norm(f"{root}.stem.norm", width)
  before = width
  for stage, count in enumerate(units):
    after = 4 * width * 2**stage
    for unit in range(count):
      name = f"{root}.stages.{stage}.blocks.{unit}"
      if unit == 0:
        found |= _conv(f"{name}.downsample.conv", before, after, 1)
        found |= _norm(f"{name}.downsample.norm", after)
      for i, (into, out, side) in enumerate(
        ((before, after // 4, 1), (after // 4, after // 4, 3), (after // 4, after, 1)), 1
      ):
        found |= _conv(f"{name}.conv{i}", into, out, side) | _norm(f"{name}.norm{i}", out)
      before = after
  found |= _conv("patch_embed.proj", before, dim, 1, bias=True)
  for i in range(layers):
    found |= _layer(f"blocks.{i}", dim, hidden)
  return found | _norm("norm", dim)


def google_r50_vit(
  width=64, units=(3, 4, 9), dim=768, layers=12, hidden=3072, heads=12, grid=14, classes=0
):
  """Google's own, in Flax's layout."""

  def module(name, shape, bias):
    return {f"{name}/kernel": shape, f"{name}/bias": bias}

  def norm(name, *shape):
    return {f"{name}/scale": shape, f"{name}/bias": shape}

  found = {"cls": (1, 1, dim), "conv_root/kernel": (7, 7, 3, width)}
  found |= norm("gn_root", 1, 1, 1, width)
  before = width
  for stage, count in enumerate(units, 1):
    after = 4 * width * 2 ** (stage - 1)
    for unit in range(1, count + 1):
      name = f"block{stage}/unit{unit}"
      if unit == 1:
        found[f"{name}/conv_proj/kernel"] = (1, 1, before, after)
        found |= norm(f"{name}/gn_proj", 1, 1, 1, after)
      for i, (into, out, side) in enumerate(
        ((before, after // 4, 1), (after // 4, after // 4, 3), (after // 4, after, 1)), 1
      ):
        found[f"{name}/conv{i}/kernel"] = (side, side, into, out)
        found |= norm(f"{name}/gn{i}", 1, 1, 1, out)
      before = after
  found |= module("embedding", (1, 1, before, dim), (dim,))
  found["Transformer/posembed_input/pos_embedding"] = (1, 1 + grid**2, dim)
  for i in range(layers):
    name = f"Transformer/encoderblock_{i}"
    found |= norm(f"{name}/LayerNorm_0", dim) | norm(f"{name}/LayerNorm_2", dim)
    attention = f"{name}/MultiHeadDotProductAttention_1"
    for part in ("query", "key", "value"):
      found |= module(f"{attention}/{part}", (dim, heads, dim // heads), (heads, dim // heads))
    found |= module(f"{attention}/out", (heads, dim // heads, dim), (dim,))
    found |= module(f"{name}/MlpBlock_3/Dense_0", (dim, hidden), (hidden,))
    found |= module(f"{name}/MlpBlock_3/Dense_1", (hidden, dim), (dim,))
  found |= norm("Transformer/encoder_norm", dim)
  return found | (module("head", (dim, classes), (classes,)) if classes else {})


def mobilenet_v2(
  dims=(32, 16, 24, 32, 64, 96, 160, 320, 1280), blocks=(1, 2, 3, 4, 3, 3, 1), classes=1000
):
  """torchvision's."""
  first, *stages, last = dims
  found = _conv("features.0.0", 3, first, 3) | _batch_norm("features.0.1", first)
  before, number = first, 1
  for stage, (after, count) in enumerate(zip(stages, blocks, strict=True)):
    for _ in range(count):
      name, wide, i = f"features.{number}.conv", before * (6 if stage else 1), 0
      if stage:
        found |= _conv(f"{name}.0.0", before, wide, 1) | _batch_norm(f"{name}.0.1", wide)
        i = 1
      found |= _conv(f"{name}.{i}.0", 1, wide, 3) | _batch_norm(f"{name}.{i}.1", wide)
      found |= _conv(f"{name}.{i + 1}", wide, after, 1) | _batch_norm(f"{name}.{i + 2}", after)
      before, number = after, number + 1
  found |= _conv(f"features.{number}.0", before, last, 1) | _batch_norm(
    f"features.{number}.1", last
  )
  return found | _linear("classifier.1", last, classes)


def mit_b0(dims=(32, 64, 160, 256), depths=(2, 2, 2, 2), classes=1000):
  """The authors'."""
  found, before = {}, 3
  for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True), 1):
    found |= _conv(f"patch_embed{stage}.proj", before, dim, 7 if stage == 1 else 3, bias=True)
    found |= _norm(f"patch_embed{stage}.norm", dim)
    for i in range(depth):
      name, reduction = f"block{stage}.{i}", 2 ** (4 - stage)
      layer = _layer(name, dim, 4 * dim)
      found |= {k: shape for k, shape in layer.items() if ".qkv." not in k}
      found |= _linear(f"{name}.attn.q", dim, dim) | _linear(f"{name}.attn.kv", dim, 2 * dim)
      if reduction > 1:
        found |= _conv(f"{name}.attn.sr", dim, dim, reduction, bias=True)
        found |= _norm(f"{name}.attn.norm", dim)
      found |= _conv(f"{name}.mlp.dwconv.dwconv", 1, 4 * dim, 3, bias=True)
    found |= _norm(f"norm{stage}", dim)
    before = dim
  return found | _linear("head", before, classes)


def random_arrays(shapes, seed=0):
  """Arrays of these shapes, no two values alike."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if shape
    else np.array(7, np.int64)  # the batches that a norm has seen
    for name, shape in shapes.items()
  }


def write_file(path, shapes, seed=0):
  """Writes random arrays as a state dict in safetensors, or as .npz; returns them."""
  arrays = random_arrays(shapes, seed)
  if path.suffix == ".npz":
    np.savez(path, **arrays)
  else:
    save_file(arrays, path, {"format": "pt"})
  return arrays
