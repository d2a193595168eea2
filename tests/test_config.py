"""Recipes: each resolves, each bad value is named, and no field stands there for nothing."""

import ast
import fnmatch
import functools
import importlib
import json
import os

import pytest
import small_runs
from ml_collections import ConfigDict
from small_runs import MODEL, REDUCED, ROOT

from configs.base import get_config
from medlitenet_jax import config as config_lib
from medlitenet_jax.config import (
  differences,
  flatten,
  for_evaluation,
  refuse_other_version,
  resolve,
)
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.models.registry import NETWORKS, model_loss_weights, resolve_model
from medlitenet_jax.system.errors import InputError

TABLE1 = sorted(p.stem for p in (ROOT / "configs" / "table1").glob("*.py") if p.stem != "__init__")
RECIPES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")
RECIPES += [f"table1.{name}" for name in TABLE1]
PACKAGE = ROOT / "medlitenet_jax"
small_config = functools.partial(small_runs.small_config, **REDUCED)


def resolved(**fields):
  """The small configuration of MedLiteNet with these fields, resolved for the CPU."""
  return resolve(small_config(**fields), "cpu")


def with_fields(config, **fields):
  """A copy of a configuration with other values, `a__b` being field a.b."""
  config = config.copy_and_resolve_references().unlock()
  for name, value in fields.items():
    *path, leaf = name.split("__")
    node = config
    for part in path:
      node = node[part]
    with node.ignore_type():
      node[leaf] = value
  return config.lock()


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resolves(name, platform):
  recipe = importlib.import_module(f"configs.{name}").get_config()
  assert recipe.is_locked
  config = resolve(recipe, platform)
  assert config.is_locked
  values = dict(flatten(config))
  others = tuple(f"model.{name}." for name in NETWORKS if name != config.model.name)
  assert set(values) == {
    field for field, _ in flatten(get_config()) if not field.startswith(others)
  }
  own = bool(config.ensemble.members)  # each member has a size and a precision of its own
  assert config.precision == ("auto" if own else "float32" if platform == "cpu" else "bfloat16")
  assert None not in values.values() and ("auto" in values.values()) == own
  size = recipe.eval.image_size or config.train.image_sizes[-1]
  assert config.eval.image_size == (0 if own else size)
  AugmentPolicy(**config.augment)


def test_recipes_differ_from_the_base_in_what_they_say():
  base = resolve(get_config(), "cpu")
  for name in ("wide_context", "fine_boundary"):
    config = resolve(importlib.import_module(f"configs.{name}").get_config(), "cpu")
    assert config.model.variant == name
    changed = differences(base, config)
    assert all(field.startswith(("model.", "loss.", "seed")) for field in changed)
    assert config.seed != base.seed
    expected = NETWORKS["medlitenet"].variants[name]
    assert {field: config.model.medlitenet[field] for field in expected} == expected


@pytest.mark.parametrize("name", TABLE1)
def test_networks_of_other_papers_have_the_recipe_of_the_paper(name):
  config = resolve(importlib.import_module(f"configs.table1.{name}").get_config(), "cpu")
  changed = differences(resolve(get_config(), "cpu"), config)
  assert config.model.name == name and config.model.variant == "base"
  networks = [get_config().model, config.model]
  brought = {f"loss.{term}.weight" for m in networks for term in model_loss_weights(m.to_dict())}
  sizes = {"train.image_sizes", "eval.image_size"}
  others = {field for field in changed if not field.startswith("model.")}
  assert others - brought in (set(), sizes)
  if config.train.image_sizes != get_config().train.image_sizes:
    assert config.train.image_sizes == (224,)  # as published


def test_every_network_has_a_section_with_its_fields_and_a_recipe():
  sections = {name: set(fields) for name, fields in get_config().model.items() if name in NETWORKS}
  assert sections.keys() == {"medlitenet", *TABLE1}
  for name, fields in sections.items():
    resolved = resolve_model({"name": name, "variant": "base"})
    assert fields == set(resolved[name])


