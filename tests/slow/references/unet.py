"""U-Net in PyTorch, with the parameters' names of the common public one."""

import torch
from torch import nn

RENAMES = [
  (r"^encoder1/", "inc/"),
  *((rf"^encoder{level + 1}/", f"down{level}/maxpool_conv/1/") for level in (1, 2, 3)),
  (r"^bridge/", "down4/maxpool_conv/1/"),
  (r"^up(\d)/", r"up\1/up/"),
  (r"^decoder(\d)/", r"up\1/conv/"),
  (r"^head/", "outc/conv/"),
  (r"/conv1/conv/", "/double_conv/0/"),
  (r"/conv1/norm/", "/double_conv/1/"),
  (r"/conv2/conv/", "/double_conv/3/"),
  (r"/conv2/norm/", "/double_conv/4/"),
]
TRANSPOSED = r"^up\d/"


class Twice(nn.Module):
  def __init__(self, inputs, middle, outputs):
    super().__init__()
    layers = []
    for a, b in ((inputs, middle), (middle, outputs)):
      layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    self.double_conv = nn.Sequential(*layers)

  def forward(self, x):
    return self.double_conv(x)


class Down(nn.Module):
  def __init__(self, inputs, outputs):
    super().__init__()
    self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), Twice(inputs, outputs, outputs))

  def forward(self, x):
    return self.maxpool_conv(x)


class Up(nn.Module):
  def __init__(self, inputs, outputs, bilinear):
    super().__init__()
    if bilinear:
      self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
      self.conv = Twice(inputs, inputs // 2, outputs)
    else:
      self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
      self.conv = Twice(inputs, outputs, outputs)

  def forward(self, x, skip):
    return self.conv(torch.cat([skip, self.up(x)], 1))


class Head(nn.Module):
  def __init__(self, inputs):
    super().__init__()
    self.conv = nn.Conv2d(inputs, 1, 1)

  def forward(self, x):
    return self.conv(x)


class UNet(nn.Module):
  def __init__(self, bilinear):
    super().__init__()
    share = 2 if bilinear else 1
    self.inc = Twice(3, 64, 64)
    self.down1, self.down2, self.down3 = Down(64, 128), Down(128, 256), Down(256, 512)
    self.down4 = Down(512, 1024 // share)
    self.up1 = Up(1024, 512 // share, bilinear)
    self.up2 = Up(512, 256 // share, bilinear)
    self.up3 = Up(256, 128 // share, bilinear)
    self.up4 = Up(128, 64, bilinear)
    self.outc = Head(64)

  def forward(self, x):
    a = self.inc(x)
    b = self.down1(a)
    c = self.down2(b)
    d = self.down3(c)
    x = self.up1(self.down4(d), d)
    x = self.up2(x, c)
    x = self.up3(x, b)
    return self.outc(self.up4(x, a))


def build(variant: str, size: int) -> nn.Module:
  del size
  return UNet({"base": False, "bilinear": True}[variant])
