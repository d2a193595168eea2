"""U-Net++ in PyTorch, with the parameters' names of the popular port."""

import torch
from torch import nn

RENAMES = [
  (r"^x(\d)_(\d)/conv", r"conv\1_\2/conv"),
  (r"^x(\d)_(\d)/norm", r"conv\1_\2/bn"),
  (r"^head/", "final/"),
]
TRANSPOSED = r"^up\d_\d/"
WIDTHS = (32, 64, 128, 256, 512)


class Block(nn.Module):
  def __init__(self, inputs, outputs, norm):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
    self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
    self.bn1, self.bn2 = (nn.BatchNorm2d(outputs) if norm else nn.Identity() for _ in "12")
    self.drop = nn.Identity() if norm else nn.Dropout(0.5)

  def forward(self, x):
    x = self.drop(torch.relu(self.bn1(self.conv1(x))))
    return self.drop(torch.relu(self.bn2(self.conv2(x))))


class Nested(nn.Module):
  """Written out node by node, so that the wiring is not a loop like ours."""

  def __init__(self, norm):
    super().__init__()
    a, b, c, d, e = WIDTHS
    nodes = {
      "0_0": (3, a),
      "1_0": (a, b),
      "2_0": (b, c),
      "3_0": (c, d),
      "4_0": (d, e),
      "0_1": (a, a),
      "1_1": (b, b),
      "2_1": (c, c),
      "3_1": (d, d),
      "0_2": (a * 2, a),
      "1_2": (b * 2, b),
      "2_2": (c * 2, c),
      "0_3": (a * 3, a),
      "1_3": (b * 3, b),
      "0_4": (a * 4, a),
    }
    for place, (inputs, outputs) in nodes.items():
      level, step = map(int, place.split("_"))
      if step:  # what comes from below: as wide as below, or what the transposed convolution makes
        inputs += WIDTHS[level + 1] if norm else outputs
        if norm:
          up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
          up = nn.ConvTranspose2d(WIDTHS[level + 1], outputs, 2, stride=2)
        self.add_module(f"up{place}", up)
      self.add_module(f"conv{place}", Block(inputs, outputs, norm))
    self.pool = nn.MaxPool2d(2)
    self.final = nn.Conv2d(a, 1, 1)

  def forward(self, x):
    pool, cat = self.pool, lambda *maps: torch.cat(maps, 1)
    x00 = self.conv0_0(x)
    x10 = self.conv1_0(pool(x00))
    x01 = self.conv0_1(cat(x00, self.up0_1(x10)))
    x20 = self.conv2_0(pool(x10))
    x11 = self.conv1_1(cat(x10, self.up1_1(x20)))
    x02 = self.conv0_2(cat(x00, x01, self.up0_2(x11)))
    x30 = self.conv3_0(pool(x20))
    x21 = self.conv2_1(cat(x20, self.up2_1(x30)))
    x12 = self.conv1_2(cat(x10, x11, self.up1_2(x21)))
    x03 = self.conv0_3(cat(x00, x01, x02, self.up0_3(x12)))
    x40 = self.conv4_0(pool(x30))
    x31 = self.conv3_1(cat(x30, self.up3_1(x40)))
    x22 = self.conv2_2(cat(x20, x21, self.up2_2(x31)))
    x13 = self.conv1_3(cat(x10, x11, x12, self.up1_3(x22)))
    x04 = self.conv0_4(cat(x00, x01, x02, x03, self.up0_4(x13)))
    return self.final(x04)


def build(variant: str, size: int) -> nn.Module:
  del size
  return Nested({"base": False, "batch_norm": True}[variant])
