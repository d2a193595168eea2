"""Where the recipes and the default folder for runs lie, in a clone and when installed.

A clone has `configs/` and `runs/` beside this package. A wheel has the recipes inside it, as
`medlitenet_jax.configs`, and runs go to `runs/` of the current folder.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = (_PACKAGE / "configs").is_dir()
FOLDER = (_PACKAGE if _INSTALLED else _PACKAGE.parent) / "configs"
RUNS = Path("runs") if _INSTALLED else _PACKAGE.parent / "runs"
BASE = FOLDER / "base.py"


def find_recipe(name: str) -> str:
  """The path of a recipe.

  Args:
    name: of a file, as the command line has it.

  Returns:
    The same where there is such a file. Otherwise, for `configs/NAME.py` and `NAME.py`, where NAME
    may begin with `table1/`, the recipe of that name that came with the project; the same again if
    there is none.
  """
  path = Path(name)
  inside = path.relative_to("configs") if path.parts[0] == "configs" else path
  own = FOLDER / inside
  if not path.is_file() and inside.parent in (Path(), Path("table1")) and own.is_file():
    return str(own)
  return name


def load(path: Path) -> Any:
  """Executes the file of a recipe; returns what its `get_config()` does, raises what it raises."""
  loader = importlib.machinery.SourceFileLoader("recipe", str(path))
  spec = importlib.util.spec_from_loader(loader.name, loader)
  if spec is None:
    raise ImportError(f"{path}: cannot be loaded")
  module = importlib.util.module_from_spec(spec)
  sys.modules[loader.name] = module  # where a dataclass looks for its module
  loader.exec_module(module)
  return module.get_config()


def make_importable() -> None:
  """Lets recipes say `from configs import base` and get the base recipe that came with the project.

  The only place that gives `configs` its meaning: a wheel has no top-level package of that name,
  and another project's must not be taken for it.
  """
  if "configs" in sys.modules:
    return
  spec = importlib.util.spec_from_file_location(
    "configs", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
  )
  if spec is None or spec.loader is None:
    raise ImportError(f"{FOLDER}: no recipes there")
  sys.modules["configs"] = module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
