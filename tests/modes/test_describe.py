"""The table of parts and the picture drawn from it."""

import cv2
import jax
import jax.numpy as jnp
import pytest

from configs import base
from medlitenet_jax.config import resolve
from medlitenet_jax.models.medlitenet.entry import drawing
from medlitenet_jax.models.registry import create_model
from medlitenet_jax.modes.describe import describe
from medlitenet_jax.pages.architecture import draw_architecture
from medlitenet_jax.speed.parts import count_parts


def fields(**changes):
  config = base.get_config()
  for name, value in changes.items():
    (config.model if name in config.model else config.model.medlitenet)[name] = value
  return resolve(config, "cpu").model.to_dict()


@pytest.fixture(scope="module")
def parts():
  return count_parts(fields(), 64)


def test_parts_hold_every_parameter_once(parts):
  model = create_model(fields(), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  assert sum(p.params for p in parts) == sum(x.size for x in jax.tree.leaves(shapes["params"]))
  assert len({p.name for p in parts}) == len(parts)


def test_parts_stand_in_the_order_they_run_with_the_shapes_they_give(parts):
  shapes = {p.name: p.shape for p in parts}
  assert list(shapes)[:2] == ["encoder/stem", "encoder/stage1"] and list(shapes)[-1] == "head"
  assert shapes["encoder/stem"] == (32, 32, 32)
  assert shapes["encoder/stage4"] == (2, 2, 256)
  assert shapes["decoder4"] == (32, 32, 32)


def test_operations_follow_from_the_definition(parts):
  flops = {p.name: p.flops for p in parts}
  assert flops["head"] == 2 * 32 * 32 * 32  # a 1x1 convolution of 32 channels to one
  assert flops["encoder/stem"] == 2 * 32 * 32 * 27 * 32  # one of 3x3 pixels and 3 channels to 32


def test_operations_do_not_depend_on_the_form(parts):
  other = count_parts(fields(form="library"), 64)
  assert [p.flops for p in other] == [p.flops for p in parts]


@pytest.mark.parametrize(
  "changes",
  [{}, {"boundary_magnitude": True, "mixer": False}, {"aspp": False, "gate_stages": ()}],
)
def test_picture_is_drawn_with_and_without_parts(tmp_path, changes):
  path = tmp_path / "architecture.png"
  model = fields(**changes)
  parts = count_parts(model, 64)
  for layout in (drawing([part.name for part in parts], model["medlitenet"]), None):
    draw_architecture(parts, "title", path, layout)
    assert cv2.imread(str(path)).std() > 1


def test_describe_prints_the_total(tmp_path, capsys):
  config = base.get_config()
  config.eval.image_size = 64
  describe(resolve(config, "cpu"), tmp_path)
  total = sum(p.params for p in count_parts(fields(), 64))
  assert f"{total:,}" in capsys.readouterr().out
  assert (tmp_path / "architecture.png").exists()
