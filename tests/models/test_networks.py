"""What every network of another paper has to keep: parameters, outputs, sizes of photographs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checked_folds import check_folds
from jax.interpreters import partial_eval

from configs.base import get_config
from medlitenet_jax.models.knockout import expand
from medlitenet_jax.models.registry import (
  NETWORKS,
  create_model,
  model_loss_weights,
  model_sizes,
  resolve_model,
)
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.losses import create_objective

# Exact numbers of parameters, those of the published networks, and a size that each takes.
PARAMETERS = {
  ("unet", "base"): (16, 31_037_633),
  ("unet", "bilinear"): (16, 17_262_977),
  ("unet_plus_plus", "base"): (16, 9_042_177),
  ("unet_plus_plus", "batch_norm"): (16, 9_163_329),
  ("attention_unet", "base"): (16, 34_878_573),
  ("attention_unet", "oktay"): (16, 35_202_956),
  ("attention_unet", "oktay_2"): (16, 8_808_396),
  ("attention_unet", "oktay_4"): (16, 2_205_932),
  ("deeplab_v3_plus", "base"): (16, 4_378_513),
  ("swin_unet", "base"): (224, 27_168_132),
  ("swin_unet", "window_8"): (256, 27_175_524),
  ("transunet", "base"): (224, 105_275_921),
  ("transunet", "size_256"): (256, 105_322_001),
  ("fat_net", "base"): (16, 28_754_017),
  ("segformer", "base"): (32, 3_714_401),
  ("bacanet", "base"): (32, 7_573_887),  # of the reconstruction; its authors state 7.56 million
}
OTHER_PAPERS = sorted({name for name, _ in PARAMETERS})
SMALL = {
  "unet": {"width": 2},
  "unet_plus_plus": {"width": 2},
  "attention_unet": {"width": 2},
  "deeplab_v3_plus": {
    "encoder_dims": (8, 8, 12, 16, 20, 24, 8, 8, 16),
    "encoder_blocks": (1, 1, 1, 1, 1, 2, 1),
    "dim": 8,
    "skip_dim": 4,
    "dilations": (1, 12),
  },
  "swin_unet": {
    "window": 2,
    "dim": 4,
    "depths": (2, 1, 1, 1),
    "heads": (1, 1, 1, 2),
    "mlp_ratio": 1,
  },
  "transunet": {
    "image_size": 48,
    "width": 32,
    "units": (1, 1, 1),
    "dim": 4,
    "layers": 2,
    "heads": 2,
    "mlp_dim": 4,
    "decoder_dims": (12, 8, 8, 6, 4),
  },
  "fat_net": {
    "width": 4,
    "units": (1, 1, 1, 1),
    "dim": 6,
    "layers": 2,
    "heads": 2,
    "mlp_ratio": 2,
    "adaptations": (2, 1, 1),
  },
  "segformer": {
    "dims": (4, 4, 6, 8),
    "depths": (1, 1, 1, 1),
    "heads": (1, 2, 3, 2),
    "mlp_ratio": 2,
    "decoder_dim": 6,
  },
  "bacanet": {
    "dims": (4, 4, 6, 8),
    "depths": (1, 1, 1, 1),
    "mlp_ratios": (2, 1, 1, 1),
    "decoder_dims": (6, 4, 4),
  },
}
# Names of the maps that a network returns besides the mask; those of inner layers in training only.
DEEP = {"deep": {"head1", "head2", "head3"}}
BOUNDARIES = {"boundaries": {"stage1", "stage2", "stage3"}}
# One of each plan: the least size that it takes, another one that it takes, channels of the maps
# that its features summarise.
PLANS = [
  ("unet", {}, 16, (32, 48), 30),
  ("unet", {"bilinear": True}, 16, (32, 48), 30),
  ("unet_plus_plus", {"deep_supervision": True}, 16, (32, 48), 30),
  ("unet_plus_plus", {"batch_norm": True, "dropout": 0.0}, 16, (32, 48), 30),
  ("attention_unet", {}, 16, (32, 48), 30),
  ("attention_unet", {"grid": True}, 16, (32, 48), 30),
  ("deeplab_v3_plus", {}, 16, (32, 48), 8 + 12 + 16 + 24),
  ("swin_unet", {}, 64, (64, 128), 4 + 8 + 16),
  ("transunet", {}, 48, (48, 48), 32 + 128 + 256),
  ("fat_net", {}, 16, (32, 48), 4 + 8 + 16),
  ("segformer", {}, 32, (64, 32), 4 + 4 + 6),
  ("bacanet", {}, 32, (64, 32), 4 + 4 + 6),
]
plans = pytest.mark.parametrize(("name", "own", "least", "size", "channels"), PLANS)


def fields(name, variant="base", **own):
  return {"name": name, "variant": variant, name: own}


def small(name, dtype=jnp.bfloat16, **own):
  return create_model(fields(name, **SMALL[name], **own), dtype)


def photographs(*sides, channels=3):
  return jax.ShapeDtypeStruct((2, *sides, channels), jnp.float32)


def further_maps(name, own, *, train):
  if name == "bacanet":
    return BOUNDARIES
  return DEEP if train and own.get("deep_supervision") else {}


def loss_of(name, own):
  """The recipe's terms with the weights that the network brings, of outputs and masks."""
  weights = {"bce": 1.0, **model_loss_weights(resolve_model(fields(name, **own)))}
  terms = {term: {**get_config().loss[term], "weight": weight} for term, weight in weights.items()}
  objective = create_objective(terms)
  return lambda outputs, mask: objective(outputs, {"mask": mask})[0]


