"""The whole network: its size, its switches and its logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import compiled_as_by_launch

from configs.base import get_config
from medlitenet_jax.config import resolve
from medlitenet_jax.models.medlitenet.network import SIZES, VARIANTS
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import NETWORKS, create_model, resolve_model
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.training.losses import create_objective

# Exact numbers of parameters. A change here is a change of every published checkpoint.
PARAMETERS = {
  "base": {
    "encoder": 1_765_216,
    "bias_boundary": 41,
    "mixer": 381_192,
    "fusion": 164_352,
    "fine_return": 16_512,
    "aspp": 174_144,
    "encoder_gate": 652,
    "boundaries": 10,
    "decoder1": 79_533,
    "decoder2": 35_781,
    "decoder3": 16_733,
    "decoder4": 5_961,
    "head": 33,
  },
  "paper_literal": {
    "encoder": 1_765_216,
    "bias_boundary": 41,
    "mixer": 964_620,
    "fusion": 180_736,
    "fine_return": 24_704,
    "aspp": 174_144,
    "encoder_gate": 716,
    "decoder1": 79_597,
    "decoder2": 35_845,
    "decoder3": 16_797,
    "decoder4": 5_961,
    "head": 33,
  },
  "wide_context": {
    "encoder": 1_765_216,
    "bias_boundary": 41,
    "mixer": 990_255,
    "fusion": 172_544,
    "fine_return": 20_608,
    "aspp": 256_352,
    "encoder_gate": 684,
    "decoder1": 79_565,
    "decoder2": 35_813,
    "decoder3": 16_765,
    "decoder4": 5_961,
    "head": 33,
  },
  "fine_boundary": {
    "encoder": 1_765_216,
    "bias_boundary": 41,
    "mixer": 680_970,
    "fusion": 172_544,
    "fine_return": 20_608,
    "aspp": 174_144,
    "encoder_gate": 684,
    "decoder1": 106_229,
    "decoder2": 48_025,
    "decoder3": 17_933,
    "decoder4": 9_929,
    "head": 49,
  },
}
TOTALS = {
  "base": 2_640_160,
  "paper_literal": 3_248_410,
  "wide_context": 3_343_837,
  "fine_boundary": 2_996_372,
}
ENSEMBLE = ("base", "wide_context", "fine_boundary")

# A network with every part and few channels, which compiles in seconds.
SMALL = {
  "encoder_blocks": (1, 1, 1, 1),
  "mixer_dim": 16,
  "mixer_layers": 1,
  "mixer_heads": 2,
  "mixer_mlp_ratio": 1,
  "aspp_branch_dim": 8,
  "aspp_dilations": (1, 12),
  "decoder_dims": (16, 12, 8, 8),
  "gate_stages": (0, 1, 2, 3, 4),
}


def fields(**changes):
  """`config.model` with other values of the shared fields, or of MedLiteNet's own."""
  model = get_config().model.to_dict()
  for name, value in changes.items():
    (model if name in model else model["medlitenet"])[name] = value
  return model


def small(dtype=jnp.float32, **changes):
  return create_model(fields(**{**SMALL, **changes}), dtype)


def shapes_of(model):
  """Variables by path, as shapes and dtypes, without computing any."""
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return {
    "/".join(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }


def parameters_of(model):
  return {path: leaf for path, leaf in shapes_of(model).items() if path.startswith("params/")}


def images(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, 3)), jnp.float32)


