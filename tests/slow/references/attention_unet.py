"""Attention U-Net in PyTorch: LeeJunHyun's plan and Oktay's in two dimensions, by their names."""

import torch
from torch import nn
from torch.nn import functional as F

# Ours number the decoder from the deepest stage, both of these from the finest level.
_LEVELS = [(stage, 6 - stage) for stage in (1, 2, 3, 4)]
_LEE = [
  (r"^bridge/", "encoder5/"),
  (r"^encoder(\d)/conv1/conv/", r"Conv\1/conv/0/"),
  (r"^encoder(\d)/conv1/norm/", r"Conv\1/conv/1/"),
  (r"^encoder(\d)/conv2/conv/", r"Conv\1/conv/3/"),
  (r"^encoder(\d)/conv2/norm/", r"Conv\1/conv/4/"),
  *(
    rename
    for stage, level in _LEVELS
    for rename in (
      (rf"^decoder{stage}/conv1/conv/", f"Up_conv{level}/conv/0/"),
      (rf"^decoder{stage}/conv1/norm/", f"Up_conv{level}/conv/1/"),
      (rf"^decoder{stage}/conv2/conv/", f"Up_conv{level}/conv/3/"),
      (rf"^decoder{stage}/conv2/norm/", f"Up_conv{level}/conv/4/"),
      (rf"^up{stage}/conv/", f"Up{level}/up/1/"),
      (rf"^up{stage}/norm/", f"Up{level}/up/2/"),
      (rf"^gate{stage}/", f"Att{level}/"),
    )
  ),
  (r"/coefficients/signal/", "/W_g/0/"),
  (r"/coefficients/signal_norm/", "/W_g/1/"),
  (r"/coefficients/skip/", "/W_x/0/"),
  (r"/coefficients/skip_norm/", "/W_x/1/"),
  (r"/coefficients/psi/", "/psi/0/"),
  (r"/coefficients/psi_norm/", "/psi/1/"),
  (r"^head/", "Conv_1x1/"),
]
_OKTAY = [
  (r"^encoder(\d)/", r"conv\1/"),
  (r"^bridge/", "center/"),
  (r"^signal/conv/", "gating/conv1/0/"),
  (r"^signal/norm/", "gating/conv1/1/"),
  *(
    rename
    for stage, level in _LEVELS
    for rename in (
      (rf"^decoder{stage}/", f"up_concat{level - 1}/conv/"),
      (rf"^gate{stage}/combine/conv/", f"attentionblock{level - 1}/combine_gates/0/"),
      (rf"^gate{stage}/combine/norm/", f"attentionblock{level - 1}/combine_gates/1/"),
      (rf"^gate{stage}/", f"attentionblock{level - 1}/gate_block_1/"),
      (rf"^head{stage}/", f"dsv{level - 1}/"),
    )
  ),
  (r"/coefficients/signal/", "/phi/"),
  (r"/coefficients/skip/", "/theta/"),
  (r"/coefficients/psi/", "/psi/"),
  (r"/out/", "/W/0/"),
  (r"/out_norm/", "/W/1/"),
  (r"/conv([12])/conv/", r"/conv\1/0/"),
  (r"/conv([12])/norm/", r"/conv\1/1/"),
  (r"^head/", "final/"),
]
# `build` fills it with those of the plan that it builds.
RENAMES: list[tuple[str, str]] = []