def names(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return ["/".join(key.key for key in path) for path, _ in leaves]


@pytest.mark.parametrize(("name", "variant"), PARAMETERS)
def test_parameter_counts(name, variant):
  size, total = PARAMETERS[name, variant]
  model = create_model({**fields(name, variant), "form": "library"}, jnp.float32)  # traces fastest
  shapes = inspect_model(model, size).shapes["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total


@pytest.mark.parametrize("name", OTHER_PAPERS)
def test_every_variant_is_counted(name):
  assert set(NETWORKS[name].variants) == {variant for own, variant in PARAMETERS if own == name}


@plans
def test_outputs_in_inference_and_folds(name, own, least, size, channels):
  model = small(name, **own)
  structure = inspect_model(model, least)
  assert {leaf.dtype for leaf in jax.tree.leaves(structure.shapes)} == {jnp.dtype(jnp.float32)}
  found = check_folds(model, structure, photographs(*size))
  assert set(found) == {"mask", "features", *further_maps(name, own, train=False)}
  assert found["mask"].shape == (2, *size, 1) and found["features"].shape == (2, 2 * channels)
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


@plans
def test_every_parameter_reaches_the_masks_of_training(name, own, least, size, channels):
  """By what is left of the program once all that the masks do not need is removed."""
  model = small(name, **own)
  structure = inspect_model(model, least)
  shapes = {group: tree for group, tree in structure.shapes.items() if tree}

  def step(variables, image):
    keys = {"dropout": jax.random.key(0)}
    return model.apply(variables, image, train=True, mutable=["batch_stats"], rngs=keys)

  traced, (outputs, updated) = jax.make_jaxpr(step, return_shape=True)(shapes, photographs(*size))
  further = {output: set(found) for output, found in outputs.items() if output != "mask"}
  assert further == further_maps(name, own, train=True)
  assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float32)}
  for logits in (outputs["mask"], *outputs.get("deep", {}).values()):
    assert logits.shape == (2, *size, 1)
  assert updated.get("batch_stats", {}) == shapes.get("batch_stats", {})
  assert jax.eval_shape(loss_of(name, own), outputs, photographs(*size, channels=1)).shape == ()
  maps = len(jax.tree.leaves(outputs))
  wanted = [i < maps for i in range(len(traced.jaxpr.outvars))]
  _, used = partial_eval.dce_jaxpr(traced.jaxpr, wanted)
  inputs = [*names(shapes), "image"]
  unused = {path for path, is_used in zip(inputs, used, strict=True) if not is_used}
  assert unused == {path for path in inputs if path.startswith("batch_stats")}


