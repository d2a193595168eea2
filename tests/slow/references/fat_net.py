"""FAT-Net in PyTorch, with the names of the authors' state dict; ResNet-34 is torchvision's."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet34

SKIPS = {1: (64, 6), 2: (128, 4), 3: (256, 2)}  # channels, and how often they are adapted
RENAMES = [
  (r"^resnet/stem/", "firstconv/"),
  (r"^resnet/stem_norm/", "firstbn/"),
  *(
    (f"^resnet/stage{stage}_unit{unit}/", f"encoder{stage}/{unit - 1}/")
    for stage in range(1, 5)
    for unit in range(1, 7)
  ),
  (r"^(encoder.*)/conv(\d)_norm/", r"\1/bn\2/"),
  (r"/projection/", "/downsample/0/"),
  (r"/projection_norm/", "/downsample/1/"),
  (r"^transformer/embed/", "patch_embed/proj/"),
  *((f"^transformer/layer{i}/", f"transformers/{i - 1}/") for i in range(1, 13)),
  (r"/attention_norm/", "/norm1/"),
  (r"/mlp_norm/", "/norm2/"),
  (r"/mlp/in/", "/mlp/fc1/"),
  (r"/mlp/out/", "/mlp/fc2/"),
  (r"/attention/qkv/", "/attn/qkv/"),
  (r"/attention/out/", "/attn/proj/"),
  (r"^align/", "conv_seq_img/"),
  (r"^gate/squeeze/", "se/fc/0/"),
  (r"^gate/excite/", "se/fc/2/"),
  (r"^fuse/", "conv2d/"),
  (r"^adapt(\d)/", r"FAM\1/0/"),
  *((f"^decoder{i}/", f"decoder{i + 1}/") for i in (3, 2, 1)),
  (r"/reduce/conv/", "/conv1/"),
  (r"/reduce/norm/", "/norm1/"),
  (r"/up/", "/up/0/"),
  (r"/up_norm/", "/up/1/"),
  (r"/widen/conv/", "/conv3/"),
  (r"/widen/norm/", "/norm3/"),
  (r"^head_up/", "final_conv1/"),
  (r"^head_conv/", "final_conv2/"),
  (r"^head/", "final_conv3/"),
]
TRANSPOSED = r"^head_up/|/up/"


class Attention(nn.Module):
  def __init__(self):
    super().__init__()
    self.qkv, self.proj = nn.Linear(192, 576), nn.Linear(192, 192)

  def forward(self, x):
    q, k, v = self.qkv(x).unflatten(2, (3, 3, 64)).permute(2, 0, 3, 1, 4)
    # Written out, for PyTorch does not count the operations of its own on a CPU.
    y = (q @ k.mT / 8).softmax(-1) @ v
    return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
  def __init__(self):
    super().__init__()
    self.norm1, self.norm2 = nn.LayerNorm(192, eps=1e-6), nn.LayerNorm(192, eps=1e-6)
    self.attn, self.mlp = Attention(), nn.Module()
    self.mlp.fc1, self.mlp.fc2 = nn.Linear(192, 768), nn.Linear(768, 192)

  def forward(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Gate(nn.Module):
  def __init__(self):
    super().__init__()
    wide, narrow = nn.Linear(64, 1024, bias=False), nn.Linear(1024, 64, bias=False)
    self.fc = nn.Sequential(narrow, nn.ReLU(), wide, nn.Sigmoid())

  def forward(self, x):
    return x * self.fc(x.mean((2, 3)))[..., None, None]


class Adaptation(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
    self.conv1 = nn.Conv2d(channels, channels, 1)

  def forward(self, x):
    return F.relu(self.conv3(x)) + F.relu(self.conv1(x))


class Decoder(nn.Module):
  def __init__(self, before, after):
    super().__init__()
    narrow = before // 4
    self.conv1, self.norm1 = nn.Conv2d(before, narrow, 1), nn.BatchNorm2d(narrow)
    up = nn.ConvTranspose2d(narrow, narrow, 3, stride=2, padding=1, output_padding=1)
    self.up = nn.Sequential(up, nn.BatchNorm2d(narrow), nn.ReLU())
    self.conv3, self.norm3 = nn.Conv2d(narrow, after, 1), nn.BatchNorm2d(after)

  def forward(self, x):
    x = self.up(F.relu(self.norm1(self.conv1(x))))
    return F.relu(self.norm3(self.conv3(x)))


class FATNet(nn.Module):
  def __init__(self):
    super().__init__()
    resnet = resnet34(weights=None)
    self.firstconv, self.firstbn = resnet.conv1, resnet.bn1
    self.encoder1, self.encoder2 = resnet.layer1, resnet.layer2
    self.encoder3, self.encoder4 = resnet.layer3, resnet.layer4
    self.patch_embed = nn.Module()
    self.patch_embed.proj = nn.Conv2d(3, 192, 16, 16)
    self.transformers = nn.ModuleList(Block() for _ in range(12))
    self.conv_seq_img, self.conv2d = nn.Conv2d(192, 512, 1), nn.Conv2d(1024, 512, 1)
    self.se = Gate()
    for level, (channels, repeats) in SKIPS.items():
      # One module many times over: the authors' list holds the same one.
      self.add_module(f"FAM{level}", nn.ModuleList([Adaptation(channels)] * repeats))
    self.decoder4, self.decoder3 = Decoder(512, 256), Decoder(256, 128)
    self.decoder2 = Decoder(128, 64)
    self.final_conv1 = nn.ConvTranspose2d(64, 32, 4, 2, 1)
    self.final_conv2 = nn.Conv2d(32, 32, 3, padding=1)
    self.final_conv3 = nn.Conv2d(32, 1, 3, padding=1)

  def forward(self, x):
    e1 = self.encoder1(F.relu(self.firstbn(self.firstconv(x))))
    e2 = self.encoder2(e1)
    e3 = self.encoder3(e2)
    deep = self.encoder4(e3)
    tokens = self.patch_embed.proj(x)
    grid = tokens.shape[2:]
    tokens = tokens.flatten(2).mT
    for block in self.transformers:
      tokens = block(tokens)
    tokens = self.conv_seq_img(tokens.mT.unflatten(2, grid))
    x = self.conv2d(self.se(torch.cat((deep, tokens), 1)))
    for adapt in self.FAM3:
      e3 = adapt(e3)
    for adapt in self.FAM2:
      e2 = adapt(e2)
    for adapt in self.FAM1:
      e1 = adapt(e1)
    x = self.decoder4(x) + e3
    x = self.decoder3(x) + e2
    x = self.decoder2(x) + e1
    x = F.relu(self.final_conv2(F.relu(self.final_conv1(x))))
    return self.final_conv3(x)


def build(variant: str, size: int) -> nn.Module:
  del variant, size
  return FATNet()
