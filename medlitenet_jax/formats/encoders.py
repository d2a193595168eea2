"""Encoders that others have trained on ImageNet, as the start of networks of other papers.

A file is a PyTorch state dict in safetensors, with the names of torchvision, timm or the authors.
It is recognised by its names. TransUNet also takes Google's own .npz. Nothing in a file is executed
when it is read.
"""

import collections
import contextlib
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from safetensors import safe_open

from medlitenet_jax.formats.safetensors import DAMAGE, PROJECT
from medlitenet_jax.formats.state_dict import Renames, foreign_name, in_our_layout
from medlitenet_jax.models.registry import variable_shapes
from medlitenet_jax.system.errors import InputError


class Encoder(NamedTuple):
  """An encoder that others publish.

  Attributes:
    title: what it is, and whose names its arrays have.
    network: of the registry, that starts from it.
    known_by: name of an array that its files have and those of the other encoders do not.
    fills: pattern at the start of the places of our arrays that come from it, with "params" and
      "batch_stats" left out.
    renames: from places to names, see `foreign_name`. A "#" at the end and a number mean one of
      three equal parts of the array's first axis, counted from 0.
    pytorch: whether names and layouts are those of PyTorch; else they are those of Flax.
  """

  title: str
  network: str
  known_by: str
  fills: str
  renames: Renames
  pytorch: bool = True


_LAYER: Renames = (  # of a transformer
  (r"/attention_norm/", "/norm1/"),
  (r"/mlp_norm/", "/norm2/"),
  (r"/mlp/in/", "/mlp/fc1/"),
  (r"/mlp/out/", "/mlp/fc2/"),
  (r"/attention/out/", "/attn/proj/"),
)


def _swin(merging: str) -> Renames:
  """Of Swin-T, whose merging of tokens ends a stage with Microsoft and begins the next in timm."""
  return (
    (r"^encoder/embed/", "patch_embed/proj/"),
    (r"^encoder/embed_norm/", "patch_embed/norm/"),
    (r"^encoder/norm/", "norm/"),
    (r"^encoder/stage(\d)_merge/norm/", rf"layers/{merging}/downsample/norm/"),
    (r"^encoder/stage(\d)_merge/linear/", rf"layers/{merging}/downsample/reduction/"),
    # As the authors do, the decoder's blocks start from the encoder's of the same width.
    (r"^..coder/stage(\d)_block(\d+)/", r"layers/<\1>/blocks/<\2>/"),
    (r"/attention/qkv/", "/attn/qkv/"),
    (r"/attention/position_bias$", "/attn/relative_position_bias_table"),
    *_LAYER,
  )


def _mobilenet() -> Renames:
  """Of MobileNetV2, whose blocks are numbered through, and the layers within a block."""
  stages = (1, 2, 3, 4, 3, 3, 1)
  blocks = [(stage, i) for stage, n in enumerate(stages, 1) for i in range(1, n + 1)]
  return (
    (r"^encoder/stem/", "features/0/0/"),
    (r"^encoder/stem_norm/", "features/0/1/"),
    (r"^encoder/last/", "features/18/0/"),
    (r"^encoder/last_norm/", "features/18/1/"),
    *(
      (f"^encoder/stage{stage}_block{i}/", f"features/{number}/conv/")
      for number, (stage, i) in enumerate(blocks, 1)
    ),
    (r"^features/1/conv/depthwise", "features/1/conv/expand"),  # it has no wide layer
    (r"^features/1/conv/project/", "features/1/conv/1/"),
    (r"^features/1/conv/project_norm/", "features/1/conv/2/"),
    (r"/expand/", "/0/0/"),
    (r"/expand_norm/", "/0/1/"),
    (r"/depthwise/", "/1/0/"),
    (r"/depthwise_norm/", "/1/1/"),
    (r"/project/", "/2/"),
    (r"/project_norm/", "/3/"),
  )