@pytest.mark.parametrize(
  ("fields", "weight"),
  [
    ({}, 0.2),
    ({"model__medlitenet__gate_stages": ()}, 0.2),  # the bias of the attention has a map
    ({"model__medlitenet__gate_stages": (), "model__medlitenet__mixer": False}, 0),
    ({"model__variant": "paper_literal"}, 0),
    ({"model__name": "stub"}, 0),
  ],
)
def test_a_network_brings_the_weight_of_a_term_unless_the_recipe_does(fields, weight):
  recipe = with_fields(get_config(), **fields)
  assert resolve(recipe, "cpu").loss.boundaries.weight == weight
  for own in (0.0, 0.5):
    chosen = with_fields(recipe, loss__boundaries__weight=own)
    assert resolve(chosen, "cpu").loss.boundaries.weight == own


def test_the_recipe_of_hard_cases_only_switches_augmentations_on():
  base = resolve(get_config(), "cpu")
  config = resolve(importlib.import_module("configs.hard_cases").get_config(), "cpu")
  changed = differences(base, config)
  assert len(changed) == 6
  for field, (off, on) in changed.items():
    assert field.startswith("augment.") and field.endswith("_probability")
    assert off == 0 < on


def test_the_recipe_without_mixer_is_that_of_the_released_weights_otherwise():
  released, without = (
    resolve(importlib.import_module(f"configs.{name}").get_config(), "cpu")
    for name in ("released", "no_mixer")
  )
  assert differences(released, without) == {"model.medlitenet.mixer": (True, False)}


def test_the_recipe_of_the_last_epochs_switches_augmentations_off_and_keeps_flips():
  released, last = (
    resolve(importlib.import_module(f"configs.{name}").get_config(), "cpu")
    for name in ("released", "last_epochs")
  )
  changed = differences(released, last)
  off = {name for name, values in changed.items() if name.startswith("augment.")}
  assert all(changed[name][1] == 0.0 and name.endswith("_probability") for name in off)
  on = {name for name in last.augment if name.endswith("_probability") and last.augment[name] > 0}
  assert on == {"flip_horizontal_probability", "flip_vertical_probability"}
  others = ("train.epochs", "train.image_sizes", "train.validate_every_epochs", "eval.image_size")
  assert changed.keys() - off <= {*others, "optim.learning_rate"}


def test_precision_follows_the_platform_only_where_it_is_auto():
  assert resolve(get_config(), "cpu").precision == "float32"
  for platform in ("gpu", "tpu"):
    assert resolve(get_config(), platform).precision == "bfloat16"
    chosen = resolve(with_fields(get_config(), precision="float16"), platform)
    assert chosen.precision == "float16"
    ensemble = with_fields(get_config(), ensemble__members=("one", "other"))
    assert resolve(ensemble, platform).precision == "auto"  # each member has its own


def test_the_column_of_groups_is_that_of_the_photographs_named():
  own = resolve(with_fields(get_config(), data__group_column="patient"), "cpu")
  for overrides, column in (
    ({}, "patient"),
    ({"eval.split": "val"}, "patient"),
    ({"data.root": "elsewhere"}, ""),
    ({"data.root": "elsewhere", "data.group_column": "lesion"}, "lesion"),
  ):
    assert for_evaluation(own, overrides, "cpu", get_config()).data.group_column == column


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are not assigned here")
def test_cores_that_this_process_may_not_use_get_no_thread(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8})
  monkeypatch.setattr(os, "cpu_count", lambda: 64)
  assert resolve(get_config(), "cpu").data.num_threads == 3


@pytest.mark.parametrize(("threads", "ahead"), [(1, 4), (4, 4), (12, 12), (64, 16)])
def test_every_reader_thread_has_a_batch_to_read(threads, ahead):
  recipe = with_fields(get_config(), data__num_threads=threads)
  assert resolve(recipe, "cpu").data.prefetch_batches == ahead
  chosen = resolve(with_fields(recipe, data__prefetch_batches=2), "cpu")
  assert chosen.data.prefetch_batches == 2


def test_an_evaluation_reads_by_as_many_threads_as_its_own_machine_bears():
  elsewhere = resolve(with_fields(get_config(), data__num_threads=7), "cpu")
  here = for_evaluation(elsewhere, {}, "cpu", get_config()).data
  expected = resolve(get_config(), "cpu").data
  assert (here.num_threads, here.prefetch_batches) == (
    expected.num_threads,
    expected.prefetch_batches,
  )
  asked = for_evaluation(elsewhere, {"data.num_threads": 9}, "cpu", get_config()).data
  assert (asked.num_threads, asked.prefetch_batches) == (9, 9)


