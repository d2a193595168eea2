"""Preparation: a public data set reduced to a working size, or generated cases written as files."""

import logging
import shlex
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from medlitenet_jax import recipes
from medlitenet_jax.data.cases import split_hash
from medlitenet_jax.data.images.image_files import write_color, write_mask
from medlitenet_jax.data.sources import SET_NAMES, create_source
from medlitenet_jax.data.splits import SPLITS, SPLITS_FILE
from medlitenet_jax.modes.call import Call, begin, resolve_recipe
from medlitenet_jax.system import tables
from medlitenet_jax.system.errors import InputError, Way
from medlitenet_jax.system.files import claim_folder
from medlitenet_jax.system.starts import record_start

logger = logging.getLogger(__name__)

GENERATED_FILE = "generated.json"  # what a folder of generated cases was drawn from


def main(call: Call) -> None:
  """Prepares the data set of the recipe; see `prepare`."""
  begin(call, call.output)
  prepare(resolve_recipe(call))


def prepare(config: ConfigDict) -> None:
  """Prepares the set that `config.data` names and prints what it holds.

  Args:
    config: resolved.

  Raises:
    InputError: if `config.data.source` needs no preparation, or the files of the set, or
      `config.data.root`, cannot be used.
  """
  data = config.data
  if data.source == "synthetic":
    cases = _write_generated(config)
    logger.info("Written as --config.data.source=folder reads them: %s", data.root)
  elif data.source in SET_NAMES:
    from medlitenet_jax.data.public.official import prepare_set  # TFDS takes its time

    raw = Path(data.raw) if data.raw else None
    builder = prepare_set(data.source, Path(data.root), raw, data.working_size)
    cases = builder.info.metadata["case_ids"]
    logger.info("%s is prepared in %s", builder.name, builder.data_dir)
  else:
    raise InputError(
      f"config.data.source is {data.source!r}, which needs no preparation; --mode=prepare takes "
      f"one of synthetic, {', '.join(SET_NAMES)}"
    )
  rows = [(split, str(len(ids)), split_hash(ids)) for split, ids in cases.items()]
  print(tables.table(("split", "cases", "hash"), rows))


def make_ready(call: Call, config: ConfigDict) -> None:
  """Prepares a public set that is asked for and not prepared, if its archives are at hand.

  Args:
    call: the command line.
    config: resolved from it.

  Raises:
    InputError: if the archives are not at hand, with the ways on; or cannot be used.
  """
  data = config.data
  if data.source not in SET_NAMES:
    return
  # A cheap look: whether what is there is whole is found out when it is opened.
  if (Path(data.root) / data.source / str(data.working_size)).is_dir():
    return
  # Several processes would prepare it several times over, and a dry run writes nothing.
  if data.raw and jax.process_count() == 1 and not call.dry_run:
    prepare(config)
  else:
    raise InputError(f"{data.root}: {data.source} is not prepared there", _ways(call, config))


def _ways(call: Call, config: ConfigDict) -> list[Way]:
  """What can be done where a public set is not prepared."""
  file = call.recipe_file
  shown = f"configs/{file.name}" if file.parent == recipes.FOLDER else str(file)
  recipe = shlex.quote(f"--config={shown}")
  own = [f"--config.{k}={v}" for k, v in call.overrides.items() if k.startswith("data.")]
  root = Path(config.data.root)
  has_pairs = (root / "images").is_dir() and (root / "masks").is_dir()
  folder = shlex.quote(f"--config.data.root={root}") if has_pairs else "--config.data.root=FOLDER"
  size = " (13 GB)" if config.data.source == "isic2018" and not config.data.raw else ""
  return [
    Way(
      f"fetch and prepare it once{size}, then start again",
      " ".join([call.start, "--mode=prepare", recipe, *map(shlex.quote, own)]),
    ),
    Way(
      "train on a folder of your own, with images/ and masks/ in it",
      f"{call.start} {recipe} --config.data.source=folder {folder}",
    ),
    Way(
      "try it on generated photographs, without a download",
      f"{call.start} --config=configs/quickstart.py",
    ),
  ]


def _write_generated(config: ConfigDict) -> dict[str, list[str]]:
  """Draws the generated cases into a folder of their own, those that are not there yet.

  Returns:
    Names of the cases by split.
  """
  root, suffix = Path(config.data.root), config.data.mask_suffix
  sources = {split: create_source(config.data, split, config.seed) for split in SPLITS}
  cases = {split: list(source.case_ids) for split, source in sources.items()}
  drawn_from = {
    "seed": config.seed,
    "image_size": config.data.synthetic.image_size,
    "mask_suffix": suffix,
    "cases": {split: len(ids) for split, ids in cases.items()},
  }
  claim_folder(root, GENERATED_FILE, drawn_from, "--config.data.root")
  record_start(root)
  # First, so that a folder without all of its cases is refused.
  rows = [{"id": name, "split": split} for split, ids in cases.items() for name in ids]
  tables.write_csv(root / SPLITS_FILE, rows)
  for name in ("images", "masks"):
    (root / name).mkdir(exist_ok=True)
  left = [
    (source, index)
    for source in sources.values()
    for index, name in enumerate(source.case_ids)
    if not (root / "masks" / f"{name}{suffix}.png").exists()
  ]
  for source, index in tqdm(left, unit="case", desc="draw", dynamic_ncols=True):
    case = source[index]
    write_color(root / "images" / f"{case.case_id}.png", case.image)
    write_mask(root / "masks" / f"{case.case_id}{suffix}.png", case.mask)
  return cases
