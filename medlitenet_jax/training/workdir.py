"""The folder of a run: made for a new one, checked before an old one goes on."""

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
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import TEMPORARY_SUFFIX, read_json, replace_file
from medlitenet_jax.system.lock import LOCK_FILE, lock_folder
from medlitenet_jax.training.checkpoint import whole_steps

logger = logging.getLogger(__name__)

# Names of the cases of each split that the run reads, and of those that the weights it started from
# have seen before.
CASES_FILE = "cases.json"
BEFORE = "before"
# What a run may have left that was killed before it wrote its configuration.
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
  """Makes the folder of a new run, or checks that the run in it is the one that is asked for.

  The folder is this process's alone until the context ends; who only reads it need not ask. Until
  its first checkpoint a run has nothing to lose, and its configuration is replaced.

  Args:
    config: resolved.
    workdir: the folder.
    sources: of the splits that training reads; their cases are part of what a run is.
    total_steps: batches that the run will have seen in the end.
    force: whether the fields that are `FORCE_ONLY` may have other values than before.

  Yields:
    Nothing.

  Raises:
    InputError: if the folder holds another run, a longer one or one that is going on, or files but
      no run.
  """
  cases = {split: list(source.case_ids) for split, source in sources.items()}
  if not workdir.is_dir() and workdir.exists():
    raise InputError(f"{workdir}: is a file; choose another --workdir")
  saved = config_lib.load(workdir) if (workdir / config_lib.CONFIG_FILE).exists() else None
  steps = whole_steps(workdir)
  changed: dict[str, tuple[Any, Any]] = {}
  if saved is not None and steps:
    config_lib.refuse_other_version(workdir, saved, config)
    changed = config_lib.differences(saved, config)
    _refuse_changes(workdir, changed, force)
    stored = _stored_cases(workdir)
    if {split: stored[split] for split in cases} != cases:
      raise InputError(
        f"{workdir}: was trained on other cases than the data holds now, or its {CASES_FILE} was "
        "changed; restore them or choose another --workdir"
      )
    if steps[-1] > total_steps:
      raise InputError(
        f"{workdir}: has seen {steps[-1]} batches, more than the {total_steps} asked; ask for "
        "more, or choose another --workdir"
      )
  elif saved is None and workdir.is_dir() and set(os.listdir(workdir)) - BEFORE_CONFIG:
    raise InputError(f"{workdir}: not the folder of a run and not empty; choose another --workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  with lock_folder(workdir, "is training in it", "--workdir"):
    if changed:
      former = workdir / f"config.until_{steps[-1]}.json"
      if not former.exists():  # else a change between that made none of the N batches
        replace_file(former, (workdir / config_lib.CONFIG_FILE).read_text())
      logger.warning("Going on with %s; as it was: %s.", _list(changed), former)
    config_lib.save(config, workdir)
    if not steps:
      _store_cases(workdir, {**cases, BEFORE: []})
    yield


def _list(changed: Mapping[str, tuple[Any, Any]]) -> str:
  values = sorted(changed.items())
  return ", ".join(f"config.{field}={new!r} (was {old!r})" for field, (old, new) in values)


def _refuse_changes(workdir: Path, changed: Mapping[str, tuple[Any, Any]], force: bool) -> None:
  """Says field by field what is not as the run has it."""
  fixed = sorted(
    field for field in changed if config_lib.field_of(field).resume != config_lib.FORCE_ONLY
  )
  if fixed:
    names = ", ".join(f"config.{field}" for field in fixed)
    if fixed == ["eval.image_size"]:  # by default the last of train.image_sizes
      names += f" (to keep it: --config.eval.image_size={changed[fixed[0]][0]})"
    raise InputError(
      f"{workdir}: holds a run that {_list(changed)} would make another; {names} cannot change "
      "within a run: resume it with its own configuration or choose another --workdir"
    )
  if changed and not force:
    raise InputError(
      f"{workdir}: holds a run without {_list(changed)}; resume it with its own configuration, "
      "choose another --workdir, or go on with the new values by --force"
    )


def note_earlier_cases(workdir: Path, seen: Mapping[str, list[str]]) -> None:
  """Remembers what the weights that a new run starts from have seen.

  Args:
    workdir: folder of the run, open.
    seen: as `Weights` has it.
  """
  cases = _stored_cases(workdir)
  selected = set(seen["val"]) - set(cases["val"])
  _store_cases(workdir, {**cases, BEFORE: [*seen["train"], *sorted(selected)]})


def read_cases(workdir: Path) -> dict[str, list[str]]:
  """Names of the cases that a network was trained on and selected by.

  Whatever the weights it started from had seen counts as trained on, unless they and the run were
  both selected by it.

  Args:
    workdir: folder of the run.

  Returns:
    {"train": names, "val": names}.

  Raises:
    InputError: if the file is missing or damaged.
  """
  cases = _stored_cases(workdir)
  if BEFORE not in read_json(workdir / CASES_FILE) and config_lib.load(workdir).train.start_from:
    logger.warning(
      "%s: is older than the record of what the weights that the run started from had seen; those "
      "cases are not counted",
      workdir / CASES_FILE,
    )
  return {"train": list(dict.fromkeys([*cases["train"], *cases[BEFORE]])), "val": cases["val"]}


def _store_cases(workdir: Path, cases: Mapping[str, list[str]]) -> None:
  replace_file(workdir / CASES_FILE, json.dumps(cases) + "\n")


def _stored_cases(workdir: Path) -> dict[str, list[str]]:
  path = workdir / CASES_FILE
  try:
    cases = {BEFORE: [], **read_json(path)}
    names = {split: list(cases[split]) for split in ("train", "val", BEFORE)}
    if not all(isinstance(name, str) for split in names.values() for name in split):
      raise TypeError("a name is not text")
    return names
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{path}: does not name the cases of the run ({error}); restore it, for without it no score "
      "can be known to be of unseen cases"
    ) from error
