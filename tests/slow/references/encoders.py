"""Compares our encoders with those of torchvision, timm and segmentation_models_pytorch.

    python tests/slow/references/encoders.py NAME       (needs PyTorch and the three; NAME or "all")

Checks that `tests/encoder_files.py` has the names and shapes that they define, gives an encoder
random weights and statistics, runs it, and has the project's Python (--python) read the file by
`medlitenet_jax.formats.encoders` and run ours. Prints the largest difference of each feature map as
a share of its spread, and ends with status 1 if one is above 1e-4.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / "tests")]

# The network, the side of its images, and the modules whose results are compared.
NETWORKS = {
  "resnet34": ("fat_net", 96, ("resnet",)),
  "deit_tiny": ("fat_net", 96, ("transformer",)),
  "swin_tiny": ("swin_unet", 224, ("encoder",)),
  "swin_tiny_microsoft": ("swin_unet", 224, ("encoder",)),
  "r50_vit": ("transunet", 224, ("backbone", "transformer")),
  "r50_vit_google": ("transunet", 224, ("backbone", "transformer")),
  "mobilenet_v2": ("deeplab_v3_plus", 96, ("encoder",)),
  "mit_b0": ("segformer", 96, ("encoder",)),
}
# Factor of the last norms of R50's residual units. At 1 its sixteen units enlarge rounding so much
# that float32 in PyTorch is 3e-4 of the spread off float64.
DAMPED = 0.25


def resnet34(x):
  """Without max-pooling, as FAT-Net has it."""
  from torch import nn
  from torchvision.models import resnet34

  network = resnet34()
  network.maxpool = nn.Identity()

  def run():
    y = network.relu(network.bn1(network.conv1(x)))
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
      y = layer(y)
      yield y.permute(0, 2, 3, 1)

  return network, run


def deit_tiny(x):
  """Without positions, extra tokens and last norm, as FAT-Net has it."""
  import timm

  network = timm.create_model("deit_tiny_distilled_patch16_224", img_size=x.shape[-1])

  def run():
    yield network.blocks(network.patch_embed(x)).unflatten(1, [x.shape[-1] // 16] * 2)

  return network, run


def swin_tiny(x):
  """With two blocks in the third stage, as Swin-Unet has it."""
  import timm

  network = timm.create_model("swin_tiny_patch4_window7_224")

  def run():
    y = network.patch_embed(x)
    for i, layer in enumerate(network.layers):
      y = layer.downsample(y)
      if i < 3:
        yield y
      for block in layer.blocks[:2]:
        y = block(y)
    yield network.norm(y)

  return network, run


def r50_vit(x):
  """With the paddings, epsilons and groups of TransUNet, which differ from timm's."""
  import timm
  from timm.layers import StdConv2dSame
  from torch import nn

  network = timm.create_model("vit_base_r50_s16_224", num_classes=0)
  backbone = network.patch_embed.backbone
  for name, module in backbone.named_modules():
    if isinstance(module, StdConv2dSame):
      module.eps, module.same_pad = 1e-5, False
      module.padding = tuple(side // 2 for side in module.kernel_size)
    elif isinstance(module, nn.GroupNorm):
      module.eps = 1e-6
      if "downsample" in name:
        module.eps, module.num_groups = 1e-5, module.num_channels
  backbone.stem.pool = nn.MaxPool2d(3, 2)

  def run():
    y = backbone.stem.norm(backbone.stem.conv(x))
    yield y.permute(0, 2, 3, 1)
    y = backbone.stem.pool(y)
    for stage in backbone.stages:
      y = stage(y)
      yield y.permute(0, 2, 3, 1)
    y = network.patch_embed.proj(y).flatten(2).mT + network.pos_embed[:, 1:]
    yield network.norm(network.blocks(y)).unflatten(1, (14, 14))

  return network, run


def mobilenet_v2(x):
  """With dilated convolutions in place of the last halving, as DeepLabV3+ has it."""
  from torch import nn
  from torchvision.models import mobilenet_v2

  network = mobilenet_v2()
  for module in network.features[14:18].modules():
    if isinstance(module, nn.Conv2d) and module.groups > 1:
      module.stride, module.dilation, module.padding = (1, 1), (2, 2), (2, 2)

  def run():
    y = x
    for i, feature in enumerate(network.features):
      y = feature(y)
      if i in (1, 3, 6, 10, 13, 16, 17, 18):
        yield y.permute(0, 2, 3, 1)

  return network, run


def mit_b0(x):
  from segmentation_models_pytorch.encoders import get_encoder

  network = get_encoder("mit_b0", weights=None)
  return network, lambda: (y.permute(0, 2, 3, 1) for y in network(x)[-4:])


def randomise(network):
  """So that no array could stand in for another: most are alike at a random start."""
  import torch

  with torch.no_grad():
    for name, value in network.state_dict().items():
      if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
        value.uniform_(0.5, 1.5).mul_(DAMPED if name.endswith("norm3.weight") else 1)
      elif name.endswith(("running_mean", "bias")):
        value.normal_(0, 0.1)
      elif name.endswith("weight"):
        value.normal_(0, (1.5 / value[0].numel()) ** 0.5)
      elif value.is_floating_point():  # tokens and positions
        value.normal_(0, 0.5)


def write_google(path: Path) -> None:
  import encoder_files
  import numpy as np

  rng, arrays = np.random.default_rng(0), {}
  for name, shape in encoder_files.google_r50_vit().items():
    if name.endswith("scale"):
      value = rng.uniform(0.5, 1.5, shape) * (DAMPED if name.endswith("gn3/scale") else 1)
    else:
      last = 2 if name.endswith(("query/kernel", "key/kernel", "value/kernel")) else 1
      inputs = np.prod(shape[:-last])
      kernel = name.endswith("kernel")
      value = rng.normal(0, (1.5 / inputs) ** 0.5 if kernel else 0.1, shape)
    arrays[name] = value.astype(np.float32)
  np.savez(path, **arrays)


def theirs(name: str, folder: Path) -> None:
  import encoder_files
  import torch
  from safetensors.torch import save_file

  torch.manual_seed(0)
  microsoft, google = name.endswith("_microsoft"), name.endswith("_google")
  plain = name.removesuffix("_microsoft").removesuffix("_google")
  x = torch.randn(2, 3, NETWORKS[name][1], NETWORKS[name][1])
  network, run = globals()[plain](x)
  network = network.eval()
  expected = getattr(encoder_files, plain)()
  defined = {k: tuple(value.shape) for k, value in network.state_dict().items()}
  if plain == "deit_tiny":  # of fewer tokens here
    expected["pos_embed"] = defined["pos_embed"]
  if plain == "mit_b0":  # the library drops its classifier
    expected = {k: shape for k, shape in expected.items() if not k.startswith("head.")}
  if defined != expected:
    differ = sorted({*defined.items()} ^ {*expected.items()})
    raise ValueError(f"{name}: tests/encoder_files.py has other arrays: {differ[:4]}")
  if google:  # timm's own reading of such a file tells what belongs where
    write_google(folder / "state.npz")
    network.load_pretrained(str(folder / "state.npz"))
  else:
    randomise(network)
    state = {k: v.clone().contiguous() for k, v in network.state_dict().items()}
    if microsoft:
      for i in (1, 2, 3):
        for leaf in ("norm.weight", "norm.bias", "reduction.weight"):
          state[f"layers.{i - 1}.downsample.{leaf}."] = state.pop(f"layers.{i}.downsample.{leaf}")
      state = {k.rstrip("."): v for k, v in state.items()}
    save_file(state, folder / "state.safetensors", {"format": "pt"})
  with torch.no_grad():
    maps = {f"map{i}": y.contiguous() for i, y in enumerate(run())}
  image = x.permute(0, 2, 3, 1).contiguous()
  save_file({"image": image, **maps}, folder / "run.safetensors")


def ours(name: str, folder: Path) -> None:
  import jax
  import jax.numpy as jnp
  import numpy as np
  from safetensors.numpy import load_file

  from medlitenet_jax.formats.encoders import read_encoder
  from medlitenet_jax.models.registry import create_model, resolve_model, variable_shapes
  from medlitenet_jax.training.state import fit

  network, size, modules = NETWORKS[name]
  fields = resolve_model({"name": network, "variant": "base"})
  (path,) = folder.glob("state.*")
  found = read_encoder(path, fields, size)
  rest = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variable_shapes(fields, size))
  variables, _ = fit(found.variables, rest)
  model, run = create_model(fields, jnp.float32), load_file(folder / "run.safetensors")

  def encoded(variables, image):
    _, kept = model.apply(
      variables,
      image,
      capture_intermediates=lambda module, _: "/".join(module.path) in modules,
      mutable=["intermediates"],
    )
    return [kept["intermediates"][module]["__call__"] for module in modules]

  maps = jax.tree.leaves(jax.jit(encoded)(variables, run.pop("image")))
  differences = [
    float(np.abs(run[f"map{i}"] - value).max() / run[f"map{i}"].std())
    for i, value in enumerate(maps)
  ]
  if len(maps) != len(run):
    raise ValueError(f"{name}: {len(maps)} maps, and theirs are {len(run)}")
  shown = ", ".join(f"{difference:.1e}" for difference in differences)
  print(f"{name}: takes {found.taken} arrays, leaves out {found.left_out}: {shown}")
  sys.exit(not max(differences) < 1e-4)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("name", choices=("all", *NETWORKS))
  parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"))
  parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.folder:
    ours(flags.name, flags.folder)
  failed = False
  for name in NETWORKS if flags.name == "all" else [flags.name]:
    with tempfile.TemporaryDirectory() as folder:
      theirs(name, Path(folder))
      again = [flags.python, __file__, name, f"--folder={folder}"]
      failed |= subprocess.run(again, check=False).returncode != 0
  sys.exit(failed)


if __name__ == "__main__":
  main()
