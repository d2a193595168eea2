"""Swin-Unet in PyTorch, with the names of the authors' state dict."""

import torch
from torch import nn
from torch.nn import functional as F

WINDOWS = {"base": 7, "window_8": 8}
RENAMES = [
  (r"^encoder/embed/", "patch_embed/proj/"),
  (r"^encoder/embed_norm/", "patch_embed/norm/"),
  (r"^encoder/norm/", "norm/"),
  (r"^decoder/norm/", "norm_up/"),
  (r"^decoder/expand/", "up/"),
  (r"^head/", "output/"),
  (r"_merge/norm/", "_downsample/norm/"),
  (r"_merge/linear/", "_downsample/reduction/"),
  (r"^decoder/stage3_expand/", "layers_up/0/"),
  *((f"^decoder/stage{3 - i}_expand/", f"layers_up/{i}/upsample/") for i in (1, 2)),
  *((f"^decoder/stage{4 - i}_join/", f"concat_back_dim/{i}/") for i in (1, 2, 3)),
  *((f"^decoder/stage{4 - i}_", f"layers_up/{i}/") for i in (1, 2, 3)),
  *((f"^encoder/stage{i + 1}_", f"layers/{i}/") for i in range(4)),
  *((f"/block{i + 1}/", f"/blocks/{i}/") for i in range(2)),
  (r"(upsample|layers_up/0|^up)/linear/", r"\1/expand/"),
  (r"/attention_norm/", "/norm1/"),
  (r"/mlp_norm/", "/norm2/"),
  (r"/mlp/in/", "/mlp/fc1/"),
  (r"/mlp/out/", "/mlp/fc2/"),
  (r"/attention/out/", "/attn/proj/"),
  (r"/attention/qkv/", "/attn/qkv/"),
  (r"/attention/position_bias$", "/attn/relative_position_bias_table"),
]


def cut(x, w):
  """[B, H, W, C] to [B * windows, w * w, C]."""
  b, c = x.shape[0], x.shape[3]
  x = F.unfold(x.permute(0, 3, 1, 2), w, stride=w)  # [B, C w w, windows]
  return x.unflatten(1, (c, w * w)).permute(0, 3, 2, 1).reshape(-1, w * w, c), b


def paste(x, w, b, side):
  """The other way."""
  c = x.shape[-1]
  x = x.reshape(b, -1, w * w, c).permute(0, 3, 2, 1).flatten(1, 2)
  return F.fold(x, side, w, stride=w).permute(0, 2, 3, 1)


class Attention(nn.Module):
  def __init__(self, dim, heads, w):
    super().__init__()
    self.heads, self.w = heads, w
    self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
    self.relative_position_bias_table = nn.Parameter(torch.randn((2 * w - 1) ** 2, heads))

  def bias(self):
    """[heads, w w, w w], written out token by token."""
    w = self.w
    places = [(i // w, i % w) for i in range(w * w)]
    rows = [[(y - v + w - 1) * (2 * w - 1) + x - u + w - 1 for v, u in places] for y, x in places]
    return self.relative_position_bias_table[torch.tensor(rows)].permute(2, 0, 1)

  def forward(self, x, mask):
    n, c = x.shape[1:]
    q, k, v = self.qkv(x).reshape(-1, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT * (c // self.heads) ** -0.5 + self.bias()
    if mask is not None:
      logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    return self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
  def __init__(self, dim, heads, w, shifted):
    super().__init__()
    self.w, self.shifted = w, shifted
    self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
    self.attn = Attention(dim, heads, w)
    self.mlp = nn.Sequential()
    for name, part in (
      ("fc1", nn.Linear(dim, 4 * dim)),
      ("act", nn.GELU()),
      ("fc2", nn.Linear(4 * dim, dim)),
    ):
      self.mlp.add_module(name, part)

  def forward(self, x):
    side, w = tuple(x.shape[1:3]), self.w
    shift = w // 2 if self.shifted and min(side) > w else 0
    mask = None
    if shift:
      areas = torch.zeros(1, *side, 1)
      bands = (slice(0, -w), slice(-w, -shift), slice(-shift, None))
      for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
          areas[:, rows, columns] = 3 * i + j
      areas = cut(areas, w)[0][..., 0]
      mask = torch.where(areas[:, None] == areas[:, :, None], 0.0, -100.0)
    y, b = cut(self.norm1(x).roll((-shift, -shift), (1, 2)), w)
    y = paste(self.attn(y, mask), w, b, side)
    x = x + y.roll((shift, shift), (1, 2))
    return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
  def __init__(self, dim):
    super().__init__()
    self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

  def forward(self, x):
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return self.reduction(self.norm(torch.cat(corners, -1)))


class Expand(nn.Module):
  def __init__(self, dim, factor, after):
    super().__init__()
    self.factor = factor
    self.expand = nn.Linear(dim, factor * factor * after, bias=False)
    self.norm = nn.LayerNorm(after)

  def forward(self, x):
    f = self.factor
    x = self.expand(x).unflatten(-1, (f, f, -1))  # [B, H, W, f, f, C]
    return self.norm(x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))


class Stage(nn.Module):
  def __init__(self, dim, heads, w, end, name):
    super().__init__()
    self.blocks = nn.Sequential(*(Block(dim, heads, w, i == 1) for i in range(2)))
    self.end = name if end else ""
    if end:
      self.add_module(name, end)

  def forward(self, x):
    x = self.blocks(x)
    return getattr(self, self.end)(x) if self.end else x


class PatchEmbed(nn.Module):
  def __init__(self):
    super().__init__()
    self.proj, self.norm = nn.Conv2d(3, 96, 4, 4), nn.LayerNorm(96)

  def forward(self, x):
    return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinUnet(nn.Module):
  def __init__(self, w):
    super().__init__()
    dims, heads = (96, 192, 384, 768), (3, 6, 12, 24)
    self.patch_embed = PatchEmbed()
    self.layers = nn.ModuleList(
      Stage(dims[i], heads[i], w, Merge(dims[i]) if i < 3 else None, "downsample") for i in range(4)
    )
    self.norm, self.norm_up = nn.LayerNorm(768), nn.LayerNorm(96)
    self.layers_up = nn.ModuleList([Expand(768, 2, 384)])
    self.concat_back_dim = nn.ModuleList([nn.Identity()])
    for i in (2, 1, 0):
      end = Expand(dims[i], 2, dims[i - 1]) if i else None
      self.layers_up.append(Stage(dims[i], heads[i], w, end, "upsample"))
      self.concat_back_dim.append(nn.Linear(2 * dims[i], dims[i]))
    self.up = Expand(96, 4, 96)
    self.output = nn.Conv2d(96, 1, 1, bias=False)

  def forward(self, x):
    x = self.patch_embed(x)
    skips = []
    for layer in self.layers:
      skips.append(x)
      x = layer(x)
    x = self.layers_up[0](self.norm(x))
    for i in (1, 2, 3):
      x = self.layers_up[i](self.concat_back_dim[i](torch.cat((x, skips[3 - i]), -1)))
    return self.output(self.up(self.norm_up(x)).permute(0, 3, 1, 2))


def build(variant: str, size: int) -> nn.Module:
  if size % (32 * WINDOWS[variant]):
    raise ValueError(f"{variant} takes multiples of {32 * WINDOWS[variant]} pixels, not {size}")
  return SwinUnet(WINDOWS[variant])