@pytest.mark.parametrize(("name", "least"), [("fat_net", 16), ("transunet", 48)])
def test_heads_of_3x3_pixels_start_as_those_of_one(name, least):
  """What suits a ReLU depends on the number of outputs, and makes logits of one large."""
  inits = []

  def note(next_call, args, kwargs, context):
    if context.module.path == ("head",):
      inits.append(context.module.kernel_init)
    return next_call(*args, **kwargs)

  model = small(name)
  with nn.intercept_methods(note):
    jax.eval_shape(model.apply, inspect_model(model, least).shapes, photographs(least, least))
  kernel = inits[0](jax.random.key(0), (3, 3, 64, 1))
  assert np.std(kernel) == pytest.approx(1 / np.sqrt(9 * 64), rel=0.1)


@pytest.mark.parametrize(
  ("name", "own", "size", "takes"),
  [
    ("unet", {}, (24, 32), "multiples of 16 from 16 up"),
    ("unet_plus_plus", {}, (32, 8), "multiples of 16 from 16 up"),
    ("attention_unet", {}, (0, 16), "multiples of 16 from 16 up"),
    ("deeplab_v3_plus", {}, (100, 64), "multiples of 16 from 16 up"),
    ("swin_unet", {}, (256, 224), "multiples of 224 from 224 up"),
    ("swin_unet", {"window": 8}, (256, 128), "multiples of 256 from 256 up"),
    ("transunet", {}, (224, 256), "only sides of 224 pixels"),
    ("transunet", {"image_size": 64}, (224, 224), "only sides of 64 pixels"),
    ("fat_net", {}, (224, 100), "multiples of 16 from 16 up"),
    ("segformer", {}, (48, 32), "multiples of 32 from 32 up"),
    ("bacanet", {}, (32, 16), "multiples of 32 from 32 up"),
  ],
)
def test_other_sizes_are_refused(name, own, size, takes):
  with pytest.raises(ValueError, match=takes):
    model_sizes(resolve_model(fields(name, **own))).check(*size)
  with pytest.raises(ValueError, match=takes):
    model = create_model(fields(name, **own), jnp.float32)
    jax.eval_shape(functools.partial(model.apply, {}), photographs(*size))


@pytest.mark.parametrize(
  ("name", "field", "value"),
  [
    ("unet", "width", 0),
    ("unet", "width", 1.5),
    ("unet_plus_plus", "width", 5000),
    ("unet_plus_plus", "dropout", 1.0),
    ("unet_plus_plus", "dropout", "half"),
    ("attention_unet", "width", 7),
    ("attention_unet", "gate", True),
    ("deeplab_v3_plus", "encoder_dims", (8,) * 8),
    ("deeplab_v3_plus", "encoder_dims", (0,) * 9),
    ("deeplab_v3_plus", "encoder_blocks", (1,) * 6),
    ("deeplab_v3_plus", "encoder_blocks", (1, 1, 1, 1, 1, 1, 0)),
    ("deeplab_v3_plus", "dim", 0),
    ("deeplab_v3_plus", "skip_dim", 1.5),
    ("deeplab_v3_plus", "dilations", (12, 12)),
    ("deeplab_v3_plus", "dilations", (0,)),
    ("deeplab_v3_plus", "dropout", 1.0),
    ("swin_unet", "window", 1),
    ("swin_unet", "window", 7.0),
    ("swin_unet", "dim", 0),
    ("swin_unet", "depths", (2, 2, 2)),
    ("swin_unet", "depths", 2),
    ("swin_unet", "heads", (3, 6, 12)),
    ("swin_unet", "heads", (5, 6, 12, 24)),
    ("swin_unet", "heads", (3, 6, 12, 0)),
    ("swin_unet", "mlp_ratio", 0),
    ("swin_unet", "drop_path", 1.0),
    ("transunet", "image_size", 100),
    ("transunet", "image_size", 16),
    ("transunet", "image_size", 224.0),
    ("transunet", "width", 48),
    ("transunet", "units", (3, 0, 9)),
    ("transunet", "dim", 770),
    ("transunet", "heads", 0),
    ("transunet", "layers", 0),
    ("transunet", "mlp_dim", 1.5),
    ("transunet", "decoder_dims", (512, 256, 128, 64)),
    ("transunet", "dropout", -0.1),
    ("fat_net", "width", 6),
    ("fat_net", "units", (3, 4, 6)),
    ("fat_net", "dim", 200),
    ("fat_net", "layers", 0),
    ("fat_net", "heads", 0),
    ("fat_net", "mlp_ratio", 1.5),
    ("fat_net", "adaptations", (6, 4, 0)),
    ("fat_net", "dropout", 0.1),
    ("segformer", "dims", (32, 64, 160, 0)),
    ("segformer", "depths", (2, 2, 2)),
    ("segformer", "heads", (1, 2, 3, 8)),
    ("segformer", "heads", (1, 2, 5, 0)),
    ("segformer", "mlp_ratio", 0),
    ("segformer", "decoder_dim", 1.5),
    ("segformer", "drop_path", 1.0),
    ("segformer", "dropout", -0.1),
    ("bacanet", "dims", (32, 64, 161, 256)),
    ("bacanet", "dims", (32, 64, 160)),
    ("bacanet", "depths", (3, 3, 5, 0)),
    ("bacanet", "mlp_ratios", (8, 8, 4)),
    ("bacanet", "decoder_dims", (288, 192)),
    ("bacanet", "drop_path", 1.0),
  ],
)
def test_wrong_values_are_refused(name, field, value):
  with pytest.raises(InputError, match=rf"config\.model.*({field}|wrong type)"):
    resolve_model(fields(name, **{field: value}))