def test_resolving_leaves_the_recipe_alone_and_twice_is_once():
  recipe = small_config()
  before = recipe.to_dict()
  config = resolve(recipe, "cpu")
  assert recipe.to_dict() == before
  assert resolve(config, "gpu").to_dict() == config.to_dict()


def test_a_field_given_wins_over_the_variant():
  config = resolve(small_config(), "cpu")
  own = config.model.medlitenet
  assert {name: own[name] for name in MODEL} == MODEL
  assert own.mixer_mlp_ratio == NETWORKS["medlitenet"].variants["base"]["mixer_mlp_ratio"]


BAD_VALUES = {
  "seed": -1,
  "precision": "float64",
  "data__num_threads": -1,
  "data__cache_gib": -0.5,
  "data__prefetch_batches": -1,
  "data__mask_suffix": "masks/_m",
  "data__group_column": "split",
  "data__split_seed": -1,
  "data__val_fraction": 0.95,
  "data__test_fraction": -0.1,
  "data__folds": 1,
  "data__fold": 1,
  "data__max_train_images": -1,
  "data__max_eval_images": -5,
  "data__synthetic__image_size": 31,
  "augment__clahe_tiles": 0,
  "augment__elastic_grid": 1,
  "augment__crop_probability": 1.01,
  "augment__noise_probability": -0.1,
  "augment__gamma_range": (1.4, 0.7),
  "augment__blur_sigma": (0.1,),
  "augment__crop_scale": (0.0, 1.0),
  "augment__noise_std": (-0.1, 0.1),
  "augment__hairs_count": (-1, 5),
  "augment__ruler_inset": (0.0, 0.6),
  "augment__skin_tone_density": (1.0, -1.0),
  "augment__faint_border_strength": (0.5, 1.5),
  "augment__shadow_probability": 2.0,
  "preprocess__hair_removal": "yes",
  "preprocess__color_constancy": "grey_world",
  "model__name": "unet9",
  "model__variant": "huge",
  "model__form": "magic",
  "model__medlitenet__encoder_blocks": (1, 2, 3),
  "model__medlitenet__mixer_dim": 30,
  "model__medlitenet__mixer_layers": 0,
  "model__medlitenet__mixer_heads": 0,
  "model__medlitenet__mixer_mlp_ratio": 0,
  "model__medlitenet__aspp_branch_dim": 0,
  "model__medlitenet__aspp_dilations": (),
  "model__medlitenet__decoder_dims": (16, 16, 16, 0),
  "model__medlitenet__gate_stages": (0, 5),
  "model__medlitenet__boundary_bias_stage": 5,
  "model__medlitenet__dropout": 1.0,
  "ensemble__members": (1, 2),
  "optim__learning_rate": 0.0,
  "optim__final_learning_rate": -1e-3,
  "optim__warmup_updates": -1,
  "optim__weight_decay": -0.1,
  "optim__clip_norm": 0.0,
  "optim__accumulation": 0,
  "optim__ema_decay": 1.0,
  "train__epochs": -1,
  "train__max_steps": -1,
  "train__batch_size": 0,
  "train__image_sizes": (64, 100),
  "train__validate_every_epochs": 0,
  "train__validate_min_steps": 0,
  "train__patience": -1,
  "train__log_every_steps": 0,
  "eval__split": "dev",
  "eval__image_size": 32,
  "eval__batch_size": 0,
  "eval__threshold": 1.0,
  "eval__postprocess": ("fill_holes", "fill_holes"),
  "eval__checkpoint": "newest",
  "profile__start_step": -1,
  "profile__num_steps": -1,
}


