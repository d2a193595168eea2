"""Compares our networks with independent ones in PyTorch, on random weights and photographs.

    python tests/slow/references/compare.py NAME VARIANT SIZE        (needs PyTorch)

Builds the network of `tests/slow/references/NAME.py` with random weights and statistics, runs it,
and has the project's Python (--python) load the same weights and run ours. Prints the largest
difference of the logits as a share of their spread, and how many multiply-adds of convolutions and
matrix products each has for a photograph. Ends with status 1 if logits differ by more than 1e-4, or
multiply-adds by more than 2 %.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]


def theirs(name: str, variant: str, size: int, folder: Path) -> None:
  import torch
  from safetensors.torch import save_file
  from torch.utils.flop_counter import FlopCounterMode

  module = importlib.import_module(name)
  torch.manual_seed(0)
  network = module.build(variant, size).eval()
  with torch.no_grad():
    for key, value in network.state_dict().items():
      if key.endswith("running_var"):
        value.uniform_(0.5, 1.5)
      elif key.endswith(("running_mean", "bias")):
        value.normal_(0, 0.1)
      elif value.ndim == 1 and value.is_floating_point():
        value.uniform_(0.5, 1.5)
    image = torch.randn(2, 3, size, size)
    with FlopCounterMode(display=False) as counter:
      logits = network(image)
  state = {k: v.clone().contiguous() for k, v in network.state_dict().items()}
  save_file(state, folder / "state.safetensors")
  save_file(
    {"image": image.permute(0, 2, 3, 1).contiguous(), "logits": logits[:, 0].contiguous()},
    folder / "run.safetensors",
  )
  names = {"renames": module.RENAMES, "transposed": getattr(module, "TRANSPOSED", "$^")}
  multiply_adds = counter.get_total_flops() / 2 / len(image)
  notes = {"names": names, "multiply_adds": multiply_adds}
  (folder / "notes.json").write_text(json.dumps(notes))


def ours(name: str, variant: str, size: int, folder: Path) -> None:
  import jax
  import jax.numpy as jnp
  import numpy as np
  from safetensors.numpy import load_file

  from medlitenet_jax.formats.state_dict import from_pytorch
  from medlitenet_jax.models.registry import create_model, resolve_model
  from medlitenet_jax.models.structure import inspect_model
  from medlitenet_jax.speed.parts import count_forward

  run = load_file(folder / "run.safetensors")
  fields = resolve_model({"name": name, "variant": variant})
  model = create_model(fields, jnp.float32)
  notes = json.loads((folder / "notes.json").read_text())
  state = load_file(folder / "state.safetensors")
  variables = from_pytorch(state, inspect_model(model, size).shapes, **notes["names"])
  logits = jax.jit(model.apply)(variables, run["image"])["mask"][..., 0]
  difference = float(np.abs(logits - run["logits"]).max() / run["logits"].std())
  counted = count_forward(fields, jnp.float32, 1, size).flops / 2
  expected = notes["multiply_adds"]
  print(
    f"{name} {variant} at {size}: {difference:.1e} of the spread of the logits; "
    f"{counted / 1e9:.3f} G multiply-adds, theirs {expected / 1e9:.3f} G"
  )
  sys.exit(difference > 1e-4 or abs(counted / expected - 1) > 0.02)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("name")
  parser.add_argument("variant")
  parser.add_argument("size", type=int)
  parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"))
  parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.folder:
    ours(flags.name, flags.variant, flags.size, flags.folder)
  with tempfile.TemporaryDirectory() as folder:
    theirs(flags.name, flags.variant, flags.size, Path(folder))
    again = [flags.python, __file__, *sys.argv[1:], f"--folder={folder}"]
    sys.exit(subprocess.run(again, check=False).returncode)


if __name__ == "__main__":
  main()
