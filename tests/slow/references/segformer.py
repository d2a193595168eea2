"""SegFormer-B0 of segmentation_models_pytorch, with the mask enlarged as the authors do."""

import segmentation_models_pytorch as smp
from torch import nn
from torch.nn import functional as F

RENAMES = [
  *((f"^encoder/stage{i}_embed/", f"encoder/patch_embed{i}/proj/") for i in range(1, 5)),
  *((f"^encoder/stage{i}_embed_norm/", f"encoder/patch_embed{i}/norm/") for i in range(1, 5)),
  *((f"^encoder/stage{i}_norm/", f"encoder/norm{i}/") for i in range(1, 5)),
  *(
    (f"^encoder/stage{i}_block{j}/", f"encoder/block{i}/{j - 1}/")
    for i in range(1, 5)
    for j in (1, 2)
  ),
  (r"/attention_norm/", "/norm1/"),
  (r"/mlp_norm/", "/norm2/"),
  (r"/attention/query/", "/attn/q/"),
  (r"/attention/keys_and_values/", "/attn/kv/"),
  (r"/attention/reduce/", "/attn/sr/"),
  (r"/attention/reduce_norm/", "/attn/norm/"),
  (r"/attention/out/", "/attn/proj/"),
  (r"/mlp/in/", "/mlp/fc1/"),
  (r"/mlp/depthwise/", "/mlp/dwconv/dwconv/"),
  (r"/mlp/out/", "/mlp/fc2/"),
  *((f"^decoder/stage{i}/", f"decoder/mlp_stage/{4 - i}/linear/") for i in range(1, 5)),
  (r"^decoder/fuse/", "decoder/fuse_stage/0/"),
  (r"^decoder/fuse_norm/", "decoder/fuse_stage/1/"),
  (r"^head/", "segmentation_head/0/"),
]


class Enlarge(nn.Module):
  """The library has the corner pixels on each other, the authors have not."""

  def forward(self, x):
    return F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)


def build(variant: str, size: int) -> nn.Module:
  del variant, size
  network = smp.Segformer("mit_b0", encoder_weights=None, decoder_segmentation_channels=256)
  network.segmentation_head[1] = Enlarge()
  return network