ENCODERS = (
  Encoder(
    "ResNet-34 as torchvision names it",
    "fat_net",
    "layer1.0.conv1.weight",
    r"resnet/",
    (
      (r"^resnet/stem/", "conv1/"),
      (r"^resnet/stem_norm/", "bn1/"),
      (r"^resnet/stage(\d)_unit(\d+)/", r"layer\1/<\2>/"),
      (r"/conv(\d)_norm/", r"/bn\1/"),
      (r"/projection/", "/downsample/0/"),
      (r"/projection_norm/", "/downsample/1/"),
    ),
  ),
  Encoder(
    "distilled DeiT-tiny as its authors and timm name it",
    "fat_net",
    "dist_token",
    r"transformer/",
    (
      (r"^transformer/embed/", "patch_embed/proj/"),
      (r"^transformer/layer(\d+)/", r"blocks/<\1>/"),
      (r"/attention/qkv/", "/attn/qkv/"),
      *_LAYER,
    ),
  ),
  Encoder(
    "Swin-T as Microsoft names it",
    "swin_unet",
    "layers.0.downsample.reduction.weight",
    r"encoder/|decoder/stage\d_block",
    _swin(r"<\1>"),
  ),
  Encoder(
    "Swin-T as timm names it",
    "swin_unet",
    "layers.3.downsample.reduction.weight",
    r"encoder/|decoder/stage\d_block",
    _swin(r"\1"),
  ),
  Encoder(
    "R50-ViT-B/16 as timm names it",
    "transunet",
    "patch_embed.backbone.stem.conv.weight",
    r"backbone/|transformer/",
    (
      (r"^backbone/stem/", "patch_embed/backbone/stem/conv/"),
      (r"^backbone/stem_norm/", "patch_embed/backbone/stem/norm/"),
      (r"^backbone/stage(\d)_unit(\d+)/", r"patch_embed/backbone/stages/<\1>/blocks/<\2>/"),
      (r"/projection/", "/downsample/conv/"),
      (r"/projection_norm/", "/downsample/norm/"),
      (r"^transformer/embed/", "patch_embed/proj/"),
      (r"^transformer/positions$", "pos_embed"),
      (r"^transformer/norm/", "norm/"),
      (r"^transformer/layer(\d+)/", r"blocks/<\1>/"),
      (r"/attention/query/(\w+)$", r"/attn/qkv/\1#0"),
      (r"/attention/key/(\w+)$", r"/attn/qkv/\1#1"),
      (r"/attention/value/(\w+)$", r"/attn/qkv/\1#2"),
      *_LAYER,
    ),
  ),
  Encoder(
    "R50-ViT-B/16 as Google names it",
    "transunet",
    "conv_root/kernel",
    r"backbone/|transformer/",
    (
      (r"^backbone/stem/", "conv_root/"),
      (r"^backbone/stem_norm/", "gn_root/"),
      (r"^backbone/stage(\d)_unit(\d+)/norm(\d)/", r"block\1/unit\2/gn\3/"),
      (r"^backbone/stage(\d)_unit(\d+)/", r"block\1/unit\2/"),
      (r"/projection/", "/conv_proj/"),
      (r"/projection_norm/", "/gn_proj/"),
      (r"^transformer/embed/", "embedding/"),
      (r"^transformer/positions$", "Transformer/posembed_input/pos_embedding"),
      (r"^transformer/norm/", "Transformer/encoder_norm/"),
      (r"^transformer/layer(\d+)/", r"Transformer/encoderblock_<\1>/"),
      (r"/attention_norm/", "/LayerNorm_0/"),
      (r"/mlp_norm/", "/LayerNorm_2/"),
      (r"/attention/", "/MultiHeadDotProductAttention_1/"),
      (r"/mlp/in/", "/MlpBlock_3/Dense_0/"),
      (r"/mlp/out/", "/MlpBlock_3/Dense_1/"),
    ),
    pytorch=False,
  ),
  Encoder(
    "MobileNetV2 as torchvision names it",
    "deeplab_v3_plus",
    "features.1.conv.0.0.weight",
    r"encoder/",
    _mobilenet(),
  ),
  Encoder(
    "MiT-B0 as its authors name it",
    "segformer",
    "block1.0.mlp.dwconv.dwconv.weight",
    r"encoder/",
    (
      (r"^encoder/stage(\d)_embed/", r"patch_embed\1/proj/"),
      (r"^encoder/stage(\d)_embed_norm/", r"patch_embed\1/norm/"),
      (r"^encoder/stage(\d)_norm/", r"norm\1/"),
      (r"^encoder/stage(\d)_block(\d+)/", r"block\1/<\2>/"),
      (r"/attention/query/", "/attn/q/"),
      (r"/attention/keys_and_values/", "/attn/kv/"),
      (r"/attention/reduce/", "/attn/sr/"),
      (r"/attention/reduce_norm/", "/attn/norm/"),
      (r"/mlp/depthwise/", "/mlp/dwconv/dwconv/"),
      *_LAYER,
    ),
  ),
)
# What modules of PyTorch count or work out, which says nothing learned.
_BUFFERS = ("num_batches_tracked", "relative_position_index", "attn_mask")
_DAMAGE = (*DAMAGE, zipfile.BadZipFile, zlib.error, EOFError)


