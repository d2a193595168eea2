"""Repetition: trains and scores a recipe once for each seed and fold, and tells the spread."""

import dataclasses
import gc
import itertools
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.sources import create_source
from medlitenet_jax.modes.call import Call, begin, resolve_recipe
from medlitenet_jax.modes.evaluate import SUMMARY_FILE, evaluate
from medlitenet_jax.modes.opening import open_networks
from medlitenet_jax.modes.prepare import make_ready
from medlitenet_jax.modes.train import train
from medlitenet_jax.scores.metrics import SCORES
from medlitenet_jax.scores.statistics import spread
from medlitenet_jax.system import devices, tables
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import read_json, replace_file
from medlitenet_jax.system.lock import InUseError, lock_folder

logger = logging.getLogger(__name__)

FILE, TABLE = "repeat.json", "repeat.md"
LOCKS = "locks"  # subfolder with a folder for each run, which is locked while a process works at it


class Run(NamedTuple):
  """One of the runs.

  Attributes:
    name: of its folder.
    call: the command line that would train it alone.
    config: its recipe, resolved.
  """

  name: str
  call: Call
  config: ConfigDict


def main(call: Call) -> None:
  """Trains and scores the recipe once for each seed and fold; see `repeat`."""
  begin(call, call.output, rehearsed=True)
  make_ready(call, resolve_recipe(call))
  repeat(call)


def repeat(call: Call) -> dict[str, Any] | None:
  """Trains and scores a recipe for several seeds, for every fold, or both, and prints the spread.

  A run that is finished is left alone, and one that was stopped goes on. Other processes may be
  started with the same command on the same folder: each takes runs that no other works at.

  Args:
    call: the command line; its output receives a folder for each run and, once all are scored,
      `repeat.json` and `repeat.md`.

  Returns:
    What `repeat.json` holds; None while runs are missing, or on a dry run.

  Raises:
    InputError: if the command line or the data cannot be used, or if runs failed.
    Stopped: if a signal ended a training early, after its state was saved.
  """
  runs = plan(call)
  for run in runs:  # an empty split would show after hours of training
    create_source(run.config.data, run.config.eval.split, run.config.seed)
  names = ", ".join(run.name for run in runs)
  logger.info("%d runs in %s: %s.", len(runs), call.output, names)
  if call.dry_run:
    train(runs[0].config, runs[0].call.workdir, force=call.force, dry_run=True)
    return None
  failed = [run.name for run in runs if not _done_here(run)]
  if failed:
    raise InputError(
      f"{call.output}: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; the same "
      "command tries them again"
    )
  missing = [run.name for run in runs if not is_finished(run)]
  if missing:
    logger.info("Other processes work at %s; the last to end writes the table.", ", ".join(missing))
    return None
  return _report(call, runs)


def plan(call: Call) -> list[Run]:
  """The runs that a command line asks for, seed by seed.

  Raises:
    InputError: if it asks for only one, names a fold, or its recipe cannot be used.
  """
  recipe, seeds = call.recipe, 1 if call.seeds is None else call.seeds
  if call.workdir_named:
    raise InputError(
      "--workdir: --mode=repeat writes a folder for each run into --output; name that"
    )
  if not 0 < seeds <= 1000:
    raise InputError(f"--seeds takes a number of seeds from 1 to 1000, not {seeds}")
  if recipe.data.fold:
    raise InputError(
      f"config.data.fold is {recipe.data.fold}, but --mode=repeat trains every fold; leave it out"
    )
  if recipe.ensemble.members:
    raise InputError("config.ensemble.members: an ensemble is not trained; repeat its members")
  if seeds == 1 and not recipe.data.folds:
    raise InputError(
      "--mode=repeat: there is one run to make; give --seeds=3, --config.data.folds=5, or both"
    )
  runs = []
  for seed, fold in itertools.product(range(seeds), range(recipe.data.folds or 1)):
    own = {"seed": recipe.seed + seed, "data.fold": fold}
    name = f"seed{recipe.seed + seed}" + (f"-fold{fold}" if recipe.data.folds else "")
    with recipe.copy_and_resolve_references().unlocked() as changed:
      changed.update_from_flattened_dict(own)
    run_call = dataclasses.replace(
      call,
      mode="train",
      recipe=changed,
      overrides={**call.overrides, **own},
      workdir=call.output / name,
      workdir_named=True,
    )
    runs.append(Run(name, run_call, config_lib.resolve(changed, devices.platform())))
  return runs


