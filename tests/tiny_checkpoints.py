"""Checkpoints of a network of one convolution, for tests that need many."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs.base import get_config
from medlitenet_jax.data.augment.policy import AugmentPolicy
from medlitenet_jax.data.images.preprocess import Preprocessing
from medlitenet_jax.data.pipeline import train_batches
from medlitenet_jax.data.sources import SyntheticSource
from medlitenet_jax.training.checkpoint import Checkpoints
from medlitenet_jax.training.optim import create_optimizer
from medlitenet_jax.training.state import create_state


class Tiny(nn.Module):
  """One convolution, with or without a norm."""

  features: int = 3
  norm: bool = True

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    x = nn.Conv(self.features, (3, 3), name="conv")(x)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
    return {"mask": x}


def create(features=3, precision="float32", norm=True):
  tx = create_optimizer(lambda _: 0.1, weight_decay=0.01, clip_norm=1.0, accumulation=2)
  return create_state(Tiny(features, norm), tx, seed=0, precision=precision, image_size=32)


def at(step, **kwargs):
  """A state whose every number is another, after `step` batches."""
  rng = np.random.default_rng(step)
  state = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape).astype(x.dtype)), shapes(**kwargs)
  )
  return state.replace(micro_step=jnp.asarray(step, jnp.int32))


def shapes(**kwargs):
  return jax.eval_shape(lambda: create(**kwargs))


def batches():
  source = SyntheticSource(seed=0, first=0, count=5, image_size=32)
  return train_batches(
    source,
    seed=0,
    batch_size=2,
    image_size_at=lambda step: 32,
    preprocessing=Preprocessing(hair_removal=False, color_constancy="none"),
    policy=AugmentPolicy(**get_config().augment),
    num_threads=1,
    prefetch_batches=1,
  )


def opened(workdir, **kwargs):
  return contextlib.closing(Checkpoints(workdir, **kwargs))


def save(workdir, scores):
  """Saves a state and its Dice for each step."""
  data = batches()
  with opened(workdir) as checkpoints:
    for step, dice in scores.items():
      next(data)
      checkpoints.save(at(step), data, {"dice": dice, "iou": dice / 2})