# What fits no memory or counter, is no number, or would draw one picture for two splits.
ABSURD_VALUES = {
  "seed": 2**32,
  "data__num_threads": 10**6,
  "data__prefetch_batches": 10**6,
  "data__working_size": 10**6,
  "data__synthetic__image_size": 10**6,
  "data__synthetic__num_train": 1_000_001,
  "train__batch_size": 10**12,
  "train__image_sizes": (3_200_000,),
  "train__max_steps": 2**31,
  "train__epochs": 10**9,
  "eval__batch_size": 10**12,
  "eval__image_size": 3_200_000,
  "eval__review_below": float("nan"),
  "optim__learning_rate": float("inf"),
  "optim__accumulation": 10**9,
  "optim__warmup_updates": 2**31,
  "augment__elastic_grid": 10**6,
  "augment__clahe_tiles": 10**6,
  "model__medlitenet__aspp_dilations": (1, 3_000_000_000),
  "model__medlitenet__mixer_dim": 4_000_000_000,
  "model__medlitenet__decoder_dims": (16, 16, 16, 10**6),
  "model__medlitenet__mixer_layers": 10**6,
}


@pytest.mark.parametrize(("name", "value"), [*BAD_VALUES.items(), *ABSURD_VALUES.items()])
def test_bad_value_names_its_field(name, value):
  with pytest.raises(InputError) as error:
    resolve(with_fields(get_config(), **{name: value}), "cpu")
  line = str(error.value)
  field = name.replace("__", ".")
  assert field in line or (name == "model__medlitenet__mixer_heads" and "mixer_heads" in line)
  assert len(line.splitlines()) == 1


@pytest.mark.parametrize("name", ["optim__learning_rate", "optim__clip_norm"])
def test_what_is_not_a_number_is_refused(name):
  with pytest.raises(InputError, match=name.replace("__", r"\.")):
    resolve(with_fields(get_config(), **{name: float("nan")}), "cpu")


def test_further_bad_combinations():
  for sizes in ((), (64, "a"), (64.5,), (0,)):
    with pytest.raises(InputError, match=r"config\.train\.image_sizes"):
      resolve(with_fields(get_config(), train__image_sizes=sizes), "cpu")
  with pytest.raises(InputError, match=r"config\.train\.epochs.*config\.train\.max_steps"):
    resolve(with_fields(get_config(), train__epochs=0), "cpu")
  resolve(with_fields(get_config(), train__epochs=0, train__max_steps=1), "cpu")


def test_save_and_load(tmp_path):
  config = resolved()
  config_lib.save(config, tmp_path)
  loaded = config_lib.load(tmp_path)
  assert loaded.is_locked and loaded.to_dict() == config.to_dict()
  assert not differences(loaded, config)
  types = [{name: type(value) for name, value in flatten(c)} for c in (config, loaded)]
  assert types[0] == types[1]


@pytest.mark.parametrize(
  "text", [None, "", "{", '{"seed": 0', "[]", '"model"', "{}", '{"seed": 0}']
)
def test_what_is_no_configuration_is_refused(tmp_path, text):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(InputError) as error:
    config_lib.load(tmp_path)
  assert str(tmp_path / "config.json") in str(error.value)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("missing", ["model.name", "model.variant"])
def test_configuration_without_a_network_is_refused(tmp_path, missing):
  tree = resolved().to_dict()
  section, leaf = missing.split(".")
  del tree[section][leaf]
  (tmp_path / "config.json").write_text(json.dumps(tree))
  with pytest.raises(InputError):
    for_evaluation(config_lib.load(tmp_path), {}, "cpu", get_config())


@pytest.mark.parametrize("text", ['{"model": 3}', '{"model": {}}', '{"model": null, "seed": "x"}'])
def test_configuration_of_something_else_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(InputError):
    for_evaluation(config_lib.load(tmp_path), {}, "cpu", get_config())


def test_differences_are_of_what_is_learned():
  old = resolved()
  same = with_fields(
    old,
    data__root="elsewhere",
    data__num_threads=1,
    data__prefetch_batches=1,
    eval__split="val",
    eval__checkpoint="latest",
    eval__batch_size=1,
    train__log_every_steps=1,
    profile__num_steps=3,
  )
  assert differences(old, same) == {}
  new = with_fields(same, seed=1, optim__learning_rate=2e-3, model__medlitenet__dropout=0.2)
  assert differences(old, new) == {
    "seed": (0, 1),
    "optim.learning_rate": (5e-3, 2e-3),
    "model.medlitenet.dropout": (0.1, 0.2),
  }