class Pretrained(NamedTuple):
  """What a network takes from the file of an encoder.

  Attributes:
    title: what the file holds.
    variables: parts of "params" and "batch_stats" by module, float32, in our layout.
    taken: how many of the file's arrays they come from.
    left_out: how many of its arrays were not taken, by the module there that they belong to.
  """

  title: str
  variables: dict[str, Any]
  taken: int
  left_out: dict[str, int]


def is_foreign(path: Path) -> bool:
  """Whether a file can be read and is no weights file of this project, of whatever version."""
  try:
    if path.suffix == ".npz":
      return True
    with safe_open(path, framework="numpy") as file:
      return not str((file.metadata() or {}).get("format")).startswith(PROJECT)
  except DAMAGE:
    return False


def read_encoder(path: Path, fields: Mapping[str, Any], image_size: int) -> Pretrained:
  """Takes the arrays of an encoder from a file, for the network that starts from it.

  Args:
    path: of a state dict in safetensors, or of Google's .npz.
    fields: `config.model`, resolved.
    image_size: pixels a side, any that the network takes.

  Returns:
    The arrays of that encoder, all of them.

  Raises:
    InputError: if the file is damaged or of no known encoder, is of one that another network starts
      from, or has not all arrays of the encoder in the shapes that the network has.

  Reference: the papers of the networks, which say what their authors start from.
  """
  shapes = traverse_util.flatten_dict(variable_shapes(fields, image_size), sep="/")
  try:
    with _opened(path) as (names, read):
      encoder = _recognise(path, names, fields["name"])
      return _take(path, encoder, names, read, shapes)
  except _DAMAGE as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InputError(f"{path}: cannot be read ({reason}); name a whole file") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Collection[str], Callable[[str], np.ndarray]]]:
  """The names in a file, and what reads an array by its name."""
  if path.suffix == ".npz":
    with np.load(path, allow_pickle=False) as file:
      yield file.files, file.__getitem__
  else:
    with safe_open(path, framework="numpy") as file:
      yield file.keys(), file.get_tensor


def _recognise(path: Path, names: Collection[str], network: str) -> Encoder:
  """Tells the encoder that a file holds, which has to be one of the network."""
  for encoder in ENCODERS:
    if encoder.known_by in names:
      break
  else:
    known = ", ".join(encoder.title for encoder in ENCODERS if encoder.network == network)
    raise InputError(
      f"{path}: neither weights of this project nor an encoder that is known by its names; "
      + (f"{network} takes {known}" if known else f"for {network} none is known")
    )
  if encoder.network != network:
    raise InputError(
      f"{path}: holds {encoder.title}, from which {encoder.network} starts, and not {network}; "
      f"name another file, or set config.model.name={encoder.network}"
    )
  return encoder


def _take(
  path: Path,
  encoder: Encoder,
  names: Collection[str],
  read: Callable[[str], np.ndarray],
  shapes: Mapping[str, Any],
) -> Pretrained:
  """Reads every array of the encoder; `shapes` are those of the whole network, by place."""
  taken_for = f"{path}: taken for {encoder.title}, but"
  remedy = (
    f"name a file of that encoder, and leave config.model.{encoder.network} as it is published"
  )
  found, used = {}, set()
  for place, leaf in shapes.items():
    if not re.match(encoder.fills, place.split("/", 1)[1]):
      continue
    name, _, third = foreign_name(place, encoder.renames, pytorch=encoder.pytorch).partition("#")
    if name not in names:
      raise InputError(f"{taken_for} it lacks {name}, for {place}; {remedy}")
    value = read(name)
    if third and len(value) % 3 == 0:
      value = np.split(value, 3)[int(third)]
    value = in_our_layout(value, place, leaf.shape, pytorch=encoder.pytorch)
    if value.shape != leaf.shape:
      raise InputError(
        f"{taken_for} {name} gives {value.shape}, where {place} is {leaf.shape}; {remedy}"
      )
    found[place] = value
    used.add(name)
  variables = traverse_util.unflatten_dict(found, sep="/")
  return Pretrained(encoder.title, variables, len(used), _left_out(names, used))


def _left_out(names: Collection[str], used: Collection[str]) -> dict[str, int]:
  """Counts the names that were not used, by the shortest beginning that no used name shares."""
  beginnings = {used_part for name in used for used_part in _beginnings(name)}
  counts: collections.Counter[str] = collections.Counter()
  for name in sorted(set(names) - set(used)):
    *_, last = re.split(r"[./]", name)
    own = (part for part in _beginnings(name) if part not in beginnings)
    counts[last if last in _BUFFERS else next(own, name)] += 1
  return dict(counts)


def _beginnings(name: str) -> list[str]:
  """Of "a.b.c" those are "a", "a.b" and "a.b.c"; "/" is as good as "."."""
  return [name[: match.start()] for match in re.finditer(r"[./]|$", name)]
