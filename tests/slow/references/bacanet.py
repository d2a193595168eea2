"""The same reconstruction of BACANet in PyTorch, with SegNeXt's and LSKNet's names for their parts.

Nothing of the authors' is at hand, so it checks the published blocks, and that ours are wired as
`medlitenet_jax/models/bacanet.py` says.
"""

import torch
from torch import nn
from torch.nn import functional as F

DIMS, DEPTHS, RATIOS = (32, 64, 160, 256), (3, 3, 5, 2), (8, 8, 4, 4)
DECODER = {3: (256, 288), 2: (288, 192), 1: (192, 64)}
RENAMES = [
  # First, because others become "conv1" too.
  (r"/convs/conv(\d)/conv/", r"/convs/\1/0/"),
  (r"/convs/conv(\d)/norm/", r"/convs/\1/1/"),
  (r"^encoder/stem/", "encoder/patch_embed1/proj/0/"),
  (r"^encoder/stem_norm/", "encoder/patch_embed1/proj/1/"),
  (r"^encoder/stage1_embed/", "encoder/patch_embed1/proj/3/"),
  (r"^encoder/stage1_embed_norm/", "encoder/patch_embed1/proj/4/"),
  (r"^encoder/stage(\d)_embed/", r"encoder/patch_embed\1/proj/"),
  (r"^encoder/stage(\d)_embed_norm/", r"encoder/patch_embed\1/norm/"),
  (r"^encoder/stage(\d)_norm/", r"encoder/norm\1/"),
  *((rf"^encoder/stage(\d)_block{i}/", rf"encoder/block\1/{i - 1}/") for i in range(1, 6)),
  (r"/attention_scale$", "/layer_scale_1"),
  (r"/mlp_scale$", "/layer_scale_2"),
  (r"/attention_norm/", "/norm1/"),
  (r"/mlp_norm/", "/norm2/"),
  (r"/mlp/in/", "/mlp/fc1/"),
  (r"/mlp/depthwise/", "/mlp/dwconv/dwconv/"),
  (r"/mlp/out/", "/mlp/fc2/"),
  (r"/attention/", "/attn/"),
  (r"/attn/in/", "/attn/proj_1/"),
  (r"^(boundary\d)/in/", r"\1/proj_1/"),
  (r"/attn/out/", "/attn/proj_2/"),
  (r"^(boundary\d)/out/", r"\1/proj_2/"),
  (r"/unit/", "/spatial_gating_unit/"),
  (r"/square/", "/conv0/"),
  *((rf"/strip{length}_across/", f"/conv{i}_1/") for i, length in enumerate((7, 11, 21))),
  *((rf"/strip{length}_down/", f"/conv{i}_2/") for i, length in enumerate((7, 11, 21))),
  (r"/mix/", "/conv3/"),
  (r"/near/", "/conv0/"),
  (r"/far/", "/conv_spatial/"),
  (r"/near_half/", "/conv1/"),
  (r"/far_half/", "/conv2/"),
  (r"/choose/", "/conv_squeeze/"),
  (r"^(boundary\d/spatial_gating_unit)/out/", r"\1/conv/"),
  (r"/gate/(\w+)_norm/", r"/gate/\1/1/"),
  (r"/gate/(skip|signal|boundary|psi)/(weight|bias)$", r"/gate/\1/0/\2"),
]


class Strips(nn.Module):
  def __init__(self, dim):
    super().__init__()
    self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
    for i, side in enumerate((7, 11, 21)):
      across = nn.Conv2d(dim, dim, (1, side), padding=(0, side // 2), groups=dim)
      down = nn.Conv2d(dim, dim, (side, 1), padding=(side // 2, 0), groups=dim)
      self.add_module(f"conv{i}_1", across)
      self.add_module(f"conv{i}_2", down)
    self.conv3 = nn.Conv2d(dim, dim, 1)

  def forward(self, x):
    base = self.conv0(x)
    first = self.conv0_2(self.conv0_1(base))
    second = self.conv1_2(self.conv1_1(base))
    third = self.conv2_2(self.conv2_1(base))
    return self.conv3(base + first + second + third) * x


class SelectiveKernel(nn.Module):
  def __init__(self, dim):
    super().__init__()
    self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
    self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
    self.conv1, self.conv2 = nn.Conv2d(dim, dim // 2, 1), nn.Conv2d(dim, dim // 2, 1)
    self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
    self.conv = nn.Conv2d(dim // 2, dim, 1)

  def forward(self, x):
    small = self.conv0(x)
    large = self.conv2(self.conv_spatial(small))
    small = self.conv1(small)
    joined = torch.cat((small, large), 1)
    seen = torch.cat((joined.mean(1, keepdim=True), joined.amax(1, keepdim=True)), 1)
    weight = self.conv_squeeze(seen).sigmoid()
    return x * self.conv(small * weight[:, 0:1] + large * weight[:, 1:2])


class Attention(nn.Module):
  def __init__(self, dim, unit):
    super().__init__()
    self.proj_1, self.proj_2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
    self.spatial_gating_unit = unit(dim)

  def forward(self, x):
    return x + self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x))))


class MLP(nn.Module):
  def __init__(self, dim, wide):
    super().__init__()
    self.fc1, self.fc2 = nn.Conv2d(dim, wide, 1), nn.Conv2d(wide, dim, 1)
    self.dwconv = nn.Module()
    self.dwconv.dwconv = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)

  def forward(self, x):
    return self.fc2(F.gelu(self.dwconv.dwconv(self.fc1(x))))


class Block(nn.Module):
  def __init__(self, dim, ratio):
    super().__init__()
    self.norm1, self.norm2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
    self.attn, self.mlp = Attention(dim, Strips), MLP(dim, ratio * dim)
    self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(torch.ones(dim)) for _ in range(2))

  def forward(self, x):
    x = x + self.layer_scale_1[:, None, None] * self.attn(self.norm1(x))
    return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


