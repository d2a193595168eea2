"""Convolutions and the x2 upsample in the form that suits the platform.

XLA's depthwise convolution is slow everywhere: on a CPU 20 to 100 times slower than nine shifted
multiply-adds, and on a GPU a training step takes twice as long with it (docs/gpu.md). On a CPU its
bilinear resize takes several times as long as slices and a weighted sum. So every operation has
forms that compute the same numbers from the same parameters:

  "platform": the form for the platform that JAX uses;
  "cpu", "gpu": the form for that one, on any;
  "library": XLA's own operation, for comparison and for counting operations.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FORMS = ("platform", "cpu", "gpu", "library")


def _check_form(form: str) -> None:
  if form not in FORMS:
    raise ValueError(f"form must be one of {FORMS}, not {form!r}")


def _by_platform(form: str, *args, cpu: Callable, library: Callable, gpu: Callable | None = None):
  """Calls the form that `form` and the platform ask for; without `gpu`, a GPU has the library's.

  The platform is the one that JAX uses: tracing every form, for the lowering to choose, would take
  half as long again.
  """
  _check_form(form)
  forms = {"cpu": cpu, "gpu": gpu or library, "library": library}
  return forms.get(jax.default_backend() if form == "platform" else form, library)(*args)


def _library_conv(x, kernel, *, stride, dilation, groups=1, dtype=None):
  """XLA's convolution, padded by half the kernel's reach on each side; dtype is the result's."""
  reach = [dilation * (side - 1) // 2 for side in kernel.shape[:2]]
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=[(r, r) for r in reach],
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
    preferred_element_type=dtype,
  )


def _padded(x, kernel_size: Sequence[int], dilation: int):
  """x with zeros around it, half the kernel's reach on each side."""
  ph, pw = (dilation * (side - 1) // 2 for side in kernel_size)
  return jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))


