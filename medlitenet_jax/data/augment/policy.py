"""The augmentations, with the probability and the strength of each."""

import dataclasses

from medlitenet_jax.system.errors import InputError

Range = tuple[float, float]

_LIMITS = {
  "crop_scale": (0.05, 1.0),
  "crop_ratio": (0.1, 10.0),
  "rotate_degrees": (-360.0, 360.0),
  "scale_range": (0.1, 10.0),
  "translate_range": (-1.0, 1.0),
  "brightness_range": (-1.0, 1.0),
  "contrast_range": (0.0, 10.0),
  "gamma_range": (0.05, 20.0),
  "clahe_clip_limit": (0.1, 100.0),
  "hairs_count": (0, 1000),
  "hairs_width": (0.0, 0.1),
  "ruler_inset": (0.0, 0.3),
  "skin_tone_density": (-3.0, 3.0),
}


@dataclasses.dataclass(frozen=True)
class AugmentPolicy:
  """How often each augmentation is applied, and how strongly.

  A strength is drawn uniformly from its range. Lengths are fractions of the side of the network's
  input, so a policy means the same at every size. `configs/base.py` has the defaults.

  Attributes:
    enabled: False: only resize, as evaluation does.
    *_probability: in [0, 1]; brightness and contrast have one in common.
    crop_scale: side of the crop as a fraction of the photograph's, geometric mean of both sides.
    crop_ratio: width over height of the crop, each as a fraction of the photograph's.
    rotate_degrees: positive rotates the picture anticlockwise.
    scale_range: factor, about the centre; above 1 enlarges the lesion.
    translate_range: positive moves the picture right and down; x and y are drawn separately.
    elastic_amplitude: standard deviation of the displacement at a control point.
    elastic_grid: number of control points per side.
    brightness_range: added, as a fraction of full scale.
    contrast_range: factor on the difference from the photograph's mean.
    gamma_range: exponent of a level in [0, 1]; above 1 darkens.
    clahe_clip_limit: limit on the contrast, as a multiple of a flat histogram's height.
    clahe_tiles: number of tiles per side, fewer in small pictures; the lightness is equalised in
      each.
    noise_std: standard deviation as a fraction of full scale; each pixel and channel independent.
    blur_sigma: standard deviation of the Gaussian.
    hairs_count: number of hairs, mostly dark.
    hairs_width: width at the root of the thickest hair.
    ruler_inset: distance of a scale with ticks from the side of the picture.
    shadow_depth: fraction of the light that the shadow takes.
    shadow_softness: half the width of the shadow's edge.
    uneven_light_fall: fraction of the light lost between the brightest and the darkest place.
    skin_tone_density: optical density of melanin in green; above 0 adds, below 0 removes melanin.
    faint_border_width: distance from the lesion's border at which the fading has half its strength;
      it ends at three times this distance.
    faint_border_strength: weight, at the border, of a smooth blend of both sides.

  Raises:
    InputError: if a probability, a range or a count is not in its allowed range.
  """

  enabled: bool
  crop_probability: float
  crop_scale: Range
  crop_ratio: Range
  flip_horizontal_probability: float
  flip_vertical_probability: float
  rotate_probability: float
  rotate_degrees: Range
  scale_probability: float
  scale_range: Range
  translate_probability: float
  translate_range: Range
  elastic_probability: float
  elastic_amplitude: Range
  elastic_grid: int
  brightness_contrast_probability: float
  brightness_range: Range
  contrast_range: Range
  gamma_probability: float
  gamma_range: Range
  clahe_probability: float
  clahe_clip_limit: Range
  clahe_tiles: int
  noise_probability: float
  noise_std: Range
  blur_probability: float
  blur_sigma: Range
  # Random numbers are drawn in the order of these fields: add a new augmentation at the end.
  hairs_probability: float
  hairs_count: Range
  hairs_width: Range
  ruler_probability: float
  ruler_inset: Range
  shadow_probability: float
  shadow_depth: Range
  shadow_softness: Range
  uneven_light_probability: float
  uneven_light_fall: Range
  skin_tone_probability: float
  skin_tone_density: Range
  faint_border_probability: float
  faint_border_width: Range
  faint_border_strength: Range

  def __post_init__(self):
    """Checks types and ranges."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      name = f"augment.{field.name}"
      if field.type is not Range and not isinstance(value, int | float):
        raise InputError(f"{name} takes a number, True or False, not {value!r:.80}")
      if field.name.endswith("_probability") and not 0 <= value <= 1:
        raise InputError(f"{name} must be from 0 to 1, got {value}")
      if field.type is Range:
        least, most = _LIMITS.get(field.name, (0.0, 1.0))
        numbers = isinstance(value, tuple) and len(value) == 2
        numbers = numbers and all(isinstance(v, int | float) for v in value)
        if not numbers or not least <= value[0] <= value[1] <= most:
          raise InputError(f"{name} must be (low, high) between {least} and {most}, got {value}")
    if not 2 <= self.elastic_grid <= 100 or not 1 <= self.clahe_tiles <= 100:
      raise InputError("augment.elastic_grid must be 2 to 100 and augment.clahe_tiles 1 to 100")
