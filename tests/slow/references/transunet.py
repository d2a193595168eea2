"""TransUNet in PyTorch, with the names of the authors' state dict."""

import torch
from torch import nn
from torch.nn import functional as F

SIDES = {"base": 224, "size_256": 256}
_BLOCK, _PLACE = "transformer/layer{}/", "transformer/encoder/layer/{}/"
RENAMES = [
  (r"^backbone/stem/", "transformer/embeddings/hybrid_model/root/conv/"),
  (r"^backbone/stem_norm/", "transformer/embeddings/hybrid_model/root/gn/"),
  (r"^backbone/stage(\d)_unit(\d)/", r"transformer/embeddings/hybrid_model/body/block\1/unit\2/"),
  (r"/projection/", "/downsample/"),
  (r"/projection_norm/", "/gn_proj/"),
  (r"(/unit\d)/norm(\d)/", r"\1/gn\2/"),
  (r"^transformer/embed/", "transformer/embeddings/patch_embeddings/"),
  (r"^transformer/positions$", "transformer/embeddings/position_embeddings"),
  (r"^transformer/norm/", "transformer/encoder/encoder_norm/"),
  *((f"^{_BLOCK.format(i)}", _PLACE.format(i - 1)) for i in range(1, 13)),
  (r"/mlp_norm/", "/ffn_norm/"),
  (r"/mlp/in/", "/ffn/fc1/"),
  (r"/mlp/out/", "/ffn/fc2/"),
  (r"/attention/", "/attn/"),
  (r"^decoder_input/conv/", "decoder/conv_more/0/"),
  (r"^decoder_input/norm/", "decoder/conv_more/1/"),
  *((f"^decoder{i}/", f"decoder/blocks/{i - 1}/") for i in range(1, 5)),
  (r"(/blocks/\d/conv\d)/conv/", r"\1/0/"),
  (r"(/blocks/\d/conv\d)/norm/", r"\1/1/"),
  (r"^head/", "segmentation_head/0/"),
]


class StdConv(nn.Conv2d):
  def forward(self, x):
    variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
    weight = (self.weight - mean) / (variance + 1e-5).sqrt()
    return F.conv2d(x, weight, None, self.stride, self.padding)


class Unit(nn.Module):
  def __init__(self, wide_in, wide, stride):
    super().__init__()
    narrow = wide // 4
    self.conv1 = StdConv(wide_in, narrow, 1, bias=False)
    self.gn1 = nn.GroupNorm(32, narrow, eps=1e-6)
    self.conv2 = StdConv(narrow, narrow, 3, stride, 1, bias=False)
    self.gn2 = nn.GroupNorm(32, narrow, eps=1e-6)
    self.conv3 = StdConv(narrow, wide, 1, bias=False)
    self.gn3 = nn.GroupNorm(32, wide, eps=1e-6)
    if wide_in != wide:
      self.downsample = StdConv(wide_in, wide, 1, stride, bias=False)
      self.gn_proj = nn.GroupNorm(wide, wide)

  def forward(self, x):
    y = F.relu(self.gn1(self.conv1(x)))
    y = F.relu(self.gn2(self.conv2(y)))
    y = self.gn3(self.conv3(y))
    return F.relu(y + (self.gn_proj(self.downsample(x)) if hasattr(self, "downsample") else x))


class ResNet(nn.Module):
  def __init__(self):
    super().__init__()
    self.root = nn.Sequential()
    self.root.add_module("conv", StdConv(3, 64, 7, 2, 3, bias=False))
    self.root.add_module("gn", nn.GroupNorm(32, 64, eps=1e-6))
    self.root.add_module("relu", nn.ReLU())
    self.body = nn.Sequential()
    before = 64
    for block, (units, wide) in enumerate(((3, 256), (4, 512), (9, 1024)), 1):
      row = nn.Sequential()
      for unit in range(1, units + 1):
        stride = 2 if unit == 1 and block > 1 else 1
        row.add_module(f"unit{unit}", Unit(before, wide, stride))
        before = wide
      self.body.add_module(f"block{block}", row)

  def forward(self, x):
    side = x.shape[-1]
    root = self.root(x)
    first = self.body.block1(F.max_pool2d(root, 3, 2))
    second = self.body.block2(first)
    missing = side // 4 - first.shape[-1]
    return self.body.block3(second), [second, F.pad(first, (0, missing, 0, missing)), root]


