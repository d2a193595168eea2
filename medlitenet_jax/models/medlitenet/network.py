"""MedLiteNet: encoder, cross-scale mixer, fusion, ASPP, gates and decoder (paper III).

The names of the submodules are the keys of a checkpoint.
"""

from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from medlitenet_jax.models import ops
from medlitenet_jax.models.entry import Sizes
from medlitenet_jax.models.layers import (
  ASPP,
  SCSE,
  ClassHead,
  MBConv,
  Norm,
  Pointwise,
  SeparableConv,
  Stem,
  summarised,
)
from medlitenet_jax.models.medlitenet.attention import CrossScaleMixer, LocalGlobalFusion
from medlitenet_jax.models.medlitenet.boundary import (
  BoundaryGate,
  BoundaryMap,
  BoundaryScores,
  classical_edges,
)

SIZES = Sizes(multiple=32, smallest=64)
STAGE_DIMS = (32, 64, 128, 256)  # channels of the encoder's stages; the stem has those of the first

# The three members of the ensemble, which the paper does not describe, and the paper read to the
# letter; docs/paper.md says how they differ.
VARIANTS = {
  "base": {
    "encoder_blocks": (2, 3, 3, 2),
    "mixer_dim": 128,
    "mixer_layers": 2,
    "mixer_heads": 2,
    "mixer_mlp_ratio": 3,
    "aspp_branch_dim": 64,
    "aspp_dilations": (1, 3, 6, 12),
    "aspp_grid": 16,
    "decoder_dims": (128, 96, 64, 32),
    "gate_stages": (0, 1, 2, 3),
    "token_norm": True,
    "pool_fine_tokens": False,
    "position_cycles": 3.0,
    "boundary_magnitude": True,
  },
  "paper_literal": {
    "encoder_blocks": (2, 3, 3, 2),
    "mixer_dim": 192,
    "mixer_layers": 2,
    "mixer_heads": 6,
    "mixer_mlp_ratio": 4,
    "aspp_branch_dim": 64,
    "aspp_dilations": (1, 3, 6, 12),
    "decoder_dims": (128, 96, 64, 32),
    "gate_stages": (0, 1, 2, 3),
  },
  "wide_context": {
    "encoder_blocks": (2, 3, 3, 2),
    "mixer_dim": 160,
    "mixer_layers": 3,
    "mixer_heads": 5,
    "mixer_mlp_ratio": 4,
    "aspp_branch_dim": 96,
    "aspp_dilations": (1, 4, 8, 12),
    "decoder_dims": (128, 96, 64, 32),
    "gate_stages": (0, 1, 2, 3),
  },
  "fine_boundary": {
    "encoder_blocks": (2, 3, 3, 2),
    "mixer_dim": 160,
    "mixer_layers": 2,
    "mixer_heads": 5,
    "mixer_mlp_ratio": 4,
    "aspp_branch_dim": 64,
    "aspp_dilations": (1, 3, 6, 12),
    "decoder_dims": (160, 112, 64, 48),
    "gate_stages": (0, 1, 2, 3, 4),
  },
}


def _call(module: nn.Module, *args, remat: bool, train: bool):
  """Calls a block; with `remat` the backward pass recomputes its activations."""
  if not remat:
    return module(*args, train=train)
  return nn.remat(lambda module, *args: module(*args, train=train))(module, *args)