@functools.cache
def small_variables(**changes):
  """Random variables of about the size of initialised ones, drawn without compilation."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ("scale", "var"):
      return jnp.ones(leaf.shape)
    spread = np.sqrt(1 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.1
    return jnp.asarray(spread * rng.normal(size=leaf.shape), jnp.float32)

  model = small(**changes)
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  return jax.tree_util.tree_map_with_path(draw, variables)


@functools.cache
def predict(precision="float32", form="platform"):
  model = small(DTYPES[precision], form=form)
  return jax.jit(lambda variables, image: model.apply(variables, image)["mask"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts(variant):
  counts: dict[str, int] = {}
  for path, leaf in parameters_of(create_model(fields(variant=variant), jnp.float32)).items():
    part = path.split("/")[1]
    counts[part] = counts.get(part, 0) + leaf.size
  assert counts == PARAMETERS[variant]
  assert sum(counts.values()) == TOTALS[variant]


def test_parameter_budgets():
  assert set(PARAMETERS) == set(TOTALS) == set(VARIANTS)
  for counts in PARAMETERS.values():
    assert 1.7e6 < counts["encoder"] < 1.9e6
  assert 2.8e6 < TOTALS["paper_literal"] < 3.3e6 and TOTALS["base"] < 3.3e6
  assert all(total < 3.4e6 for total in TOTALS.values())
  assert sum(TOTALS[name] for name in ENSEMBLE) < 10e6


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_have_the_size_of_the_image(variant):
  model = create_model(fields(variant=variant), jnp.bfloat16)
  logits = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x)[0]["mask"],
    jax.ShapeDtypeStruct((2, 512, 384, 3), jnp.float32),
  )
  assert logits.shape == (2, 512, 384, 1) and logits.dtype == jnp.float32


def test_parameters_are_those_of_every_size():
  def init(x):
    return small().init(jax.random.key(0), x)

  trees = [
    jax.eval_shape(init, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    for size in ((64, 64), (96, 96), (128, 96), (160, 160), (64, 512))
  ]
  assert all(tree == trees[0] for tree in trees[1:])


@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_one_set_of_parameters_runs_at_several_sizes(size):
  logits = predict()(small_variables(), images(1, *size))
  assert logits.shape == (1, *size, 1)
  assert np.all(np.isfinite(logits)) and np.std(logits) > 0


@pytest.mark.parametrize("size", [(48, 64), (64, 100), (32, 32), (0, 64), (64, 80)])
def test_other_sizes_are_refused(size):
  with pytest.raises(ValueError, match="multiples of 32 from 64 up"):
    SIZES.check(*size)
  with pytest.raises(ValueError, match="multiples of 32 from 64 up"):
    jax.eval_shape(small().init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def test_a_checkpoint_gives_the_same_logits_in_either_form():
  assert shapes_of(small(form="platform")) == shapes_of(small(form="library"))
  image = images(2, 64, 96)
  logits = {form: predict(form=form)(small_variables(), image) for form in ("platform", "library")}
  spread = np.std(logits["library"])
  np.testing.assert_allclose(logits["platform"], logits["library"], rtol=0, atol=1e-4 * spread)


@pytest.mark.parametrize("precision", list(DTYPES))
def test_logits_and_parameters_are_float32_in_every_precision(precision):
  model = small(DTYPES[precision])
  assert {leaf.dtype for leaf in shapes_of(model).values()} == {jnp.dtype(jnp.float32)}
  noise = images(2, 64, 64)
  for image in (noise, jnp.zeros_like(noise), jnp.full_like(noise, 2.6)):
    logits = predict(precision)(small_variables(), image)
    assert logits.dtype == jnp.float32 and np.all(np.isfinite(logits))
  exact = predict()(small_variables(), noise)
  close = predict(precision)(small_variables(), noise)
  np.testing.assert_allclose(close, exact, atol=0.1 * float(np.std(exact)))


def test_rows_of_a_batch_are_independent_at_inference():
  image = images(3, 64, 64)
  logits = predict()(small_variables(), image)
  padded = predict()(small_variables(), image.at[2].set(0))
  np.testing.assert_array_equal(logits[:2], padded[:2])
  assert np.any(logits[2] != padded[2])
  alone = predict()(small_variables(), image[:1])
  np.testing.assert_allclose(logits[:1], alone, atol=1e-4 * float(np.std(alone)))


def test_every_parameter_learns_and_no_gradient_overflows():
  """Finite on a constant image too, where every variance and every boundary is 0."""
  model = small(dropout=0.1)
  variables = small_variables()
  mask = (images(2, 64, 64, seed=1)[..., :1] > 0).astype(jnp.float32)
  terms = resolve(get_config(), "cpu").loss.to_dict()

  @jax.jit
  def gradient(params, image):
    def objective(params):
      outputs, _ = model.apply(
        {**variables, "params": params},
        image,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
      )
      return create_objective(terms)(outputs, {"mask": mask})[0]

    return jax.grad(objective)(params)

  for path, leaf in jax.tree_util.tree_leaves_with_path(
    gradient(variables["params"], images(2, 64, 64))
  ):
    name = jax.tree_util.keystr(path)
    assert np.all(np.isfinite(leaf)), name
    # The few hidden units of so narrow an SCSE may all be switched off.
    assert np.any(leaf != 0) or "scse" in name, name
  for leaf in jax.tree.leaves(gradient(variables["params"], jnp.ones((2, 64, 64, 3)))):
    assert np.all(np.isfinite(leaf))


# What each switch takes out of the tree of parameters: paths that contain one of these.
REMOVED = {
  "mixer": ("params/mixer/", "params/fusion/", "fine_return", "bias_boundary", "gate/context/"),
  "attention": ("/attention/", "/attention_norm/", "bias_boundary"),
  "cross_scale": ("project_fine", "fine_norm", "fine_return"),
  "boundary_bias": ("bias_boundary", "boundary_weight"),
  "fusion": ("fusion/mix/",),
  "aspp": ("params/aspp/dilation", "params/aspp/pool", "params/aspp/fuse"),
  "gate_context": ("gate/context/",),
  "scse": ("/scse/",),
}


@pytest.mark.parametrize("switch", REMOVED)
def test_a_switch_removes_its_part_and_nothing_else(switch):
  whole, without = set(parameters_of(small())), set(parameters_of(small(**{switch: False})))
  removed = {path for path in whole if any(part in path for part in REMOVED[switch])}
  assert removed and all(any(part in path for path in removed) for part in REMOVED[switch])
  added = {"params/aspp/kernel", "params/aspp_norm/scale", "params/aspp_norm/bias"}
  assert without == whole - removed | (added if switch == "aspp" else set())


@pytest.mark.parametrize("stage", range(5))
def test_gates_are_at_the_configured_stages(stage):
  paths = set(parameters_of(small(gate_stages=(stage,))))
  place = "encoder_gate" if stage == 0 else f"decoder{stage}/gate"
  gates = {path for path in paths if "gate/" in path}
  assert len(gates) == 6 and all(path.startswith(f"params/{place}/") for path in gates)
  assert paths - gates == set(parameters_of(small(gate_stages=())))


def test_every_field_changes_the_network():
  """The network reads every field of `config.model`."""
  changed = {
    "variant": "wide_context",
    "form": "library",
    "encoder_blocks": (1, 1, 2, 1),
    "mixer_dim": 24,
    "mixer_layers": 2,
    "mixer_heads": 4,
    "mixer_mlp_ratio": 2,
    "aspp_branch_dim": 12,
    "aspp_dilations": (1, 6),
    "decoder_dims": (16, 12, 8, 4),
    "gate_stages": (0, 4),
    "boundary_bias_stage": 2,
    "token_norm": False,
    "contrast_attention": True,
    "classes": 3,
    "pool_fine_tokens": True,
    "position_cycles": 2.0,
    "classical_edges": True,
    "boundary_magnitude": False,
    "aspp_grid": 0,
    "dropout": 0.3,
    "remat": True,
  }
  model = fields()
  # What the switches of `REMOVED` do is tested above.
  assert {*changed, *REMOVED} == ({*model, *model["medlitenet"]} - {"name", *NETWORKS})

  def program(model, variables):
    step = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    rngs = {"dropout": jax.random.key(0)}
    traced = jax.make_jaxpr(lambda v, x: step(v, x, rngs=rngs))(variables, images(1, 64, 64))
    arrays = [c for c in traced.consts if isinstance(c, np.ndarray)]
    sums = [float(np.sum(array, dtype=np.float64)) for array in arrays]
    return re.sub("0x[0-9a-f]+", "", f"{traced} {sums}")  # without the addresses of functions

  def init(model):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))

  tree = init(small())
  text = program(small(), tree)
  assert text == program(small(), tree)
  for field, value in changed.items():
    if field == "variant":
      before, after = (create_model(fields(**f), jnp.float32) for f in ({}, {field: value}))
      assert shapes_of(before) != shapes_of(after)
    else:
      model = small(**{field: value})
      variables = init(model)
      assert variables != tree or program(model, variables) != text, field


def test_a_variant_gives_way_to_a_field():
  resolved = resolve_model(fields(variant="fine_boundary", mixer_layers=4))
  assert resolved["medlitenet"]["mixer_layers"] == 4
  assert resolved["medlitenet"]["decoder_dims"] == VARIANTS["fine_boundary"]["decoder_dims"]
  assert None not in resolved["medlitenet"].values()
  assert resolve_model(resolved) == resolved


@pytest.mark.parametrize(
  "change",
  [
    {"name": "resnet"},
    {"variant": "huge"},
    {"form": "fast"},
    {"encoder_blocks": (1, 1, 1)},
    {"encoder_blocks": (1, 0, 1, 1)},
    {"mixer_dim": 30},
    {"mixer_dim": 200},
    {"mixer_layers": 0},
    {"mixer_heads": 0},
    {"mixer_mlp_ratio": 0},
    {"aspp_branch_dim": 0},
    {"aspp_dilations": ()},
    {"aspp_dilations": (1, 0)},
    {"decoder_dims": (16, 8)},
    {"gate_stages": (0, 5)},
    {"boundary_bias_stage": 0},
    {"boundary_bias_stage": 5},
    {"position_cycles": 0.0},
    {"aspp_grid": -1},
    {"dropout": 1.0},
  ],
  ids=str,
)
def test_an_impossible_value_is_refused_by_name(change):
  (field,) = change
  place = field if field in fields() else f"medlitenet.{field}"
  with pytest.raises(InputError, match=f"config.model.{place}"):
    create_model(fields(**{"variant": "paper_literal", **change}), jnp.float32)


@pytest.mark.parametrize("place", ["medlitenet", None])
def test_an_unknown_field_is_refused_and_a_missing_one_is_the_modules(place):
  model = fields()
  (model[place] if place else model)["spare"] = 1
  with pytest.raises(InputError, match="spare: medlitenet has no such field"):
    create_model(model, jnp.float32)
  model = fields()
  del model["medlitenet"]["scse"], model["medlitenet"]["mixer_dim"]
  assert resolve_model(model)["medlitenet"]["scse"] is True
  assert resolve_model(model)["medlitenet"]["mixer_dim"] == VARIANTS["base"]["mixer_dim"]


def test_remat_keeps_less_for_the_gradient_and_gives_the_same():
  """What is kept is counted without computing it: what the gradient's function closes over."""
  # Without the parts between the blocks and stages that are computed again.
  without = {"mixer": False, "aspp": False, "gate_stages": (), "scse": False}
  variables = small_variables(**without)

  def objective(params, image, remat):
    outputs, _ = small(**without, remat=remat).apply(
      {**variables, "params": params},
      image,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.key(0)},
    )
    return jnp.mean(outputs["mask"] ** 2)

  def kept(remat):
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    gradient = jax.eval_shape(
      lambda params, image: jax.vjp(lambda p: objective(p, image, remat), params)[1],
      variables["params"],
      image,
    )
    return sum(leaf.size for leaf in jax.tree.leaves(gradient))

  assert kept(remat=True) < 0.5 * kept(remat=False)
  gradient = jax.jit(jax.grad(objective), static_argnums=2)
  image = images(1, 64, 64)
  with compiled_as_by_launch():
    plain, remat = (gradient(variables["params"], image, remat) for remat in (False, True))
  # A gradient that cancels to nothing is known to the rounding of what it cancels from.
  rounding = 1e-5 * max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(plain))
  for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
    other = functools.reduce(lambda tree, key: tree[key.key], path, remat)
    atol = 1e-3 * float(np.max(np.abs(leaf))) + rounding
    np.testing.assert_allclose(other, leaf, rtol=0, atol=atol)
