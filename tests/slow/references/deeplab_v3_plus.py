"""DeepLabV3+ on MobileNetV2 in PyTorch, named as in torchvision and segmentation_models_pytorch."""

import torch
from torch import nn
from torch.nn import functional as F

# Of MobileNetV2's stages at output stride 16: expansion, channels, blocks, stride, dilation.
PLAN = [
  (1, 16, 1, 1, 1),
  (6, 24, 2, 2, 1),
  (6, 32, 3, 2, 1),
  (6, 64, 4, 2, 1),
  (6, 96, 3, 1, 1),
  (6, 160, 3, 1, 2),
  (6, 320, 1, 1, 2),
]


def _encoder_renames():
  """Blocks are numbered through in `features`, and layers within blocks."""
  number = 1
  for stage, (expansion, _, blocks, _, _) in enumerate(PLAN, start=1):
    for block in range(1, blocks + 1):
      ours, theirs = f"^encoder/stage{stage}_block{block}", f"encoder/features/{number}/conv"
      layers = ["expand", "depthwise"] if expansion > 1 else ["depthwise"]
      for i, layer in enumerate(layers):
        yield rf"{ours}/{layer}/", f"{theirs}/{i}/0/"
        yield rf"{ours}/{layer}_norm/", f"{theirs}/{i}/1/"
      yield rf"{ours}/project/", f"{theirs}/{len(layers)}/"
      yield rf"{ours}/project_norm/", f"{theirs}/{len(layers) + 1}/"
      number += 1
  for ours, at in (("stem", 0), ("last", number)):
    yield rf"^encoder/{ours}/", f"encoder/features/{at}/0/"
    yield rf"^encoder/{ours}_norm/", f"encoder/features/{at}/1/"


def _separable(ours, conv, norm):
  return [
    (rf"^{ours}/depthwise/", f"decoder/{conv}/0/"),
    (rf"^{ours}/pointwise/conv/", f"decoder/{conv}/1/"),
    (rf"^{ours}/pointwise/norm/", f"decoder/{norm}/"),
  ]


def _pointwise(ours, theirs):
  return [
    (rf"^{ours}/conv/", f"decoder/{theirs}/0/"),
    (rf"^{ours}/norm/", f"decoder/{theirs}/1/"),
  ]


RENAMES = [
  # First, because others become "decoder" too.
  *_separable("decoder", "block2/0", "block2/1"),
  *_encoder_renames(),
  *_pointwise("aspp/centre", "aspp/0/convs/0"),
  *(
    rename
    for i, dilation in enumerate((12, 24, 36), start=1)
    for rename in _separable(
      f"aspp/dilation{dilation}", f"aspp/0/convs/{i}/0", f"aspp/0/convs/{i}/1"
    )
  ),
  (r"^aspp/pool/conv/", "decoder/aspp/0/convs/4/1/"),
  (r"^aspp/pool/norm/", "decoder/aspp/0/convs/4/2/"),
  *_pointwise("aspp/fuse", "aspp/0/project"),
  *_separable("refine", "aspp/1", "aspp/2"),
  *_pointwise("skip", "block1"),
  (r"^head/", "segmentation_head/0/"),
]


def layer(inputs, outputs, side=1, activation=nn.ReLU6, **how):
  how = {"padding": how.get("dilation", 1) * (side // 2), "bias": False, **how}
  conv = nn.Conv2d(inputs, outputs, side, **how)
  return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


def separable(inputs, outputs, dilation=1):
  around = {"padding": dilation, "dilation": dilation, "groups": inputs}
  depthwise = nn.Conv2d(inputs, inputs, 3, bias=False, **around)
  return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1, bias=False))


def separable_layer(inputs, outputs, dilation=1):
  return nn.Sequential(separable(inputs, outputs, dilation), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
  def __init__(self, expansion, inputs, outputs, stride, dilation):
    super().__init__()
    wide = expansion * inputs
    self.conv = nn.Sequential(
      *([layer(inputs, wide)] if expansion > 1 else []),
      layer(wide, wide, 3, stride=stride, dilation=dilation, groups=wide),
      nn.Conv2d(wide, outputs, 1, bias=False),
      nn.BatchNorm2d(outputs),
    )
    self.adds = stride == 1 and inputs == outputs

  def forward(self, x):
    return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
  def __init__(self):
    super().__init__()
    features, inputs = [layer(3, 32, 3, stride=2)], 32
    for expansion, outputs, blocks, stride, dilation in PLAN:
      for block in range(blocks):
        now = 1 if block else stride
        features.append(Residual(expansion, inputs, outputs, now, dilation))
        inputs = outputs
    features.append(layer(inputs, 1280))
    self.features = nn.Sequential(*features)

  def forward(self, x):
    skip = self.features[:4](x)
    return skip, self.features[4:](skip)


class Pyramid(nn.Module):
  def __init__(self):
    super().__init__()
    self.convs = nn.ModuleList(
      [
        layer(1280, 256, activation=nn.ReLU),
        *(separable_layer(1280, 256, dilation) for dilation in (12, 24, 36)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), *layer(1280, 256, activation=nn.ReLU)),
      ]
    )
    self.project = layer(5 * 256, 256, activation=nn.ReLU)

  def forward(self, x):
    *maps, mean = (conv(x) for conv in self.convs)
    joined = torch.cat([*maps, mean.expand_as(maps[0])], 1)
    return F.dropout(self.project(joined), 0.5, self.training)


class Decoder(nn.Module):
  def __init__(self):
    super().__init__()
    self.aspp = nn.Sequential(Pyramid(), *separable_layer(256, 256))
    self.block1 = layer(24, 48, activation=nn.ReLU)
    self.block2 = separable_layer(256 + 48, 256)

  def forward(self, skip, deep):
    x = F.interpolate(self.aspp(deep), scale_factor=4, mode="bilinear", align_corners=True)
    return self.block2(torch.cat([x, self.block1(skip)], 1))


class DeepLab(nn.Module):
  def __init__(self):
    super().__init__()
    self.encoder, self.decoder = MobileNetV2(), Decoder()
    up = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
    self.segmentation_head = nn.Sequential(nn.Conv2d(256, 1, 1), up)

  def forward(self, x):
    return self.segmentation_head(self.decoder(*self.encoder(x)))


def build(variant: str, size: int) -> nn.Module:
  del size, variant
  return DeepLab()
