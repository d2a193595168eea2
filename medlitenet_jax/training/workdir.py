"""The folder of a run: made for a new run, checked before an earlier one continues."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medlitenet_jax import config as config_lib
from medlitenet_jax.data.cases import Source
from medlitenet_jax.data.sources import class_names
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import TEMPORARY_SUFFIX, read_json, replace_file
from medlitenet_jax.system.lock import LOCK_FILE, lock_folder
from medlitenet_jax.system.starts import record_start
from medlitenet_jax.training.layout import whole_steps

logger = logging.getLogger(__name__)

# Holds the names of the cases of each split that the run reads, and under `BEFORE` of those that
# the weights it started from had been trained on or selected by.
CASES_FILE = "cases.json"
BEFORE = "before"
CLASSES = "classes"
# What a run may leave behind that was killed before it wrote its configuration.
BEFORE_CONFIG = {LOCK_FILE, config_lib.CONFIG_FILE + TEMPORARY_SUFFIX}


@contextlib.contextmanager
def open_workdir(
  config: ConfigDict,
  workdir: Path,
  sources: Mapping[str, Source],
  *,
  total_steps: int,
  force: bool = False,
) -> Iterator[None]:
  """Makes the folder of a new run, or checks that it holds the run that is to continue.

  No other process can open the folder until the context ends; one that only reads need not open
  it. A run without a checkpoint has nothing to lose, so its configuration is replaced.

  Args:
    config: resolved.
    workdir: the folder.
    sources: the cases of each split that training reads; a run must continue with the same.
    total_steps: batches of the whole run.
    force: whether the fields that are `config.FORCE_ONLY` may have other values than before.

  Yields:
    Nothing.

  Raises:
    InputError: if the folder holds another run, a longer one, one that is being trained, or files
      that are no run. Nothing in it is changed then.
  """
  changed = refuse_unsuitable(config, workdir, sources, total_steps=total_steps, force=force)
  steps = whole_steps(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  with lock_folder(workdir, "is training in it", "--workdir"):
    if changed:
      former = workdir / f"config.until_{steps[-1]}.json"
      if not former.exists():  # else no batch was learned since an earlier change
        replace_file(former, (workdir / config_lib.CONFIG_FILE).read_text())
      logger.warning("Continuing with %s; the former configuration: %s", _list(changed), former)
    config_lib.save(config, workdir)
    if not steps:
      _store_cases(workdir, {**_names(config, sources), BEFORE: []})
    record_start(workdir)
    yield


def refuse_unsuitable(
  config: ConfigDict,
  workdir: Path,
  sources: Mapping[str, Source],
  *,
  total_steps: int,
  force: bool = False,
) -> dict[str, tuple[Any, Any]]:
  """Refuses a folder that the run cannot use, as `open_workdir` does; changes nothing.

  Returns:
    {field: (old value, new value)} of the fields that `force` lets the run change.
  """
  cases, steps = _names(config, sources), whole_steps(workdir)
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f"{workdir}: is a file; choose another --workdir")
  if not (workdir / config_lib.CONFIG_FILE).exists():
    if workdir.is_dir() and set(os.listdir(workdir)) - BEFORE_CONFIG:
      raise InputError(
        f"{workdir}: not the folder of a run and not empty; choose another --workdir"
      )
    return {}
  saved = config_lib.load(workdir)
  if not steps:
    return {}
  config_lib.refuse_other_version(workdir, saved, config)
  changed = config_lib.differences(saved, config)
  _refuse_changes(workdir, changed, force)
  stored = _stored_cases(workdir)
  if {split: stored[split] for split in cases} != cases:
    raise InputError(
      f"{workdir}: was trained on other cases or classes than the data holds now, or its "
      f"{CASES_FILE} was changed; restore them or choose another --workdir"
    )
  if steps[-1] > total_steps:
    raise InputError(
      f"{workdir}: has seen {steps[-1]} batches, more than the {total_steps} asked; ask for "
      "more, or choose another --workdir"
    )
  return changed


def _names(config: ConfigDict, sources: Mapping[str, Source]) -> dict[str, list[str]]:
  """Names of the cases by split and, in the order of their numbers, of the classes."""
  names = class_names(config.data)[0] if config.data.class_column else []
  return {**{split: list(source.case_ids) for split, source in sources.items()}, CLASSES: names}


def _list(changed: Mapping[str, tuple[Any, Any]]) -> str:
  values = sorted(changed.items())
  return ", ".join(f"config.{field}={new!r} (was {old!r})" for field, (old, new) in values)


def _refuse_changes(workdir: Path, changed: Mapping[str, tuple[Any, Any]], force: bool) -> None:
  """Refuses changed fields, naming each with both values."""
  fixed = sorted(
    field for field in changed if config_lib.field_of(field).resume != config_lib.FORCE_ONLY
  )
  if fixed:
    names = ", ".join(f"config.{field}" for field in fixed)
    if fixed == ["eval.image_size"]:  # by default the last of train.image_sizes
      names += f" (to keep it: --config.eval.image_size={changed[fixed[0]][0]})"
    raise InputError(
      f"{workdir}: holds a run with another configuration: {_list(changed)}; {names} cannot change "
      "within a run, so resume it with its own configuration or choose another --workdir"
    )
  if changed and not force:
    raise InputError(
      f"{workdir}: holds a run with another configuration: {_list(changed)}; resume it with its "
      "own, choose another --workdir, or continue with the new values by --force"
    )


def note_earlier_cases(workdir: Path, seen: Mapping[str, list[str]]) -> None:
  """Records the cases that the weights a new run starts from have seen.

  Args:
    workdir: folder of the run, open.
    seen: names of the cases that the weights were trained on ("train") and selected by ("val").
  """
  cases = _stored_cases(workdir)
  selected = set(seen["val"]) - set(cases["val"])
  _store_cases(workdir, {**cases, BEFORE: [*seen["train"], *sorted(selected)]})


def read_cases(workdir: Path) -> dict[str, list[str]]:
  """Names of the cases that a network was trained on and selected by.

  Cases that the weights it started from had seen count as trained on, except those that both the
  weights and the run were selected by.

  Args:
    workdir: folder of the run.

  Returns:
    {"train": names, "val": names}.

  Raises:
    InputError: if the file is missing or damaged.
  """
  cases = _stored_cases(workdir)
  return {"train": list(dict.fromkeys([*cases["train"], *cases[BEFORE]])), "val": cases["val"]}


def _store_cases(workdir: Path, cases: Mapping[str, list[str]]) -> None:
  replace_file(workdir / CASES_FILE, json.dumps(cases) + "\n")


def _stored_cases(workdir: Path) -> dict[str, list[str]]:
  path = workdir / CASES_FILE
  try:
    cases = read_json(path)
    names = {split: list(cases[split]) for split in ("train", "val", BEFORE)}
    names[CLASSES] = list(cases.get(CLASSES, []))
    if not all(isinstance(name, str) for split in names.values() for name in split):
      raise TypeError("a name is not text")
    return names
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{path}: does not name the cases of the run ({error}); restore it, or start a new run in "
      "another --workdir, for without it no score can be known to be of unseen cases"
    ) from error
