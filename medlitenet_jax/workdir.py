"""The folder of a run: made for a new one, checked before an old one goes on."""

import json
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from medlitenet_jax import config as config_lib
from medlitenet_jax.checkpoint import CHECKPOINT_FOLDER
from medlitenet_jax.data.sources import Source
from medlitenet_jax.errors import InputError
from medlitenet_jax.files import read_json
from medlitenet_jax.report import replace_file

CASES_FILE = "cases.json"  # names of the cases of each split that the run reads


def open_workdir(config: ConfigDict, workdir: Path, sources: Mapping[str, Source]) -> None:
  """Makes the folder of a new run, or checks that the run in it is the one that is asked for.

  Until its first checkpoint a run has nothing to lose, and its configuration is replaced.

  Args:
    config: resolved.
    workdir: the folder.
    sources: of the splits that training reads; their cases are part of what a run is.

  Raises:
    InputError: if the folder holds another run, or files but no run.
  """
  text = json.dumps({split: list(source.case_ids) for split, source in sources.items()}) + "\n"
  if not workdir.is_dir() and workdir.exists():
    raise InputError(f"{workdir}: is a file; choose another --workdir")
  saved = config_lib.load(workdir) if (workdir / config_lib.CONFIG_FILE).exists() else None
  if saved is not None and any((workdir / CHECKPOINT_FOLDER).glob("[0-9]*")):
    changed = config_lib.differences(config_lib.with_later_fields(saved, config), config)
    if changed:
      field, (old, new) = min(changed.items())
      more = f" and {len(changed) - 1} more fields" if len(changed) > 1 else ""
      raise InputError(
        f"{workdir}: holds a run with config.{field}={old!r}, not {new!r}{more}; resume it with "
        "its own configuration or choose another --workdir"
      )
    if (workdir / CASES_FILE).read_text() != text:
      raise InputError(
        f"{workdir}: was trained on other cases than the data holds now, or its {CASES_FILE} is "
        "damaged; restore them or choose another --workdir"
      )
  elif saved is None and workdir.is_dir() and any(workdir.iterdir()):
    raise InputError(f"{workdir}: not the folder of a run and not empty; choose another --workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  config_lib.save(config, workdir)
  replace_file(workdir / CASES_FILE, text)


def read_cases(workdir: Path) -> dict[str, list[str]]:
  """Names of the cases that a run was trained on and selected by.

  Args:
    workdir: folder of the run.

  Returns:
    {"train": names, "val": names}.

  Raises:
    InputError: if the file is missing or damaged.
  """
  path = workdir / CASES_FILE
  try:
    cases = read_json(path)
    names = {split: list(cases[split]) for split in ("train", "val")}
    if not all(isinstance(name, str) for split in names.values() for name in split):
      raise TypeError("a name is not text")
    return names
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{path}: does not name the cases of the run ({error}); restore it, for without it no score "
      "can be known to be of unseen cases"
    ) from error
