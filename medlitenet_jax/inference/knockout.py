"""What each part of a trained network is worth to its scores: silenced without training again."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax.data.cases import Source
from medlitenet_jax.inference.stream import predict_cases
from medlitenet_jax.inference.trained import Trained
from medlitenet_jax.models.fold import fold_loaded
from medlitenet_jax.models.forward import normalize
from medlitenet_jax.models.knockout import Knockout, expand, is_module, silencing, zero
from medlitenet_jax.models.layers import DIAGNOSTICS
from medlitenet_jax.models.precision import DTYPES
from medlitenet_jax.models.registry import NETWORKS, create_model, model_parts
from medlitenet_jax.models.structure import inspect_model
from medlitenet_jax.scores.case_scores import plain_scores

logger = logging.getLogger(__name__)

WHOLE = "whole"  # the network as it is


class Silenced(NamedTuple):
  """Scores of a network as it is and with parts of it silenced.

  Attributes:
    scores: by the name of what is silenced, and under `WHOLE`; each {score: [N] values, in the
      order of the source}.
    modules: names of what is a single module of another name's several.
    diagnostics: figures of the whole network's forward pass, by the path of the module and the name
      of the figure; each the mean over the cases.
  """

  scores: dict[str, dict[str, np.ndarray]]
  modules: frozenset[str]
  diagnostics: dict[str, float]


def network_knockouts(
  model: nn.Module, fields: Mapping[str, Any], size: int
) -> dict[str, Knockout]:
  """What can be silenced in a network, by name; single modules by their paths.

  Args:
    model: of `fields`.
    fields: `config.model`, resolved.
    size: of the input, in pixels.

  Returns:
    What the network's entry names; if it names nothing, zeros for each of its parts.
  """
  named = NETWORKS[fields["name"]].knockouts or {
    part: {pattern: zero for module in modules for pattern in (module, f"*/{module}")}
    for part, modules in model_parts(fields, size).items()
  }
  return expand(named, inspect_model(model, size).paths)


def silence_parts(trained: Trained, config: ConfigDict, source: Source) -> Silenced:
  """Scores a network with one part after another silenced, all in one pass over the cases.

  The scores are those of the validation in training: one view, threshold one half, no clean-up.

  Args:
    trained: the network.
    config: resolved; what it is evaluated with.
    source: the cases.

  Returns:
    Scores and diagnostics.
  """
  fields, size = config.model.to_dict(), config.eval.image_size
  model = create_model(fields, DTYPES[config.precision])
  knockouts = network_knockouts(model, fields, size)
  variables = jax.device_put(fold_loaded(trained.variables, inspect_model(model, size).folds))
  logger.info("Compiling one program for %d knock-outs.", len(knockouts))
  predict = create_silenced(model, variables, list(knockouts.values()))
  names = [WHOLE, *knockouts]
  rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
  figures: list[dict[str, float]] = []
  cases = predict_cases(predict, source, [size], config)
  for case, (maps, found) in tqdm(
    cases, total=len(source), unit="case", desc="knockout", dynamic_ncols=True
  ):
    for name, probs in zip(names, maps, strict=True):
      rows[name].append(plain_scores(probs, case.mask))
    figures.append(found)
  return Silenced(
    {name: _columns(found) for name, found in rows.items()},
    frozenset(name for name, knockout in knockouts.items() if is_module(name, knockout)),
    {name: float(column.mean()) for name, column in _columns(figures).items()},
  )


def create_silenced(
  model: nn.Module, variables: Any, knockouts: Sequence[Knockout]
) -> Callable[[Mapping[int, Any]], tuple[jax.Array, dict[str, jax.Array]]]:
  """Compiles a network once for all knock-outs.

  Args:
    model: maps normalised images to {"mask": logits, ...}.
    variables: its variables, on the device.
    knockouts: K of them.

  Returns:
    A function from {S: [B, S, S, 3] uint8 images} to the [B, 1 + K, S, S] probabilities, of the
    whole network and of each knock-out, and the diagnostics of the whole, [B] each.
  """

  @jax.jit
  def run(variables, image, on):
    with silencing(knockouts, on):
      outputs, kept = model.apply(variables, normalize(image), mutable=[DIAGNOSTICS])
    figures = traverse_util.flatten_dict(kept.get(DIAGNOSTICS, {}), sep="/")
    return nn.sigmoid(outputs["mask"][..., 0].astype(jnp.float32)), figures

  def predict(images):
    (image,) = images.values()
    each_off = ~np.eye(len(knockouts), dtype=bool)
    whole, figures = run(variables, image, np.ones(len(knockouts), bool))
    return jnp.stack([whole, *(run(variables, image, on)[0] for on in each_off)], axis=1), figures

  return predict


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