class Embed(nn.Module):
  def __init__(self, before, after):
    super().__init__()
    self.proj, self.norm = nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after)

  def forward(self, x):
    return self.norm(self.proj(x))


class Stem(nn.Module):
  def __init__(self, dim):
    super().__init__()
    half = dim // 2
    first = [nn.Conv2d(3, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU()]
    self.proj = nn.Sequential(*first, nn.Conv2d(half, dim, 3, 2, 1), nn.BatchNorm2d(dim))

  def forward(self, x):
    return self.proj(x)


class Encoder(nn.Module):
  def __init__(self):
    super().__init__()
    before = 3
    for stage, (dim, depth, ratio) in enumerate(zip(DIMS, DEPTHS, RATIOS, strict=True), 1):
      self.add_module(f"patch_embed{stage}", Stem(dim) if stage == 1 else Embed(before, dim))
      self.add_module(f"block{stage}", nn.Sequential(*(Block(dim, ratio) for _ in range(depth))))
      self.add_module(f"norm{stage}", nn.LayerNorm(dim))
      before = dim

  def forward(self, x):
    maps = []
    for stage in (1, 2, 3, 4):
      embed, blocks, norm = (
        getattr(self, f"{name}{stage}") for name in ("patch_embed", "block", "norm")
      )
      x = norm(blocks(embed(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
      maps.append(x)
    return maps


def normed(before, after, side=1):
  bias = side == 1
  conv = nn.Conv2d(before, after, side, padding=side // 2, bias=bias)
  return nn.Sequential(conv, nn.BatchNorm2d(after))


class Gate(nn.Module):
  def __init__(self, skip, body):
    super().__init__()
    between = skip // 2
    self.skip, self.boundary = normed(skip, between), normed(skip, between)
    self.signal, self.psi = normed(body, between), normed(between, 1)

  def forward(self, skip, body, edges):
    joined = self.skip(skip) + self.signal(body) + self.boundary(edges)
    return skip * self.psi(F.relu(joined)).sigmoid()


class Decoder(nn.Module):
  def __init__(self, skip, before, after):
    super().__init__()
    self.gate = Gate(skip, before)
    convs = {"1": normed(2 * skip + before, after, 3), "2": normed(after, after, 3)}
    self.convs = nn.ModuleDict(convs)

  def forward(self, x, skip, edges):
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    x = torch.cat((self.gate(skip, x, edges), edges, x), 1)
    return F.relu(self.convs["2"](F.relu(self.convs["1"](x))))


class BACANet(nn.Module):
  def __init__(self):
    super().__init__()
    self.encoder, self.head = Encoder(), nn.Conv2d(64, 1, 1)
    for level, widths in DECODER.items():
      dim = DIMS[level - 1]
      self.add_module(f"boundary{level}", Attention(dim, SelectiveKernel))
      self.add_module(f"boundary{level}_head", nn.Conv2d(dim, 1, 1))
      self.add_module(f"decoder{level}", Decoder(dim, *widths))

  def forward(self, image):
    *skips, x = self.encoder(image)
    for level in DECODER:
      skip = skips[level - 1]
      x = getattr(self, f"decoder{level}")(x, skip, getattr(self, f"boundary{level}")(skip))
    return F.interpolate(self.head(x), image.shape[2:], mode="bilinear", align_corners=False)


def build(variant: str, size: int) -> nn.Module:
  del variant, size
  return BACANet()