def block(inputs, outputs, side=3):
  return [nn.Conv2d(inputs, outputs, side, padding=side // 2), nn.BatchNorm2d(outputs), nn.ReLU()]


class ConvBlock(nn.Module):
  def __init__(self, inputs, outputs):
    super().__init__()
    self.conv = nn.Sequential(*block(inputs, outputs), *block(outputs, outputs))

  def forward(self, x):
    return self.conv(x)


class UpConv(nn.Module):
  def __init__(self, inputs, outputs):
    super().__init__()
    self.up = nn.Sequential(nn.Upsample(scale_factor=2), *block(inputs, outputs))

  def forward(self, x):
    return self.up(x)


class AttentionBlock(nn.Module):
  def __init__(self, channels):
    super().__init__()
    between = channels // 2
    self.W_g = nn.Sequential(nn.Conv2d(channels, between, 1), nn.BatchNorm2d(between))
    self.W_x = nn.Sequential(nn.Conv2d(channels, between, 1), nn.BatchNorm2d(between))
    self.psi = nn.Sequential(nn.Conv2d(between, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

  def forward(self, g, x):
    return x * self.psi(F.relu(self.W_g(g) + self.W_x(x)))


class Lee(nn.Module):
  def __init__(self):
    super().__init__()
    widths = (3, 64, 128, 256, 512, 1024)
    for level in range(1, 6):
      self.add_module(f"Conv{level}", ConvBlock(*widths[level - 1 : level + 1]))
    for level in range(2, 6):
      fine, coarse = widths[level - 1 : level + 1]
      self.add_module(f"Up{level}", UpConv(coarse, fine))
      self.add_module(f"Att{level}", AttentionBlock(fine))
      self.add_module(f"Up_conv{level}", ConvBlock(coarse, fine))
    self.Conv_1x1 = nn.Conv2d(64, 1, 1)

  def forward(self, x):
    x1 = self.Conv1(x)
    x2 = self.Conv2(F.max_pool2d(x1, 2))
    x3 = self.Conv3(F.max_pool2d(x2, 2))
    x4 = self.Conv4(F.max_pool2d(x3, 2))
    d = self.Conv5(F.max_pool2d(x4, 2))
    d = self.Up5(d)
    d = self.Up_conv5(torch.cat([self.Att5(d, x4), d], 1))
    d = self.Up4(d)
    d = self.Up_conv4(torch.cat([self.Att4(d, x3), d], 1))
    d = self.Up3(d)
    d = self.Up_conv3(torch.cat([self.Att3(d, x2), d], 1))
    d = self.Up2(d)
    d = self.Up_conv2(torch.cat([self.Att2(d, x1), d], 1))
    return self.Conv_1x1(d)


class Level(nn.Module):
  def __init__(self, inputs, outputs):
    super().__init__()
    self.conv1 = nn.Sequential(*block(inputs, outputs))
    self.conv2 = nn.Sequential(*block(outputs, outputs))

  def forward(self, x):
    return self.conv2(self.conv1(x))


class Gating(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.conv1 = nn.Sequential(*block(channels, channels, 1))

  def forward(self, x):
    return self.conv1(x)


class GridAttention(nn.Module):
  def __init__(self, channels, signal):
    super().__init__()
    self.theta = nn.Conv2d(channels, channels, 2, stride=2, bias=False)
    self.phi = nn.Conv2d(signal, channels, 1)
    self.psi = nn.Conv2d(channels, 1, 1)
    self.W = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))

  def forward(self, x, g):
    theta = self.theta(x)
    phi = F.interpolate(self.phi(g), theta.shape[2:], mode="bilinear")
    score = torch.sigmoid(self.psi(F.relu(theta + phi)))
    return self.W(F.interpolate(score, x.shape[2:], mode="bilinear").expand_as(x) * x)


class GatedSkip(nn.Module):
  def __init__(self, channels, signal):
    super().__init__()
    self.gate_block_1 = GridAttention(channels, signal)
    self.combine_gates = nn.Sequential(*block(channels, channels, 1))

  def forward(self, x, g):
    return self.combine_gates(self.gate_block_1(x, g))


class UpConcat(nn.Module):
  def __init__(self, coarse, fine):
    super().__init__()
    self.conv = Level(coarse + fine, fine)

  def forward(self, skip, x):
    x = F.interpolate(x, scale_factor=2, mode="bilinear")
    return self.conv(torch.cat([skip, x], 1))


class Oktay(nn.Module):
  def __init__(self, scale):
    super().__init__()
    a, b, c, d, e = (width // scale for width in (64, 128, 256, 512, 1024))
    self.conv1, self.conv2, self.conv3, self.conv4 = (
      Level(3, a),
      Level(a, b),
      Level(b, c),
      Level(c, d),
    )
    self.center = Level(d, e)
    self.gating = Gating(e)
    self.attentionblock4 = GatedSkip(d, e)
    self.attentionblock3 = GatedSkip(c, d)
    self.attentionblock2 = GatedSkip(b, c)
    self.up_concat4, self.up_concat3 = UpConcat(e, d), UpConcat(d, c)
    self.up_concat2, self.up_concat1 = UpConcat(c, b), UpConcat(b, a)
    self.dsv4, self.dsv3, self.dsv2, self.dsv1 = (nn.Conv2d(w, 1, 1) for w in (d, c, b, a))
    self.final = nn.Conv2d(4, 1, 1)

  def forward(self, x):
    size = x.shape[2:]
    conv1 = self.conv1(x)
    conv2 = self.conv2(F.max_pool2d(conv1, 2))
    conv3 = self.conv3(F.max_pool2d(conv2, 2))
    conv4 = self.conv4(F.max_pool2d(conv3, 2))
    centre = self.center(F.max_pool2d(conv4, 2))
    up4 = self.up_concat4(self.attentionblock4(conv4, self.gating(centre)), centre)
    up3 = self.up_concat3(self.attentionblock3(conv3, up4), up4)
    up2 = self.up_concat2(self.attentionblock2(conv2, up3), up3)
    up1 = self.up_concat1(conv1, up2)
    heads = ((self.dsv1, up1), (self.dsv2, up2), (self.dsv3, up3), (self.dsv4, up4))
    scores = [F.interpolate(head(up), size, mode="bilinear") for head, up in heads]
    return self.final(torch.cat(scores, 1))


def build(variant: str, size: int) -> nn.Module:
  del size
  if variant == "base":
    RENAMES[:] = _LEE
    return Lee()
  RENAMES[:] = _OKTAY
  return Oktay({"oktay": 1, "oktay_2": 2, "oktay_4": 4}[variant])