class Encoder(nn.Module):
  """Stride-2 stem and four MBConv stages (paper III-B).

  Attributes:
    blocks: number of MBConv blocks in each stage.
    remat: whether the backward pass recomputes each block's activations.
    form: form of the operations, see `medlitenet_jax.models.ops`.
    dtype: compute dtype.
  """

  blocks: tuple[int, ...]
  remat: bool = False
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Maps [B, H, W, 3] to the stem's and the stages' features, at strides 2, 4, 8, 16 and 32."""
    x = Stem(STAGE_DIMS[0], self.form, self.dtype, name="stem")(x)
    features = [Norm("stem", name="stem_norm")(x, train=train)]
    for stage, (dim, blocks) in enumerate(zip(STAGE_DIMS, self.blocks, strict=True), start=1):
      x = features[-1]
      for block in range(blocks):
        mbconv = MBConv(
          dim,
          stride=2 if block == 0 else 1,
          form=self.form,
          dtype=self.dtype,
          name=f"stage{stage}_block{block + 1}",
        )
        x = _call(mbconv, x, remat=self.remat, train=train)
      features.append(x)
    return features


class DecoderStage(nn.Module):
  """Upsample, concatenate the skip, convolve twice, then SCSE and gate (paper III-F).

  Attributes:
    features: output channels.
    scse: whether SCSE follows the convolutions.
    gate: whether the stage ends with a boundary-aware gate.
    magnitude: whether the gate's boundary map is one, see `BoundaryMap`.
    form: form of the operations.
    dtype: compute dtype.
  """

  features: int
  scse: bool = True
  gate: bool = True
  magnitude: bool = False
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, skip, context=None, edges=None, *, train: bool):
    """Decodes one stage.

    Args:
      x: [B, h, w, C] features of the stage before.
      skip: [B, 2h, 2w, S] features of the encoder.
      context: F_trans, for the gate, or None.
      edges: of the photograph, for the gate, or None.
      train: whether BatchNorm uses the batch's statistics.

    Returns:
      x: [B, 2h, 2w, features].
      boundary: [B, 2h, 2w, 1], the gate's boundary response; None without a gate.
    """
    common: dict[str, Any] = {"form": self.form, "dtype": self.dtype}
    boundary = None
    x = jnp.concatenate([ops.upsample2x(x, self.form), skip], axis=-1)
    for i in (1, 2):
      x = SeparableConv(self.features, name=f"conv{i}", **common)(x, train=train)
    if self.scse:
      x = SCSE(name="scse", **common)(x)
    if self.gate:
      x, boundary = BoundaryGate(self.magnitude, name="gate", **common)(x, context, edges)
    return x, boundary


class MedLiteNet(nn.Module):
  """The whole network, for inputs whose sides are multiples of 32 from 64 up.

  Attributes:
    encoder_blocks: number of MBConv blocks in each encoder stage.
    mixer_dim: channels of a mixer token.
    mixer_layers: transformer layers.
    mixer_heads: attention heads.
    mixer_mlp_ratio: ratio of the feed-forward networks' hidden channels to `mixer_dim`.
    aspp_branch_dim: channels of an ASPP branch.
    aspp_dilations: dilations of the ASPP branches.
    decoder_dims: channels of the four decoder stages, deepest first.
    gate_stages: stages with a gate: 0 the encoder's end, 1 to 4 the decoder's stages.
    mixer: whether there is a mixer (and with it fusion and eq. 7).
    attention: whether the mixer's layers have self-attention.
    cross_scale: whether stage-3 tokens take part in the mixer.
    boundary_bias: whether a boundary map biases the attention.
    boundary_bias_stage: encoder stage that the map is computed from.
    fusion: whether to include the first term of eq. 5.
    aspp: whether there is an ASPP; False: a 1x1 convolution instead.
    gate_context: whether the gates use eq. 7.
    scse: whether the decoder's stages have SCSE.
    token_norm: whether tokens, queries and keys are normalised, see `CrossScaleMixer`.
    contrast_attention: whether queries and keys come from tokens standardised over the frame.
    pool_fine_tokens: whether stage-3 tokens are pooled to the grid of stage 4.
    position_cycles: highest frequency of the positional encoding, in cycles a frame.
    classical_edges: whether the gates also see the photograph's edges, see `classical_edges`.
    boundary_magnitude: whether boundary maps are magnitudes, see `BoundaryMap` and `BoundaryGate`.
    aspp_grid: side of the grid that the dilations are meant for, see `ASPP`.
    classes: number of classes of photographs that it tells apart as well; 0: none.
    dropout: rate in the mixer in training.
    remat: whether the backward pass recomputes the activations of the encoder's blocks and the
      decoder's stages: less memory for one more forward pass.
    form: form of the operations.
    dtype: compute dtype; parameters and logits are float32.
  """

  encoder_blocks: tuple[int, ...]
  mixer_dim: int
  mixer_layers: int
  mixer_heads: int
  mixer_mlp_ratio: int
  aspp_branch_dim: int
  aspp_dilations: tuple[int, ...]
  decoder_dims: tuple[int, ...]
  gate_stages: tuple[int, ...]
  mixer: bool = True
  attention: bool = True
  cross_scale: bool = True
  boundary_bias: bool = True
  boundary_bias_stage: int = 1
  fusion: bool = True
  aspp: bool = True
  gate_context: bool = True
  scse: bool = True
  token_norm: bool = False
  contrast_attention: bool = False
  pool_fine_tokens: bool = True
  position_cycles: float = 16.0
  classical_edges: bool = False
  boundary_magnitude: bool = False
  aspp_grid: int = 0
  classes: int = 0
  dropout: float = 0.0
  remat: bool = False
  form: str = "platform"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Scores every pixel.

    Args:
      image: [B, H, W, 3] normalised photograph, H and W multiples of 32 from 64 up.
      train: whether BatchNorm uses the batch's statistics and dropout acts (RNG "dropout").

    Returns:
      "mask": [B, H, W, 1] float32 logits; above 0 is lesion.
      "boundaries": with `boundary_magnitude`, for each boundary map by its place, the
        [B, h, w, 1] float32 logits of the mask's border being in a cell.
      "class": with `classes`, the [B, classes] float32 logits.
      "features": in inference, the [B, D] float32 summary of what the encoder sees up to stride 16.

    Raises:
      ValueError: if H or W is not accepted.
    """
    chex.assert_shape(image, (None, None, None, 3))
    SIZES.check(*image.shape[1:3])
    features = Encoder(self.encoder_blocks, self.remat, name="encoder", **self._common)(
      image.astype(self.dtype), train=train
    )
    boundaries: dict[str, Any] = {}
    context = None
    *skips, deep = features
    if self.mixer:
      deep, skips[3], context = self._mix(features, boundaries, train=train)
    x = self._pyramid(deep, train=train)
    outputs: dict[str, Any] = {}
    if self.classes:
      outputs["class"] = ClassHead(self.classes, self.dtype, name="classes")(x)
    gated_by = (
      context if self.gate_context else None,
      classical_edges(image, self.form) if self.classical_edges else None,
    )
    x = self._decode(x, skips, gated_by, boundaries, train=train)
    if self.boundary_magnitude and boundaries:
      outputs["boundaries"] = BoundaryScores(name="boundaries")(boundaries)
    logits = Pointwise(1, result_dtype=jnp.float32, name="head", **self._common)(x)
    outputs["mask"] = ops.upsample2x(logits, self.form)
    return outputs if train else {**outputs, "features": summarised(features[:4])}

  @property
  def _common(self) -> dict[str, Any]:
    return {"form": self.form, "dtype": self.dtype}

  @nn.nowrap
  def _mix(self, features, boundaries, *, train: bool):
    """Stage-4 features with the global context, stage-3 features with theirs, and F_trans."""
    fine, deep = features[3:]
    strength = None
    if self.boundary_bias and self.attention:
      place = features[self.boundary_bias_stage]
      boundary = BoundaryMap(self.boundary_magnitude, name="bias_boundary", **self._common)(place)
      boundaries["bias"] = boundary
      strength = boundary if self.boundary_magnitude else jnp.abs(boundary)
    context, fine_context = CrossScaleMixer(
      dim=self.mixer_dim,
      layers=self.mixer_layers,
      heads=self.mixer_heads,
      mlp_ratio=self.mixer_mlp_ratio,
      dropout=self.dropout,
      cross_scale=self.cross_scale,
      attends=self.attention,
      pooled=self.pool_fine_tokens,
      normalised=self.token_norm,
      contrast=self.contrast_attention,
      cycles=self.position_cycles,
      name="mixer",
      **self._common,
    )(deep, fine, strength, train=train)
    deep = LocalGlobalFusion(self.fusion, name="fusion", **self._common)(deep, context)
    if fine_context is not None:
      returned = Pointwise(STAGE_DIMS[2], name="fine_return", **self._common)(fine_context)
      pooled = self.pool_fine_tokens
      fine = fine + (ops.upsample2x(returned, self.form) if pooled else returned)
    return deep, fine, context

  @nn.nowrap
  def _pyramid(self, deep, *, train: bool):
    """The ASPP, or the 1x1 convolution in its place."""
    if self.aspp:
      return ASPP(
        STAGE_DIMS[3],
        self.aspp_branch_dim,
        self.aspp_dilations,
        self.aspp_grid,
        name="aspp",
        **self._common,
      )(deep, train=train)
    x = Pointwise(STAGE_DIMS[3], use_bias=False, name="aspp", **self._common)(deep)
    return Norm("aspp", name="aspp_norm")(x, train=train)

  @nn.nowrap
  def _decode(self, x, skips, gated_by, boundaries, *, train: bool):
    """The gate at the encoder's end and the decoder's stages; notes their boundary maps."""
    magnitude = self.boundary_magnitude
    if 0 in self.gate_stages:
      gate = BoundaryGate(magnitude, name="encoder_gate", **self._common)
      x, boundaries["encoder"] = gate(x, *gated_by)
    for stage, (dim, skip) in enumerate(zip(self.decoder_dims, reversed(skips), strict=True), 1):
      gated = stage in self.gate_stages
      decoder = DecoderStage(
        dim, self.scse, gated, magnitude, name=f"decoder{stage}", **self._common
      )
      x, boundary = _call(decoder, x, skip, *gated_by, remat=self.remat, train=train)
      if gated:
        boundaries[f"decoder{stage}"] = boundary
    return x