def test_differences_notice_every_other_field():
  old = resolved()
  free = (
    *("data.root", "data.raw", "data.num_threads", "data.prefetch_batches", "data.cache_gib"),
    *("train.log_every_steps", "train.max_skipped_in_a_row", "train.patience"),
    *("eval.split", "eval.checkpoint", "eval.batch_size", "eval.tta", "profile."),
    *("eval.threshold", "eval.hysteresis_low", "eval.postprocess", "eval.review_below"),
    *("model.remat", "benchmark."),
  )
  for field, value in flatten(old):
    changed = with_fields(old, **{field.replace(".", "__"): ("other", value)})
    assert (field in differences(old, changed)) == (not field.startswith(free))


def test_differences_report_a_field_of_one_side_alone():
  old, new = resolved(), resolved()
  with old.unlocked():
    del old.model.medlitenet["scse"]
  assert differences(old, new) == {"model.medlitenet.scse": (None, True)}
  assert differences(new, old) == {"model.medlitenet.scse": (True, None)}


def test_evaluation_takes_its_own_fields():
  saved = resolved()
  overrides = {
    "eval.split": "val",
    "eval.batch_size": 2,
    "eval.image_size": 128,
    "data.source": "folder",
    "data.root": "photographs",
    "data.max_eval_images": 7,
    "precision": "bfloat16",
    "seed": 0,
  }
  config = for_evaluation(saved, overrides, "cpu", get_config())
  values = dict(flatten(config))
  assert config.is_locked and {name: values[name] for name in overrides} == overrides
  others = dict(flatten(saved))
  changed = {name for name in values if values[name] != others[name]}
  assert changed == set(overrides) - {"seed"}
  assert saved.eval.split == "test"


@pytest.mark.parametrize(
  ("field", "value"),
  [("model.medlitenet.mixer_layers", 2), ("model.variant", "wide_context"), ("seed", 3)],
)
def test_evaluation_refuses_another_network(field, value):
  with pytest.raises(InputError, match=rf"config\.{field}"):
    for_evaluation(resolved(), {field: value}, "cpu", get_config())


@pytest.mark.parametrize("missing", ["eval", "ensemble", "eval.hysteresis_low", "data.num_threads"])
def test_fields_that_trained_weights_do_not_know_are_the_recipes(missing):
  """Weights that are older than a field can still be evaluated."""
  tree = resolved().to_dict()
  *path, leaf = missing.split(".")
  del (tree[path[0]] if path else tree)[leaf]
  config = for_evaluation(ConfigDict(tree), {}, "cpu", get_config())
  expected = dict(flatten(resolve(get_config(), "cpu")))
  for field, value in flatten(config):
    if field.startswith(missing) and field != "eval.image_size":
      assert value == expected[field]
  assert config.model == resolved().model


@pytest.mark.parametrize("missing", ["preprocess", "preprocess.hair_removal"])
def test_weights_older_than_a_preprocessing_see_photographs_without_it(missing):
  tree = resolved().to_dict()
  *path, leaf = missing.split(".")
  del (tree[path[0]] if path else tree)[leaf]
  recipe = with_fields(get_config(), preprocess__hair_removal=True)
  config = for_evaluation(ConfigDict(tree), {}, "cpu", recipe)
  assert config.to_dict() == resolved().to_dict()
  for_evaluation(ConfigDict(tree), {"preprocess.hair_removal": False}, "cpu", recipe)
  with pytest.raises(InputError, match=r"config\.preprocess\.hair_removal is False"):
    for_evaluation(ConfigDict(tree), {"preprocess.hair_removal": True}, "cpu", recipe)


@pytest.mark.parametrize(
  "field", ["preprocess.hair_removal", "train.epochs", "model.medlitenet.scse"]
)
def test_a_run_of_another_version_is_refused_in_a_line(tmp_path, field):
  """Whichever of the two has the field."""
  *path, leaf = field.split(".")
  one, other = resolved().to_dict(), resolved()
  del functools.reduce(lambda tree, name: tree[name], path, one)[leaf]
  for saved, asked in ((ConfigDict(one), other), (other, ConfigDict(one))):
    with pytest.raises(InputError, match=f"config.{field} does not fit this version") as error:
      refuse_other_version(tmp_path, saved, asked)
    assert len(str(error.value).splitlines()) == 1
  refuse_other_version(tmp_path, other, resolved())