class Embeddings(nn.Module):
  def __init__(self, tokens):
    super().__init__()
    self.hybrid_model = ResNet()
    self.patch_embeddings = nn.Conv2d(1024, 768, 1)
    self.position_embeddings = nn.Parameter(torch.randn(1, tokens, 768))

  def forward(self, x):
    x, skips = self.hybrid_model(x)
    return self.patch_embeddings(x).flatten(2).mT + self.position_embeddings, skips


class Attention(nn.Module):
  def __init__(self):
    super().__init__()
    self.query, self.key, self.value, self.out = (nn.Linear(768, 768) for _ in range(4))

  def forward(self, x):
    q, k, v = (
      f(x).unflatten(2, (12, 64)).transpose(1, 2) for f in (self.query, self.key, self.value)
    )
    weights = torch.matmul(q, k.mT).div(8).softmax(-1)
    return self.out(torch.matmul(weights, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
  def __init__(self):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(768, 3072), nn.Linear(3072, 768)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
  def __init__(self):
    super().__init__()
    self.attention_norm, self.ffn_norm = (nn.LayerNorm(768, eps=1e-6) for _ in range(2))
    self.attn, self.ffn = Attention(), FeedForward()

  def forward(self, x):
    x = x + self.attn(self.attention_norm(x))
    return x + self.ffn(self.ffn_norm(x))


class Encoder(nn.Module):
  def __init__(self):
    super().__init__()
    self.layer = nn.ModuleList(Layer() for _ in range(12))
    self.encoder_norm = nn.LayerNorm(768, eps=1e-6)

  def forward(self, x):
    for layer in self.layer:
      x = layer(x)
    return self.encoder_norm(x)


class Transformer(nn.Module):
  def __init__(self, tokens):
    super().__init__()
    self.embeddings, self.encoder = Embeddings(tokens), Encoder()

  def forward(self, x):
    x, skips = self.embeddings(x)
    return self.encoder(x), skips


def conv_norm(before, after):
  return nn.Sequential(
    nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
  )


class Up(nn.Module):
  def __init__(self, before, skip, after):
    super().__init__()
    self.conv1, self.conv2 = conv_norm(before + skip, after), conv_norm(after, after)

  def forward(self, x, skip=None):
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    return self.conv2(self.conv1(x if skip is None else torch.cat((x, skip), 1)))


class Decoder(nn.Module):
  def __init__(self):
    super().__init__()
    self.conv_more = conv_norm(768, 512)
    plan = ((512, 512, 256), (256, 256, 128), (128, 64, 64), (64, 0, 16))
    self.blocks = nn.ModuleList(Up(*widths) for widths in plan)

  def forward(self, tokens, skips):
    side = round(tokens.shape[1] ** 0.5)
    x = self.conv_more(tokens.mT.unflatten(2, (side, side)))
    for block, skip in zip(self.blocks, (*skips, None), strict=True):
      x = block(x, skip)
    return x


class TransUNet(nn.Module):
  def __init__(self, side):
    super().__init__()
    self.transformer = Transformer((side // 16) ** 2)
    self.decoder = Decoder()
    self.segmentation_head = nn.Sequential(nn.Conv2d(16, 1, 3, padding=1))

  def forward(self, x):
    return self.segmentation_head(self.decoder(*self.transformer(x)))


def build(variant: str, size: int) -> nn.Module:
  if size != SIDES[variant]:
    raise ValueError(f"{variant} takes {SIDES[variant]} pixels, not {size}")
  return TransUNet(size)
