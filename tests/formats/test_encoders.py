"""Files of pretrained encoders: recognised, mapped whole, laid out as ours, and started from."""

import collections
import contextlib
from pathlib import Path

import encoder_files as files
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file
from scipy import ndimage
from small_runs import compiled_as_by_launch, launch, resolved, small_arguments

from medlitenet_jax.data.sources import create_source
from medlitenet_jax.formats import encoders
from medlitenet_jax.formats.encoders import is_foreign, read_encoder
from medlitenet_jax.formats.safetensors import PROJECT, find_weights
from medlitenet_jax.formats.state_dict import in_our_layout
from medlitenet_jax.inference.trained import open_trained
from medlitenet_jax.inference.validation import create_scoring
from medlitenet_jax.models.registry import create_model, resolve_model, variable_shapes
from medlitenet_jax.modes.train import train
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.log import read_metrics
from medlitenet_jax.training.run import create_initialise

BLOCKS = "layers.2.blocks."  # of Swin-T, which has six where Swin-Unet has two
# Our network, the side of its images, what begins the places that are filled, the arrays of the
# file, and what of them is left out.
PUBLISHED = {
  "resnet34": (
    ("fat_net", 32, "resnet/"),
    files.resnet34(),
    {"num_batches_tracked": 36, "fc": 2},
  ),
  "resnet34 without classifier": (
    ("fat_net", 32, "resnet/"),
    {name: shape for name, shape in files.resnet34().items() if "fc" not in name},
    {"num_batches_tracked": 36},
  ),
  "deit_tiny": (
    ("fat_net", 32, "transformer/"),
    files.deit_tiny(),
    {"cls_token": 1, "pos_embed": 1, "dist_token": 1, "norm": 2, "head": 2, "head_dist": 2},
  ),
  "swin_tiny": (
    ("swin_unet", 224, ("encoder/", *(f"decoder/stage{i}_block" for i in (1, 2, 3)))),
    files.swin_tiny(),
    {"head": 2, **{f"{BLOCKS}{i}": 13 for i in (2, 3, 4, 5)}},
  ),
  "swin_tiny of Microsoft": (
    ("swin_unet", 224, ("encoder/", *(f"decoder/stage{i}_block" for i in (1, 2, 3)))),
    {
      **files.swin_tiny(microsoft=True),
      **{f"layers.{i}.blocks.1.attn_mask": (64, 49, 49) for i in (0, 1, 2)},
      "layers.0.blocks.0.attn.relative_position_index": (49, 49),
    },
    {"head": 2, "attn_mask": 3, "relative_position_index": 1}
    | {f"{BLOCKS}{i}": 13 for i in (2, 3, 4, 5)},
  ),
  "r50_vit": (("transunet", 224, ("backbone/", "transformer/")), files.r50_vit(), {"cls_token": 1}),
  "r50_vit at 384": (
    ("transunet", 224, ("backbone/", "transformer/")),
    files.r50_vit(grid=24),
    {"cls_token": 1},
  ),
  "google_r50_vit": (
    ("transunet", 224, ("backbone/", "transformer/")),
    files.google_r50_vit(classes=10),
    {"cls": 1, "head": 2},
  ),
  "mobilenet_v2": (
    ("deeplab_v3_plus", 32, "encoder/"),
    files.mobilenet_v2(),
    {"num_batches_tracked": 52, "classifier": 2},
  ),
  "mit_b0": (("segformer", 32, "encoder/"), files.mit_b0(), {"head": 2}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_array_of_a_published_encoder_has_its_place(name, monkeypatch):
  (network, size, begins), shapes, left_out = PUBLISHED[name]
  read = collections.Counter()

  def take(array):
    read[array] += 1
    return np.broadcast_to(np.float32(1), shapes[array])  # no memory: R50-ViT-B/16 has 400 MB

  monkeypatch.setattr(
    encoders, "_opened", lambda path: contextlib.nullcontext((shapes.keys(), take))
  )
  fields = resolve_model({"name": network, "variant": "base"})
  found = read_encoder(Path("file"), fields, size)
  places = traverse_util.flatten_dict(found.variables, sep="/")
  whole = traverse_util.flatten_dict(variable_shapes(fields, size), sep="/")
  own = {place: leaf for place, leaf in whole.items() if place.split("/", 1)[1].startswith(begins)}
  assert {k: v.shape for k, v in places.items()} == {k: v.shape for k, v in own.items()}
  assert found.left_out == left_out
  assert found.taken == len(read) == len(shapes) - sum(left_out.values())
  # Once each: but the blocks of Swin-Unet's decoder start as the encoder's, and TransUNet has
  # queries, keys and values apart.
  for array, times in read.items():
    again = network == "swin_unet" and array.startswith(tuple(f"layers.{i}.b" for i in (0, 1, 2)))
    thirds = network == "transunet" and ".qkv." in array
    assert times == (3 if thirds else 2 if again else 1), array


# Each encoder at a size at which a file is small, and for some places what has to be there.
FAT_NET = {
  "width": 4,
  "units": (1, 2, 1, 1),
  "dim": 8,
  "layers": 2,
  "heads": 2,
  "adaptations": (1, 1, 1),
}
SWIN_UNET = {"dim": 4, "heads": (1, 1, 2, 2)}
TRANSUNET = {
  "image_size": 48,
  "width": 32,
  "units": (1, 2, 1),
  "dim": 8,
  "layers": 2,
  "heads": 2,
  "mlp_dim": 16,
  "decoder_dims": (4, 4, 4, 4, 4),
}
SEGFORMER = {"dims": (4, 4, 8, 8), "heads": (1, 1, 2, 2), "decoder_dim": 4}
DIMS = (4, 4, 6, 4, 6, 4, 6, 4, 8)
REDUCED = {
  "resnet34": (
    ("fat_net", 32, FAT_NET),
    files.resnet34(4, (1, 2, 1, 1), 3),
    {
      "params/resnet/stem/kernel": lambda a: a["conv1.weight"].transpose(2, 3, 1, 0),
      "params/resnet/stage2_unit1/projection/kernel": lambda a: a[
        "layer2.0.downsample.0.weight"
      ].transpose(2, 3, 1, 0),
      "params/resnet/stage2_unit2/conv2/kernel": lambda a: a["layer2.1.conv2.weight"].transpose(
        2, 3, 1, 0
      ),
      "params/resnet/stage2_unit2/conv2_norm/scale": lambda a: a["layer2.1.bn2.weight"],
      "batch_stats/resnet/stem_norm/mean": lambda a: a["bn1.running_mean"],
      "batch_stats/resnet/stage3_unit1/projection_norm/var": lambda a: a[
        "layer3.0.downsample.1.running_var"
      ],
    },
  ),
  "deit_tiny": (
    ("fat_net", 32, FAT_NET),
    files.deit_tiny(8, 2, 3),
    {
      "params/transformer/embed/bias": lambda a: a["patch_embed.proj.bias"],
      "params/transformer/layer2/attention/qkv/kernel": lambda a: a["blocks.1.attn.qkv.weight"].T,
      "params/transformer/layer1/mlp/out/kernel": lambda a: a["blocks.0.mlp.fc2.weight"].T,
      "params/transformer/layer2/mlp_norm/bias": lambda a: a["blocks.1.norm2.bias"],
    },
  ),
  "swin_tiny": (
    ("swin_unet", 224, SWIN_UNET),
    files.swin_tiny(4, heads=(1, 1, 2, 2), classes=3),
    {
      "params/encoder/stage2_merge/linear/kernel": lambda a: (
        a["layers.2.downsample.reduction.weight"].T
      ),
      "params/encoder/stage3_block2/attention/position_bias": lambda a: a[
        "layers.2.blocks.1.attn.relative_position_bias_table"
      ],
      "params/decoder/stage3_block2/attention/qkv/kernel": lambda a: (
        a["layers.2.blocks.1.attn.qkv.weight"].T
      ),
      "params/decoder/stage1_block1/mlp/in/bias": lambda a: a["layers.0.blocks.0.mlp.fc1.bias"],
    },
  ),
  "r50_vit": (
    ("transunet", 48, TRANSUNET),
    files.r50_vit(32, (1, 2, 1), 8, 2, 16, grid=3),
    {
      "params/backbone/stage2_unit2/conv3/kernel": lambda a: a[
        "patch_embed.backbone.stages.1.blocks.1.conv3.weight"
      ].transpose(2, 3, 1, 0),
      "params/transformer/positions": lambda a: a["pos_embed"][0, 1:].reshape(3, 3, 8),
      "params/transformer/layer2/attention/query/kernel": lambda a: (
        a["blocks.1.attn.qkv.weight"][:8].T
      ),
      "params/transformer/layer2/attention/key/bias": lambda a: a["blocks.1.attn.qkv.bias"][8:16],
      "params/transformer/layer1/attention/value/kernel": lambda a: (
        a["blocks.0.attn.qkv.weight"][16:].T
      ),
      "params/transformer/norm/scale": lambda a: a["norm.weight"],
    },
  ),
  "google_r50_vit": (
    ("transunet", 48, TRANSUNET),
    files.google_r50_vit(32, (1, 2, 1), 8, 2, 16, 2, grid=3),
    {
      "params/backbone/stem_norm/bias": lambda a: a["gn_root/bias"].reshape(-1),
      "params/backbone/stage2_unit2/norm1/scale": lambda a: a["block2/unit2/gn1/scale"].reshape(-1),
      "params/backbone/stage1_unit1/projection/kernel": lambda a: a[
        "block1/unit1/conv_proj/kernel"
      ],
      "params/transformer/layer2/attention/value/kernel": lambda a: a[
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/value/kernel"
      ].reshape(8, 8),
      "params/transformer/layer1/attention/out/kernel": lambda a: a[
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel"
      ].reshape(8, 8),
      "params/transformer/layer1/mlp/in/kernel": lambda a: a[
        "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"
      ],
    },
  ),
  "mobilenet_v2": (
    ("deeplab_v3_plus", 32, {"encoder_dims": DIMS, "dim": 4, "skip_dim": 4}),
    files.mobilenet_v2(DIMS, classes=3),
    {
      "params/encoder/stage1_block1/depthwise/kernel": lambda a: a[
        "features.1.conv.0.0.weight"
      ].transpose(2, 3, 1, 0),
      "params/encoder/stage2_block2/expand/kernel": lambda a: a[
        "features.3.conv.0.0.weight"
      ].transpose(2, 3, 1, 0),
      "params/encoder/stage7_block1/project_norm/bias": lambda a: a["features.17.conv.3.bias"],
      "batch_stats/encoder/last_norm/mean": lambda a: a["features.18.1.running_mean"],
    },
  ),
  "mit_b0": (
    ("segformer", 32, SEGFORMER),
    files.mit_b0((4, 4, 8, 8), classes=3),
    {
      "params/encoder/stage1_block2/attention/keys_and_values/kernel": lambda a: (
        a["block1.1.attn.kv.weight"].T
      ),
      "params/encoder/stage3_block1/mlp/in/kernel": lambda a: a["block3.0.mlp.fc1.weight"].T[
        None, None
      ],
      "params/encoder/stage2_block1/attention/reduce/kernel": lambda a: a[
        "block2.0.attn.sr.weight"
      ].transpose(2, 3, 1, 0),
      "params/encoder/stage4_embed_norm/scale": lambda a: a["patch_embed4.norm.weight"],
    },
  ),
}


def reduced(name):
  """The resolved network, the side of its images, and the shapes in the file, of `REDUCED`."""
  (network, size, own), shapes, _ = REDUCED[name]
  return resolve_model({"name": network, "variant": "base", network: own}), size, shapes


@pytest.mark.parametrize("name", REDUCED)
def test_arrays_land_at_their_places_in_our_layout(name, tmp_path):
  fields, size, shapes = reduced(name)
  path = tmp_path / ("file.npz" if name.startswith("google") else "file.safetensors")
  arrays = files.write_file(path, shapes)
  found = read_encoder(path, fields, size)
  places = traverse_util.flatten_dict(found.variables, sep="/")
  for place, expected in REDUCED[name][2].items():
    assert places[place].dtype == np.float32
    np.testing.assert_array_equal(places[place], expected(arrays), err_msg=place)


def test_halves_become_float32(tmp_path):
  fields, size, shapes = reduced("deit_tiny")
  arrays = {k: v.astype(np.float16) for k, v in files.random_arrays(shapes).items()}
  save_file(arrays, tmp_path / "file.safetensors")
  found = read_encoder(tmp_path / "file.safetensors", fields, size).variables
  bias = found["params"]["transformer"]["embed"]["bias"]
  assert bias.dtype == np.float32
  np.testing.assert_array_equal(bias, arrays["patch_embed.proj.bias"])


@pytest.mark.parametrize("side", [3, 14, 16])
def test_positions_come_to_another_grid_as_the_authors_have_it(side):
  positions = np.random.default_rng(0).normal(size=(1, 197, 5)).astype(np.float32)
  found = in_our_layout(positions, "params/transformer/positions", (side, side, 5))
  grid = positions[0, 1:].reshape(14, 14, 5)
  expected = ndimage.zoom(grid, (side / 14, side / 14, 1), order=1)  # which they call
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_bias_of_a_larger_window_is_interpolated():
  """Over offsets from -6 to 6, spread over those from -7 to 7."""
  down, right = np.mgrid[-6:7, -6:7]
  table = np.stack([down, right, down * right], -1).reshape(169, 3).astype(np.float32)
  found = in_our_layout(table, "params/a/position_bias", (225, 3))
  down, right = np.mgrid[-7:8, -7:8] * 6 / 7
  np.testing.assert_allclose(found[:, :2], np.stack([down, right], -1).reshape(225, 2), atol=1e-5)
  assert found[112, 2] == 0 and found[0, 2] == pytest.approx(36)
  with_one_more = np.zeros((170, 3), np.float32)  # a class token has no bias
  assert in_our_layout(with_one_more, "params/a/position_bias", (225, 3)).shape == (170, 3)


def test_a_kernel_of_another_shape_is_not_reshaped():
  swapped = np.zeros((8, 4), np.float32)
  assert in_our_layout(swapped, "params/a/kernel", (8, 4)).shape == (4, 8)
  assert in_our_layout(swapped.T, "params/a/kernel", (1, 1, 8, 4)).shape == (1, 1, 8, 4)


def test_what_cannot_be_taken_is_one_line(tmp_path):
  fields, size, shapes = reduced("resnet34")
  path = tmp_path / "file.safetensors"

  def refusal(arrays, fields=fields):
    files.write_file(path, arrays)
    with pytest.raises(InputError) as error:
      read_encoder(path, fields, size)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value)

  known = refusal({"weight": (3,)})
  assert "known by its names; fat_net takes ResNet-34" in known and "DeiT-tiny" in known
  unet = resolve_model({"name": "unet", "variant": "base"})
  assert "for unet none is known" in refusal({"weight": (3,)}, unet)
  assert "set config.model.name=fat_net" in refusal(shapes, unet)
  assert "it lacks layer2.1.bn2.running_var, for batch_stats/resnet/stage2_unit2" in refusal(
    {name: shape for name, shape in shapes.items() if name != "layer2.1.bn2.running_var"}
  )
  # As ResNet-50 has it there.
  other = refusal({**shapes, "layer1.0.conv1.weight": (4, 4, 1, 1)})
  assert "layer1.0.conv1.weight gives (1, 1, 4, 4)" in other and "is (3, 3, 4, 4); name" in other
  assert "cannot be read" in _damaged(tmp_path / "cut.npz", fields)


def _damaged(path, fields):
  files.write_file(path, {"conv_root/kernel": (7, 7, 3, 4)})
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(InputError) as error:
    read_encoder(path, fields, 32)
  return str(error.value)


def test_a_third_of_an_odd_axis_is_a_wrong_shape(tmp_path):
  fields, size, shapes = reduced("r50_vit")
  files.write_file(path := tmp_path / "f.safetensors", {**shapes, "blocks.0.attn.qkv.bias": (25,)})
  with pytest.raises(InputError, match=r"blocks.0.attn.qkv.bias gives \(25,\)"):
    read_encoder(path, fields, size)


def test_our_own_files_and_damaged_ones_are_not_foreign(tmp_path):
  (damaged := tmp_path / "damaged.safetensors").write_bytes(b"no header")
  assert not is_foreign(damaged) and not is_foreign(find_weights("base"))
  files.write_file(theirs := tmp_path / "theirs.safetensors", {"weight": (3,)})
  assert is_foreign(theirs)
  save_file(
    {"weight": np.zeros(3)}, newer := tmp_path / "n.safetensors", {"format": f"{PROJECT} 9"}
  )
  assert not is_foreign(newer)


def fat_net_run(**fields):
  """Fields of a run of one batch, half of an update, which changes nothing; a unit a stage."""
  shallow = {**FAT_NET, "units": (1, 1, 1, 1), "layers": 1}
  own = {f"model__fat_net__{name}": value for name, value in shallow.items()}
  short = {"train__max_steps": 1, "train__image_sizes": (32,)}
  return {"model__name": "fat_net", **own, **short, **fields}


def test_a_run_starts_from_the_encoders_of_two_files(tmp_path):
  paths = [tmp_path / "resnet34.safetensors", tmp_path / "deit.safetensors"]
  arrays = {}
  for path, name in zip(paths, ("resnet34", "deit_tiny"), strict=True):
    arrays |= files.write_file(path, REDUCED[name][1])
  start = {"train__start_from": ",".join(map(str, paths)), "train__start_partly": True}
  fields = small_arguments(**fat_net_run(**start))
  done = launch(*fields, f"--workdir={tmp_path / 'started'}")
  assert done.returncode == 0, done.stderr
  assert f"{paths[0]}: ResNet-34 as torchvision names it; takes " in done.stdout
  assert "leaves out 26: num_batches_tracked (14), fc (2), layer2.1 (10)." in done.stdout
  assert "arrays fit; at random start some or all of: adapt1, " in done.stdout
  variables = open_trained(tmp_path / "started", "best").variables
  places = traverse_util.flatten_dict(variables, sep="/")
  both = {**REDUCED["resnet34"][2], **REDUCED["deit_tiny"][2]}
  kept = {place: expected(arrays) for place, expected in both.items() if place in places}
  assert len(kept) == 6
  for place, expected in kept.items():
    np.testing.assert_array_equal(places[place], expected, err_msg=place)
  # The same run from random parameters, which its one batch would not change either.
  config = resolved(**fat_net_run())
  model = create_model(config.model.to_dict(), jnp.float32)
  with compiled_as_by_launch():
    score = create_scoring(config, model, create_source(config.data, "val", config.seed))
    rows = score(create_initialise(config, model, 32)().ema_variables, lambda: False)
  first = next(row for row in read_metrics(tmp_path / "started") if row["split"] == "val")
  assert abs(first["dice"] - np.mean([row["dice"] for row in rows])) > 1e-4


def test_files_that_a_run_cannot_start_from_are_refused(tmp_path):
  files.write_file(path := tmp_path / "file.safetensors", REDUCED["resnet34"][1])

  def refuse(name, says, partly=True):
    fields = fat_net_run(train__start_from=name, train__start_partly=partly)
    with pytest.raises(InputError, match=says):
      train(resolved(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()

  refuse(f"{path},{path}", "once more; name each encoder once")
  refuse(f"{path},nowhere", "nowhere: no such weights file")
  refuse(str(path), "is taken over with config.train.start_partly=True", partly=False)
