"""Preparation: a public data set fetched, reduced to a working size and written once."""

from pathlib import Path

from ml_collections import ConfigDict

from medlitenet_jax import report
from medlitenet_jax.data.sources import SET_NAMES
from medlitenet_jax.errors import InputError


def prepare(config: ConfigDict) -> None:
  """Prepares the set that `config.data` names and prints what it holds.

  Args:
    config: resolved.

  Raises:
    InputError: if `config.data.source` is no public set, or the set's files cannot be used.
  """
  data = config.data
  if data.source not in SET_NAMES:
    raise InputError(
      f"config.data.source is {data.source!r}, which needs no preparation; --mode=prepare takes "
      f"one of {', '.join(SET_NAMES)}"
    )
  from medlitenet_jax.data.official import prepare_set  # TFDS takes its time

  raw = Path(data.raw) if data.raw else None
  builder = prepare_set(data.source, Path(data.root), raw, data.working_size)
  hashes = builder.info.metadata["split_hash"]
  rows = [
    (split, str(len(ids)), hashes[split])
    for split, ids in builder.info.metadata["case_ids"].items()
  ]
  print(report.table(("split", "cases", "hash"), rows))
  print(f"{builder.name} is prepared in {builder.data_dir}")