def is_finished(run: Run) -> bool:
  """Whether a run was trained and scored as its recipe says."""
  workdir = run.call.workdir
  try:
    trained = config_lib.load(workdir)
    scored = config_lib.load(_scores(run).parent)
  except InputError:
    return False
  return (
    _scores(run).exists()
    and not config_lib.differences(trained, run.config)
    and scored.eval == run.config.eval
  )


def _scores(run: Run) -> Path:
  return run.call.workdir / "eval" / run.config.eval.split / SUMMARY_FILE


def _done_here(run: Run) -> bool:
  """Trains and scores a run unless it is finished or another process is at it; False: it failed."""
  locks = run.call.workdir.parent / LOCKS / run.name
  locks.mkdir(parents=True, exist_ok=True)
  try:
    with lock_folder(locks, "works at this run", "--output"):
      if not is_finished(run):
        logger.info("\n%s: training and scoring", run.name)
        train(run.config, run.call.workdir, force=run.call.force)
        _score(run)
  except InUseError as error:
    logger.info("%s: left out here, %s", run.name, error)
  except InputError as error:
    logger.error("%s: failed: %s", run.name, error)
    return False
  finally:
    jax.clear_caches()  # the next run has programs of its own
    gc.collect()
  return True


def _score(run: Run) -> None:
  call = run.call
  evaluation = {f: v for f, v in call.overrides.items() if f.startswith("eval.")}
  flags = [f"--config.{field}={value}" for field, value in evaluation.items()]
  command = [*call.start.split(), "--mode=evaluate", f"--workdir={call.workdir}", *flags]
  config, networks = open_networks(dataclasses.replace(call, mode="evaluate"))
  evaluate(config, networks, call.workdir, shlex.join(command))


def _report(call: Call, runs: Sequence[Run]) -> dict[str, Any]:
  """Writes and prints the scores of all runs and their spread."""
  summaries = [read_json(_scores(run)) for run in runs]
  folds = call.recipe.data.folds
  shape = (len(runs) // (folds or 1), folds or 1)
  means = {
    score: np.array([summary[score]["mean"] for summary in summaries]).reshape(shape)
    for score in SCORES
  }
  split = runs[0].config.eval.split
  found = {
    "split": split,
    "checkpoint": runs[0].config.eval.checkpoint,
    "seeds": shape[0],
    "folds": folds,
    "runs": {
      run.name: {"cases": summary["cases"], **{s: summary[s]["mean"] for s in SCORES}}
      for run, summary in zip(runs, summaries, strict=True)
    },
    "scores": {score: spread(table) for score, table in means.items()},
    "spread": "standard deviation (N - 1) of the means of the seeds, of the folds, and of the runs",
    "command": call.command,
  }
  replace_file(call.output / FILE, json.dumps(found, indent=2) + "\n")
  text = "\n\n".join(tables.table(*table) for table in (_runs_table(found), _spread_table(found)))
  replace_file(call.output / TABLE, text + "\n")
  print(text)
  if split == "val" and found["checkpoint"] == "best":
    logger.info(
      "Each run's best checkpoint was chosen by the photographs that it is scored on here, which "
      "flatters it; --config.eval.checkpoint=latest takes the last one."
    )
  logger.info("%d runs scored on %s: %s", len(runs), split, call.output / FILE)
  return found


def _runs_table(found: Mapping[str, Any]):
  rows = [
    (name, str(run["cases"]), *(f"{run[score]:.4f}" for score in SCORES))
    for name, run in found["runs"].items()
  ]
  return ("run", "cases", *SCORES), rows


def _spread_table(found: Mapping[str, Any]):
  def cells(score: Mapping[str, float | None]) -> Iterator[str]:
    for name in ("mean", "std_seeds", "std_folds", "std_runs"):
      yield "-" if score[name] is None else f"{score[name]:.4f}"

  rows = [(name, *cells(score)) for name, score in found["scores"].items()]
  return ("score", "mean", "± over seeds", "± over folds", "± over runs"), rows