def _reach_of_tap(size: int, stride: int) -> int:
  """Pixels from the first that a tap meets to the last, both included, along a side of x."""
  return ((size - 1) // stride) * stride + 1


def _views(padded, kernel_size: Sequence[int], size: Sequence[int], stride: int, dilation: int):
  """What each tap sees of an input of that size: [B, H', W', C] views, in the kernel's order."""
  (kh, kw), (rows, columns) = kernel_size, (_reach_of_tap(side, stride) for side in size)
  for index in range(kh * kw):
    row, column = dilation * (index // kw), dilation * (index % kw)
    # lax.slice: NumPy's indexing takes ten times as long to trace, and there are hundreds.
    stop = (len(padded), row + rows, column + columns, padded.shape[-1])
    yield lax.slice(padded, (0, row, column, 0), stop, (1, stride, stride, 1))


def _cpu_depthwise(x, kernel, *, stride, dilation):
  """Depthwise convolution as one multiply-add a tap, which XLA fuses into a single loop."""
  # Without the barrier XLA takes the middle tap from x and so writes x as well as its padded copy.
  padded = lax.optimization_barrier(_padded(x, kernel.shape[:2], dilation))
  views = _views(padded, kernel.shape[:2], x.shape[1:3], stride, dilation)
  weights = kernel.reshape(-1, x.shape[-1])
  if x.shape[-1] == 1:
    # XLA would repeat the nine taps in every loop that uses the one channel; not so a product.
    views = list(views)
    return (weights[:, 0] @ jnp.stack([v.reshape(-1) for v in views])).reshape(views[0].shape)
  return functools.reduce(jnp.add, (view * w for view, w in zip(views, weights, strict=True)))


def _gpu_depthwise(x, kernel, *, stride, dilation):
  """The same with the padding in the loop, and summed in float32, as XLA's own is."""
  padded = _padded(x, kernel.shape[:2], dilation)
  views = _views(padded, kernel.shape[:2], x.shape[1:3], stride, dilation)
  weights = kernel.reshape(-1, x.shape[-1]).astype(jnp.float32)
  terms = (view.astype(jnp.float32) * w for view, w in zip(views, weights, strict=True))
  return functools.reduce(jnp.add, terms).astype(x.dtype)


def _cpu_input_grad(x_shape, kernel, grad, *, stride, dilation):
  """Gradient of the input: the output gradient convolved with the kernel turned around."""
  if stride == 1:
    return _cpu_depthwise(grad, kernel[::-1, ::-1], stride=1, dilation=dilation)
  return _input_grad_of_stride_2(x_shape, kernel, grad)


def _gpu_input_grad(x_shape, kernel, grad, *, stride, dilation):
  """The same, in the form for a GPU."""
  if stride == 1:
    return _gpu_depthwise(grad, kernel[::-1, ::-1], stride=1, dilation=dilation)
  wide = _input_grad_of_stride_2(x_shape, kernel.astype(jnp.float32), grad.astype(jnp.float32))
  return wide.astype(grad.dtype)


def _input_grad_of_stride_2(x_shape, kernel, grad):
  """Gradient of the input of a 3x3 kernel with stride 2.

  Every input pixel meets only the taps of its own parity, so the four parities are computed apart
  and interleaved; spreading the gradient out with zeros would be four times the work.
  """
  _, h, w, _ = x_shape
  weights = kernel[:, :, 0]
  below = jnp.pad(grad, ((0, 0), (0, 1), (0, 1), (0, 0)))
  right, down, diagonal = below[:, :-1, 1:], below[:, 1:, :-1], below[:, 1:, 1:]
  even = [grad * weights[1, 1], right * weights[1, 0] + grad * weights[1, 2]]
  odd = [
    down * weights[0, 1] + grad * weights[2, 1],
    diagonal * weights[0, 0] + down * weights[0, 2] + right * weights[2, 0] + grad * weights[2, 2],
  ]
  rows = jnp.stack([jnp.stack(even, 3), jnp.stack(odd, 3)], 2)  # [B, H', 2, W', 2, C]
  b, out_h, _, out_w, _, c = rows.shape
  return rows.reshape(b, 2 * out_h, 2 * out_w, c)[:, :h, :w]


def _cpu_kernel_grad(x, kernel, grad, *, stride, dilation):
  """Gradient of the kernel: per tap, the sum over batch and space of input times output gradient.

  Summing over the batch first, image by image, keeps the loop along the channels and hands the
  rest of the sum to a matrix product; a plain reduction walks each channel with a long stride and
  takes four times as long. Devices that share a batch each sum their own images, for an image taken
  out of the whole batch would have to be sent to all of them.
  """
  shares = jax.device_count()
  if shares > 1 and len(x) % shares == 0:
    own = functools.partial(_kernel_grad_of_images, kernel=kernel, stride=stride, dilation=dilation)
    x, grad = (a.reshape(shares, -1, *a.shape[1:]) for a in (x, grad))
    return jnp.sum(jax.vmap(own)(x, grad), 0).astype(kernel.dtype)
  sums = _kernel_grad_of_images(x, grad, kernel=kernel, stride=stride, dilation=dilation)
  return sums.astype(kernel.dtype)


def _kernel_grad_of_images(x, grad, *, kernel, stride, dilation):
  """The same in float32: a loop over the taps, the images written out in its body.

  With the taps written out as well, one convolution takes 0.6 CPU seconds to compile instead of
  0.3, and the network with its gradient 32 instead of 22 (8 images of 128x128, two cores), for the
  same bits. The fastest of 25 to 61 calls in turn is no faster so for most of nine shapes of maps.
  """
  kw, channels = kernel.shape[1], x.shape[-1]
  rows, columns = (_reach_of_tap(size, stride) for size in x.shape[1:3])
  padded = lax.optimization_barrier(_padded(x.astype(jnp.float32), kernel.shape[:2], dilation))
  grad = grad.astype(jnp.float32)

  def tap(index):
    row, column = dilation * (index // kw), dilation * (index % kw)

    def product(image):
      seen = lax.dynamic_slice(padded, (image, row, column, 0), (1, rows, columns, channels))
      seen = lax.slice(seen, (0, 0, 0, 0), seen.shape, (1, stride, stride, 1))
      # Outside the loop each image's gradient would be copied, by a program of its own.
      return lax.mul(seen, lax.slice_in_dim(grad, image, image + 1))

    partial = functools.reduce(lax.add, map(product, range(len(grad)))).reshape(-1, channels)
    return jnp.ones((1, partial.shape[0]), partial.dtype) @ partial

  return lax.map(tap, jnp.arange(kernel.shape[0] * kw)).reshape(kernel.shape)


def _gpu_kernel_grad(x, kernel, grad, *, stride, dilation):
  """Gradient of the kernel for a GPU: one sum over batch and space for all taps."""
  padded, grad = _padded(x, kernel.shape[:2], dilation), grad.astype(jnp.float32)
  views = _views(padded, kernel.shape[:2], x.shape[1:3], stride, dilation)
  products = jnp.stack([view.astype(jnp.float32) * grad for view in views])
  return jnp.sum(products, axis=(1, 2, 3)).reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_conv(x, kernel, stride: int = 1, dilation: int = 1, form: str = "platform"):
  """Convolves each channel with a kernel of its own.

  Padded by dilation * (k - 1) / 2 zeros above and below and dilation * (l - 1) / 2 at the sides, so
  that stride 1 keeps the size and stride 2 gives ceil(size / 2).

  Args:
    x: [B, H, W, C], any float dtype.
    kernel: [k, l, 1, C] of the same dtype, k and l odd.
    stride: step in both directions, in pixels.
    dilation: distance between taps, in pixels.
    form: one of `FORMS`.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), C] in the dtype of x.

  Raises:
    ValueError: if form is none of them, or the stride is not 1, nor 2 with a 3x3 kernel undilated.
  """
  if stride != 1 and (stride, dilation, *kernel.shape[:2]) != (2, 1, 3, 3):
    raise ValueError("stride 2 takes a 3x3 kernel without dilation, and no stride is larger")
  options = {"stride": stride, "dilation": dilation}
  return _by_platform(
    form,
    x,
    kernel,
    cpu=functools.partial(_cpu_depthwise, **options),
    gpu=functools.partial(_gpu_depthwise, **options),
    library=functools.partial(_library_conv, groups=x.shape[-1], **options),
  )


def _depthwise_forward(x, kernel, stride, dilation, form):
  return depthwise_conv(x, kernel, stride, dilation, form), (x, kernel)


def _depthwise_backward(stride, dilation, form, residuals, grad):
  options = {"stride": stride, "dilation": dilation}

  def cpu(x, kernel, grad):
    # Without the barrier XLA shares the nine shifted views with the forward pass, and so has to
    # write all nine to memory instead of fusing them.
    x = lax.optimization_barrier(x)
    grad_x = _cpu_input_grad(x.shape, kernel, grad, **options)
    return grad_x, _cpu_kernel_grad(x, kernel, grad, **options)

  def gpu(x, kernel, grad):
    grad_x = _gpu_input_grad(x.shape, kernel, grad, **options)
    return grad_x, _gpu_kernel_grad(x, kernel, grad, **options)

  def library(x, kernel, grad):
    conv = functools.partial(_library_conv, groups=x.shape[-1], **options)
    return jax.vjp(conv, x, kernel)[1](grad)

  return _by_platform(form, *residuals, grad, cpu=cpu, gpu=gpu, library=library)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


def _blocks_conv(x, kernel):
  """3x3 convolution with stride 2 as one matrix product over squares of 2x2 pixels.

  An output pixel sees 3x3 pixels, which lie in 2x2 squares: its own and those above and to the
  left. Gathering squares copies runs of 2 C floats, gathering pixels runs of C, and C is 3 here.
  """
  b, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
  rows, columns = (h + 1) // 2, (w + 1) // 2
  pairs = x.reshape(b, rows, 2, columns, 2 * c)
  squares = jnp.concatenate([pairs[:, :, 0], pairs[:, :, 1]], -1)
  squares = jnp.pad(squares, ((0, 0), (1, 0), (1, 0), (0, 0)))
  seen = [squares[:, i : i + rows, j : j + columns] for i in (0, 1) for j in (0, 1)]
  # Rows and columns -2 to 1 from the centre of the kernel, of which it lacks the first.
  wide = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(2, 2, 2, 2, c, -1)
  matrix = wide.transpose(0, 2, 1, 3, 4, 5).reshape(16 * c, -1)
  return jnp.dot(jnp.concatenate(seen, -1), matrix)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def downsampling_conv(x, kernel, form: str = "platform"):
  """Convolves few channels with a 3x3 kernel and stride 2, padded by one pixel of zeros.

  Args:
    x: [B, H, W, C], any float dtype.
    kernel: [3, 3, C, C'] of the same dtype.
    form: one of `FORMS`.

  Returns:
    [B, ceil(H / 2), ceil(W / 2), C'] in the dtype of x.

  Raises:
    ValueError: if form is none of them.
  """
  library = functools.partial(_library_conv, stride=2, dilation=1)
  return _by_platform(form, x, kernel, cpu=_blocks_conv, library=library)


def _downsampling_forward(x, kernel, form):
  return downsampling_conv(x, kernel, form), (x, kernel)


def _downsampling_backward(form, residuals, grad):
  library = functools.partial(_library_conv, stride=2, dilation=1)
  cpu, plain = (
    lambda x, kernel, grad, f=f: jax.vjp(f, x, kernel)[1](grad) for f in (_blocks_conv, library)
  )
  return _by_platform(form, *residuals, grad, cpu=cpu, library=plain)


downsampling_conv.defvjp(_downsampling_forward, _downsampling_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def pointwise_conv(x, kernel, form: str = "platform", dtype=None):
  """Convolves with a 1x1 kernel, which is one matrix product over the channels.

  Args:
    x: [B, H, W, C], any float dtype.
    kernel: [1, 1, C, C'] of the same dtype.
    form: one of `FORMS`. All but the library's are the matrix product: a GPU's matrix library runs
      it as fast as its convolution library.
    dtype: of the result, that of x for None. Sums are float32 inside, and float32 keeps them so.

  Returns:
    [B, H, W, C'] in that dtype.

  Raises:
    ValueError: if form is none of them.
  """
  _check_form(form)
  if form == "library":
    return _library_conv(x, kernel, stride=1, dilation=1, dtype=dtype)
  return jnp.dot(x, kernel[0, 0], preferred_element_type=dtype)


def _pointwise_forward(x, kernel, form, dtype):
  return pointwise_conv(x, kernel, form, dtype), (x, kernel)


def _pointwise_backward(form, dtype, residuals, grad):
  del dtype
  x, kernel = residuals
  grad = grad.astype(x.dtype)
  if form == "library":
    conv = functools.partial(_library_conv, stride=1, dilation=1)
    return jax.vjp(conv, x, kernel)[1](grad)
  grad_x = lax.dot_general(grad, kernel[0, 0], (((3,), (1,)), ((), ())))
  # The product over all pixels needs one side transposed. Choosing the one with fewer channels,
  # which XLA leaves to chance, makes this up to five times as fast on a CPU.
  few, many = (x, grad) if x.shape[-1] <= grad.shape[-1] else (grad, x)
  pixels = (((0,), (0,)), ((), ()))
  product = lax.dot_general(
    few.reshape(-1, few.shape[-1]), many.reshape(-1, many.shape[-1]), pixels
  )
  grad_kernel = product if few is x else product.T
  return grad_x, grad_kernel[None, None]


pointwise_conv.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_einsum(subscripts: str, a, b):
  """Einstein sum of two arrays whose result keeps the float32 in which products are summed.

  Its gradient goes back to the dtype of a and b first, so that in half precision the products of
  the backward pass take half-precision operands as well.

  Args:
    subscripts: as of `numpy.einsum`.
    a: of any float dtype.
    b: of the same.

  Returns:
    Float32.
  """
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _wide_einsum_forward(subscripts, a, b):
  return wide_einsum(subscripts, a, b), (a, b)


def _wide_einsum_backward(subscripts, residuals, grad):
  pull = jax.vjp(functools.partial(jnp.einsum, subscripts), *residuals)[1]
  return pull(grad.astype(residuals[0].dtype))


wide_einsum.defvjp(_wide_einsum_forward, _wide_einsum_backward)


def _interpolation_weights(size: int, target: int) -> np.ndarray:
  """Matrix [target, size] of linear interpolation between pixel centres, held at the frame."""
  centres = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
  return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size))).astype(np.float32)


def enlarge(x, height: int, width: int):
  """Resizes to a larger grid by bilinear interpolation, as two matrix products.

  For maps of one channel; `jax.image.resize` would take its products in float32.

  Args:
    x: [B, h, w, 1], any float dtype.
    height: h or more.
    width: w or more.

  Returns:
    [B, height, width, 1] in the dtype of x.
  """
  rows, columns = (
    jnp.asarray(_interpolation_weights(*sizes), x.dtype)
    for sizes in ((x.shape[1], height), (x.shape[2], width))
  )
  y = wide_einsum("bhw,Hh->bHw", x[..., 0], rows).astype(x.dtype)
  return wide_einsum("bHw,Ww->bHW", y, columns)[..., None].astype(x.dtype)


def _part(x, axis: int, start: int, stop: int | None):
  return x[(slice(None),) * axis + (slice(start, stop),)]


def _lerp_double(x, axis: int):
  """Doubles one axis: each new value lies a quarter step from an old one."""
  before = jnp.concatenate([_part(x, axis, 0, 1), _part(x, axis, 0, -1)], axis)
  after = jnp.concatenate([_part(x, axis, 1, None), _part(x, axis, -1, None)], axis)
  pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
  return pair.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def _lerp_double_grad(grad, axis: int):
  """Adjoint of `_lerp_double`: every old value gathers from the four new ones around it."""
  pair = grad.reshape(*grad.shape[:axis], -1, 2, *grad.shape[axis + 1 :])
  even, odd = (jnp.take(pair, i, axis + 1) for i in (0, 1))
  after = jnp.concatenate([_part(even, axis, 1, None), _part(odd, axis, -1, None)], axis)
  before = jnp.concatenate([_part(even, axis, 0, 1), _part(odd, axis, 0, -1)], axis)
  return 0.75 * (even + odd) + 0.25 * (after + before)


def _library_upsample2x(x):
  b, h, w, c = x.shape
  return jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def upsample2x(x, form: str = "platform"):
  """Doubles height and width by bilinear interpolation between pixel centres.

  Args:
    x: [B, H, W, C], any float dtype.
    form: one of `FORMS`. All but the library's are the weighted sum: the library multiplies with
      matrices that are nearly all zeros.

  Returns:
    [B, 2H, 2W, C] in the dtype of x.

  Raises:
    ValueError: if form is none of them.
  """
  _check_form(form)
  return _library_upsample2x(x) if form == "library" else _lerp_double(_lerp_double(x, 1), 2)


def _upsample_forward(x, form):
  return upsample2x(x, form), None


def _upsample_backward(form, _, grad):
  if form != "library":
    return (_lerp_double_grad(_lerp_double_grad(grad, 2), 1),)
  b, h, w, c = grad.shape
  shape = jax.ShapeDtypeStruct((b, h // 2, w // 2, c), grad.dtype)
  return jax.linear_transpose(_library_upsample2x, shape)(grad)


upsample2x.defvjp(_upsample_forward, _upsample_backward)


def _lerp_weights(size: int, factor: int, axis: int, aligned: bool) -> list[np.ndarray]:
  """What values, `factor` times as many along an axis, take of those before, at and after them.

  Of n old values, the new ones factor k to factor k + factor - 1 lie less than a step from the old
  one k, so that it and its two neighbours are all that they see.

  Args:
    size: number of old values.
    factor: 2 or more.
    axis: of [B, H, W, C].
    aligned: whether the first and the last of both lie on each other; else their frames do.

  Returns:
    Three [factor, n, 1, ...], to be multiplied with arrays of rank 4, the axis at its place.
  """
  if aligned:
    places = np.arange(factor * size) * (size - 1) / (factor * size - 1)
  else:
    places = np.clip((np.arange(factor * size) + 0.5) / factor - 0.5, 0, size - 1)
  steps = places.reshape(size, factor).T - np.arange(size)
  steps = steps.reshape(factor, size, *(1,) * (3 - axis)).astype(np.float32)
  return [np.maximum(0, -steps), 1 - np.abs(steps), np.maximum(0, steps)]


def _lerp(x, axis: int, factor: int, aligned: bool):
  """Enlarges one axis; beyond the frame are copies of the first and the last values."""
  x = x.astype(jnp.float32)
  before = jnp.concatenate([_part(x, axis, 0, 1), _part(x, axis, 0, -1)], axis)
  after = jnp.concatenate([_part(x, axis, 1, None), _part(x, axis, -1, None)], axis)
  weights = zip(*_lerp_weights(x.shape[axis], factor, axis, aligned), strict=True)
  new = jnp.stack([before * b + x * at + after * a for b, at, a in weights], axis + 1)
  return new.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _lerp_grad(grad, axis: int, factor: int, aligned: bool):
  """Adjoint of `_lerp`: an old value gathers from all new ones that have seen it."""
  size = grad.shape[axis] // factor
  new = grad.reshape(*grad.shape[:axis], size, factor, *grad.shape[axis + 1 :])
  to_before, to_own, to_after = (
    sum(jnp.take(new, i, axis + 1) * w for i, w in enumerate(weights))
    for weights in _lerp_weights(size, factor, axis, aligned)
  )
  none = jnp.zeros_like(_part(to_own, axis, 0, 1))
  from_next = jnp.concatenate([_part(to_before, axis, 1, None), none], axis)
  from_last = jnp.concatenate([none, _part(to_after, axis, 0, -1)], axis)
  return to_own + from_next + from_last


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def enlarge_by(x, factor: int, aligned: bool = False):
  """Multiplies height and width by bilinear interpolation. Sums are float32 inside.

  Args:
    x: [B, H, W, C], any float dtype.
    factor: 2 or more.
    aligned: whether the corner pixels of both grids lie on each other, instead of their frames. So
      do several networks in PyTorch (`align_corners=True`); `jax.image.resize` cannot.

  Returns:
    [B, factor H, factor W, C] in the dtype of x.
  """
  return _lerp(_lerp(x, 1, factor, aligned), 2, factor, aligned).astype(x.dtype)


def _enlarge_forward(x, factor, aligned):
  return enlarge_by(x, factor, aligned), None


def _enlarge_backward(factor, aligned, _, grad):
  wide = _lerp_grad(grad.astype(jnp.float32), 2, factor, aligned)
  return (_lerp_grad(wide, 1, factor, aligned).astype(grad.dtype),)


enlarge_by.defvjp(_enlarge_forward, _enlarge_backward)


def enlarge_aligned(x, factor: int):
  """`enlarge_by` with the corner pixels on each other."""
  return enlarge_by(x, factor, True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(x, scale, bias, epsilon: float, activate: bool):
  """Normalises by the batch's own statistics, then optionally applies SiLU.

  Only x and the statistics are kept for the gradient, everything between is computed again: on
  every platform this step waits for memory, not for arithmetic.

  Args:
    x: [B, H, W, C], any float dtype.
    scale: [C] float32.
    bias: [C] float32.
    epsilon: added to the variance.
    activate: whether SiLU follows.

  Returns:
    y: [B, H, W, C] in the dtype of x.
    mean: [C] float32, over batch and pixels.
    variance: [C] float32, of the batch itself (divided by its size).

  Reference: Ioffe and Szegedy, 2015.
  """
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, axis=(0, 1, 2))
  variance = jnp.maximum(jnp.mean(wide * wide, axis=(0, 1, 2)) - mean * mean, 0)
  z = (wide - mean) * (scale * lax.rsqrt(variance + epsilon)) + bias
  y = z * jax.nn.sigmoid(z) if activate else z
  return y.astype(x.dtype), mean, variance


def _batch_norm_forward(x, scale, bias, epsilon, activate):
  y, mean, variance = batch_norm(x, scale, bias, epsilon, activate)
  return (y, mean, variance), (x, scale, bias, mean, variance)


def _batch_norm_backward(epsilon, activate, residuals, grads):
  x, scale, bias, mean, variance = residuals
  # The statistics go to the running averages, which nothing is differentiated through.
  grad = grads[0].astype(jnp.float32)
  inverse = lax.rsqrt(variance + epsilon)
  standard = (x.astype(jnp.float32) - mean) * inverse
  if activate:
    z = standard * scale + bias
    gate = jax.nn.sigmoid(z)
    grad = grad * (gate * (1 + z * (1 - gate)))
  count = x.size // x.shape[-1]
  grad_bias = jnp.sum(grad, axis=(0, 1, 2))
  grad_scale = jnp.sum(grad * standard, axis=(0, 1, 2))
  grad_x = (grad - (grad_bias + standard * grad_scale) / count) * (scale * inverse)
  return grad_x.astype(x.dtype), grad_scale, grad_bias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