@pytest.mark.parametrize(
  ("field", "value"),
  [("hair_removal", True), ("shadow_removal", True), ("color_constancy", "shades_of_grey")],
)
def test_preprocessing_is_part_of_what_a_run_is(field, value):
  with pytest.raises(InputError, match=rf"config\.preprocess\.{field}.*cannot be changed"):
    for_evaluation(resolved(), {f"preprocess.{field}": value}, "cpu", get_config())


def test_evaluation_checks_values():
  for field, value in (("eval.threshold", 1.5), ("eval.image_size", 100), ("eval.split", "x")):
    with pytest.raises(InputError, match=rf"config\.{field}"):
      for_evaluation(resolved(), {field: value}, "cpu", get_config())


def test_evaluation_size_0_is_the_last_of_training():
  config = for_evaluation(
    resolved(eval__image_size=64), {"eval.image_size": 0}, "cpu", get_config()
  )
  assert config.eval.image_size == 96


# The groups of fields that go whole into something: where to look for `NAME.FIELD` instead.
UNPACKED = {
  "augment": ("policy", ("data/augment/geometry.py", "data/augment/photometric.py")),
  "medlitenet": ("self", ("models/medlitenet/network.py",)),
  **{name: ("self", (f"models/{name}.py",)) for name in TABLE1},
  "preprocess": ("self", ("data/images/preprocess.py",)),
}
ALIASES = {
  "optimizer": "optim",
  "evaluation": "eval",
}  # a group under another name in a function that is given it


@functools.cache
def fields_read(path):
  """Every `GROUP.FIELD` and `GROUP["FIELD"]` that a source file reads; the latter as a pattern."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
      owner, leaf = node.value, node.attr
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.JoinedStr):
      owner, leaf = node.value, pattern(node.slice)
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
      owner, leaf = node.args[0], pattern(node.args[1])
    else:
      continue
    group = getattr(owner, "attr", getattr(owner, "id", ""))
    found.add(f"{ALIASES.get(group, group)}.{leaf}")
  return found


def pattern(node):
  """A string as it stands, and an f-string with * for what is filled in."""
  if isinstance(node, ast.Constant):
    return str(node.value)
  if isinstance(node, ast.JoinedStr):
    return "".join(str(v.value) if isinstance(v, ast.Constant) else "?*" for v in node.values)
  return "-"


def names_read(path, function):
  """Names that a function's body reads."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef) and node.name == function:
      return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
  raise AssertionError(f"{path} has no {function}")


def unread_fields(config):
  """Fields that the sources of the package never read."""
  # config.py only checks and compares: being checked is not being read.
  paths = [path for path in PACKAGE.rglob("*.py") if path.name != "config.py"]
  read = set().union(*map(fields_read, paths))
  unread = []
  for field, _ in flatten(config):
    group, leaf = f"config.{field}".split(".")[-2:]
    if field.startswith("loss."):
      is_read = leaf == "weight" or leaf in names_read(
        PACKAGE / "training" / "losses.py", f"_{group}_term"
      )
    elif group == "model":
      registry = fields_read(PACKAGE / "models" / "registry.py")
      network = fields_read(PACKAGE / "models" / "medlitenet" / "network.py")
      is_read = f"fields.{leaf}" in registry or f"self.{leaf}" in network
    elif group in UNPACKED:
      owner, files = UNPACKED[group]
      wanted, patterns = f"{owner}.{leaf}", set().union(*(fields_read(PACKAGE / f) for f in files))
      is_read = any(fnmatch.fnmatchcase(wanted, p) for p in patterns)
    else:
      is_read = any(fnmatch.fnmatchcase(f"{group}.{leaf}", p) for p in read)
    if not is_read:
      unread.append(field)
  return unread


def test_every_field_is_read():
  assert unread_fields(get_config()) == []


@pytest.mark.parametrize(
  "field",
  [
    "spare",
    "data.spare",
    "augment.spare",
    "preprocess.spare",
    "model.spare",
    "model.medlitenet.spare",
    "loss.bce.spare",
    "eval.warmup",
  ],
)
def test_a_field_that_nothing_reads_is_noticed(field):
  config = get_config().unlock()
  *path, leaf = field.split(".")
  functools.reduce(lambda section, name: section[name], path, config)[leaf] = 1
  assert unread_fields(config) == [field]