def test_deep_supervision_adds_three_heads_and_a_term():
  whole, deep = (
    names(inspect_model(small("unet_plus_plus", **own), 16).shapes["params"])
    for own in ({}, {"deep_supervision": True})
  )
  added = {f"head{i}/{leaf}" for i in (1, 2, 3) for leaf in ("kernel", "bias")}
  assert set(deep) - set(whole) == added
  for own, weight in (({}, 0.0), ({"deep_supervision": True}, 3.0)):
    resolved = resolve_model(fields("unet_plus_plus", **own))
    assert model_loss_weights(resolved) == {"deep": weight}


def _gates(count):
  single = [f"gate{i}" for i in range(1, count + 1)]
  return {"gates", "skips", *single, *(f"{gate}/coefficients" for gate in single)}


STAGES = [f"encoder/stage{i}_block1" for i in (1, 2, 3, 4)]


def _attention(*modules):
  return {"attention", *(f"{module}/attention" for module in modules)}


@pytest.mark.parametrize(
  ("name", "own", "least", "silenced"),
  [
    ("attention_unet", {}, 16, _gates(4)),
    ("attention_unet", {"grid": True}, 16, _gates(3)),
    ("transunet", {}, 48, _attention("transformer/layer1", "transformer/layer2")),
    (
      *("fat_net", {}, 16),
      _attention("transformer/layer1", "transformer/layer2")
      | {"transformer", "gate", "adaptation", "adapt1", "adapt2", "adapt3"},
    ),
    (
      *("segformer", {}, 32),
      _attention(*STAGES)
      | {"mlp", *(f"{stage}/mlp" for stage in STAGES)}
      | {"stages", *(f"decoder/stage{i}" for i in (1, 2, 3, 4))},
    ),
    (
      *("bacanet", {}, 32),
      _attention(*STAGES)
      | {"boundary", "boundary1", "boundary2", "boundary3"}
      | {"gate", *(f"decoder{i}/gate" for i in (1, 2, 3))},
    ),
    (
      *("swin_unet", {}, 64),
      _attention(
        *("encoder/stage1_block2", "decoder/stage1_block2"),
        *(f"encoder/stage{stage}_block1" for stage in (1, 2, 3, 4)),
        *(f"decoder/stage{stage}_block1" for stage in (1, 2, 3)),
      ),
    ),
  ],
)
def test_what_can_be_silenced(name, own, least, silenced):
  paths = inspect_model(small(name, **own), least).paths
  assert set(expand(NETWORKS[name].knockouts, paths)) == silenced
