"""Operations: each form against the other, and both against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medlitenet_jax.models import ops

FORMS = tuple(form for form in ops.FORMS if form != "platform")  # that is one of the others
# Every (stride, dilation) that a network uses: strides in the encoder, dilations in the ASPP.
STEPS = ((1, 1), (2, 1), (1, 3), (1, 4), (1, 6), (1, 8), (1, 12))
SHAPES = ((1, 1, 1, 3), (2, 5, 7, 5), (2, 8, 6, 1))


def normal(*shape, seed=0, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def depthwise_loops(x, kernel, stride, dilation):
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
  size = kernel.shape[0]
  reach = dilation * (size - 1) // 2
  padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
  b, h, w, c = x.shape
  out = np.zeros((b, -(-h // stride), -(-w // stride), c))
  for i, j in np.ndindex(out.shape[1:3]):
    for u, v in np.ndindex(size, size):
      pixel = padded[:, i * stride + u * dilation, j * stride + v * dilation]
      out[:, i, j] += pixel * kernel[u, v, 0]
  return out


def interpolation(size, doubled):
  """Weights [doubled, size] of linear interpolation between pixel centres, held at the frame."""
  centres = np.clip((np.arange(doubled) + 0.5) * size / doubled - 0.5, 0, size - 1)
  return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))


def forward_and_gradients(op, *args):
  """The operation's value and the gradients of all arguments, for one random output gradient."""

  @jax.jit
  def run(*args):
    y, pull = jax.vjp(op, *args)
    return y, pull(normal(*y.shape, seed=9, dtype=y.dtype))

  return run(*args)


def assert_forms_agree(op, *args, **tolerance):
  """Compares op(form, *args) and all its gradients between the forms."""
  *fast, plain = (forward_and_gradients(functools.partial(op, form), *args) for form in FORMS)
  for form in fast:
    for a, b in zip(jax.tree.leaves(form), jax.tree.leaves(plain), strict=True):
      assert a.shape == b.shape and a.dtype == b.dtype
      np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance)


def depthwise(form, x, kernel, *, stride=1, dilation=1):
  return ops.depthwise_conv(x, kernel, stride, dilation, form)


def pointwise(form, x, kernel):
  return ops.pointwise_conv(x, kernel, form)


def downsampling(form, x, kernel):
  return ops.downsampling_conv(x, kernel, form)


def upsample(form, x):
  return ops.upsample2x(x, form)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("stride", "dilation"), STEPS)
def test_depthwise_forms_agree(shape, stride, dilation):
  op = functools.partial(depthwise, stride=stride, dilation=dilation)
  x, kernel = normal(*shape), normal(3, 3, 1, shape[-1], seed=1)
  assert_forms_agree(op, x, kernel, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 4, 3), (1, 7, 1, 3), (3, 2, 3, 3)])
def test_stride_2_forms_agree_on_thin_maps(shape):
  op = functools.partial(depthwise, stride=2)
  assert_forms_agree(op, normal(*shape), normal(3, 3, 1, 3, seed=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3), (1, 12)])
def test_depthwise_is_the_sum_over_taps(form, stride, dilation):
  for shape in ((1, 1, 1, 2), (2, 5, 7, 3), (1, 14, 13, 2)):
    x, kernel = normal(*shape), normal(3, 3, 1, shape[-1], seed=1)
    expected = depthwise_loops(x, kernel, stride, dilation)
    got = ops.depthwise_conv(x, kernel, stride, dilation, form)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_depthwise_takes_a_strip():
  x = normal(2, 6, 7, 3)
  square = np.zeros((5, 5, 1, 3), np.float32)
  square[:, 2] = normal(5, 1, 3, seed=1)
  for whole, kernel in (
    (square, square[:, 2:3]),
    (square.swapaxes(0, 1), square[:, 2:3].swapaxes(0, 1)),
  ):
    np.testing.assert_allclose(
      ops.depthwise_conv(x, kernel), depthwise_loops(x, whole, 1, 1), rtol=1e-5, atol=1e-5
    )
    assert_forms_agree(depthwise, x, kernel, rtol=1e-5, atol=1e-5)


def test_depthwise_takes_a_larger_kernel():
  x, kernel = normal(1, 6, 7, 2), normal(5, 5, 1, 2, seed=1)
  np.testing.assert_allclose(
    ops.depthwise_conv(x, kernel), depthwise_loops(x, kernel, 1, 1), rtol=1e-5, atol=1e-5
  )
  assert_forms_agree(depthwise, x, kernel, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stride", "dilation", "side"), [(2, 2, 3), (3, 1, 3), (2, 1, 5)])
def test_a_stride_without_a_gradient_is_refused(stride, dilation, side):
  """The fast form has no gradient for these, so training with them must not silently go wrong."""
  x, kernel = normal(1, 9, 9, 2), normal(side, side, 1, 2, seed=1)
  with pytest.raises(ValueError, match="stride"):
    jax.grad(lambda x: ops.depthwise_conv(x, kernel, stride, dilation).sum())(x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 7, 3), (1, 6, 4, 3)])
def test_downsampling_is_the_sum_over_taps_and_channels(form, shape):
  x, kernel = normal(*shape), normal(3, 3, shape[-1], 4, seed=1)
  expected = np.stack(
    [depthwise_loops(x, kernel[..., c][:, :, None, :], 2, 1).sum(-1) for c in range(4)],
    axis=-1,
  )
  got = ops.downsampling_conv(x, kernel, form)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 7, 3), (1, 6, 4, 3)])
def test_downsampling_forms_agree(shape):
  kernel = normal(3, 3, shape[-1], 4, seed=1)
  assert_forms_agree(downsampling, normal(*shape), kernel, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_pointwise_keeps_the_sum_of_halves_in_float32(form):
  x, kernel = (normal(*s, dtype=jnp.bfloat16) for s in ((1, 4, 4, 64), (1, 1, 64, 1)))
  wide = ops.pointwise_conv(x, kernel, form, jnp.float32)
  exact = np.asarray(x, np.float32) @ np.asarray(kernel, np.float32)[0, 0]
  assert wide.dtype == jnp.float32
  np.testing.assert_allclose(wide, exact, rtol=1e-5, atol=1e-5)
  assert np.abs(ops.pointwise_conv(x, kernel, form).astype(np.float32) - exact).max() > 1e-3

  def loss(x, kernel):
    return jnp.sum(ops.pointwise_conv(x, kernel, form, jnp.float32))

  assert [g.dtype for g in jax.grad(loss, (0, 1))(x, kernel)] == [jnp.bfloat16] * 2


@pytest.mark.parametrize("form", FORMS)
def test_pointwise_is_a_product_over_channels(form):
  x, kernel = normal(2, 3, 5, 4), normal(1, 1, 4, 6, seed=1)
  expected = np.zeros((2, 3, 5, 6))
  for i, j in np.ndindex(4, 6):
    expected[..., j] += np.asarray(x[..., i] * kernel[0, 0, i, j])
  np.testing.assert_allclose(ops.pointwise_conv(x, kernel, form), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [(3, 8), (8, 3), (4, 4)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4)])
def test_pointwise_forms_agree(shape, channels):
  x, kernel = normal(*shape, channels[0]), normal(1, 1, *channels, seed=1)
  assert_forms_agree(pointwise, x, kernel, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [(4, 6), (8, 6), (32, 13)])
def test_enlarging_is_jaxs_resize(target):
  x = normal(2, 4, 6, 1)
  expected = jax.image.resize(x, (2, *target, 1), "bilinear")
  np.testing.assert_allclose(ops.enlarge(x, *target), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "factor"), [((2, 3), 2), ((5, 1), 4), ((3, 2), 8)])
def test_enlarging_lies_on_straight_lines_between_old_values(size, factor, aligned):
  """Aligned, the corners stay; and the gradient is adjoint."""
  x, grad = normal(2, *size, 3), normal(2, *(factor * side for side in size), 3, seed=1)

  def weights(n):
    places = (np.arange(factor * n) + 0.5) / factor - 0.5
    if aligned:
      places = np.linspace(0, n - 1, factor * n)
    return np.array([np.interp(places, range(n), one) for one in np.eye(n)])

  rows, columns = map(weights, size)
  y, pull = jax.vjp(lambda x: ops.enlarge_by(x, factor, aligned), x)
  np.testing.assert_allclose(y, np.einsum("bhwc,hH,wW->bHWc", x, rows, columns), atol=1e-6)
  expected = np.einsum("bHWc,hH,wW->bhwc", grad, rows, columns)
  np.testing.assert_allclose(pull(jnp.asarray(grad))[0], expected, atol=1e-5)
  half = ops.enlarge_by(x.astype(jnp.bfloat16), factor, aligned)
  assert half.dtype == jnp.bfloat16


def test_wide_einsum_sums_halves_in_float32_and_its_gradient_is_half():
  a, b = normal(3, 40, dtype=jnp.bfloat16), normal(40, 5, dtype=jnp.bfloat16)
  exact = np.asarray(a, np.float32) @ np.asarray(b, np.float32)
  y, pull = jax.vjp(functools.partial(ops.wide_einsum, "ik,kj->ij"), a, b)
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)
  grad = normal(3, 5, seed=2)
  grads = pull(grad)
  assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
  np.testing.assert_allclose(
    np.asarray(grads[0], np.float32), grad @ np.asarray(b, np.float32).T, rtol=0.02, atol=0.05
  )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 2), (1, 4, 8, 1)])
def test_upsample_interpolates_between_pixel_centres(form, shape):
  x = normal(*shape)
  rows, columns = (interpolation(n, 2 * n) for n in shape[1:3])
  expected = np.einsum("ih,jw,bhwc->bijc", rows, columns, x)
  np.testing.assert_allclose(ops.upsample2x(x, form), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 2), (1, 4, 8, 1), (2, 2, 1, 3)])
def test_upsample_forms_agree(shape):
  assert_forms_agree(upsample, normal(*shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_forms_agree_in_half_precision(dtype):
  draw = functools.partial(normal, dtype=dtype)
  loose = {"rtol": 0.05, "atol": 0.1} if dtype == jnp.bfloat16 else {"rtol": 0.01, "atol": 0.02}
  x, kernel = draw(2, 8, 7, 4), draw(3, 3, 1, 4, seed=1)
  for stride in (1, 2):
    assert_forms_agree(functools.partial(depthwise, stride=stride), x, kernel, **loose)
  assert_forms_agree(pointwise, x, draw(1, 1, 4, 6, seed=1), **loose)
  assert_forms_agree(upsample, x, **loose)


def test_the_kernel_gradient_is_summed_wider_than_float16():
  """One tap sees 300 x 300 pixels of 1, more than float16 can count."""
  x, kernel = jnp.ones((2, 300, 300, 1), jnp.float16), jnp.ones((3, 3, 1, 1), jnp.float16)
  weight = jnp.float16(1 / 1024)
  grad = jax.grad(lambda k: jnp.sum(ops.depthwise_conv(x, k) * weight, dtype=jnp.float32))(kernel)
  np.testing.assert_allclose(grad[1, 1, 0, 0], 2 * 300 * 300 / 1024, rtol=1e-3)


@pytest.mark.parametrize("op", [depthwise, pointwise])
def test_vmap_equals_a_loop(op):
  x = normal(3, 2, 5, 4, 6)
  kernel = normal(3, 3, 1, 6, seed=1) if op is depthwise else normal(1, 1, 6, 2, seed=1)

  def value_and_grads(x):
    y, pull = jax.vjp(functools.partial(op, "platform"), x, kernel)
    return y, *pull(jnp.cos(y))

  together = jax.vmap(value_and_grads)(x)
  apart = [value_and_grads(part) for part in x]
  for a, b in zip(together, zip(*apart, strict=True), strict=True):
    np.testing.assert_allclose(a, np.stack(b), rtol=1e-5, atol=1e-5)


def test_vmap_of_upsample_equals_a_loop():
  x = normal(3, 2, 5, 4, 6)
  np.testing.assert_allclose(
    jax.vmap(ops.upsample2x)(x), np.stack([ops.upsample2x(part) for part in x]), rtol=1e-6
  )


@pytest.mark.parametrize(
  "call",
  [
    lambda form: ops.depthwise_conv(normal(1, 4, 4, 2), normal(3, 3, 1, 2), form=form),
    lambda form: ops.pointwise_conv(normal(1, 4, 4, 2), normal(1, 1, 2, 2), form),
    lambda form: ops.upsample2x(normal(1, 4, 4, 2), form),
  ],
)
def test_an_unknown_form_is_refused(call):
  with pytest.raises(ValueError, match="form must be one of"):
    call("fastest")


def lowered(form, platform, *, gradient):
  x, kernel = jnp.zeros((1, 8, 8, 5)), jnp.zeros((3, 3, 1, 5))

  def run(x, kernel):
    if gradient:
      return jax.vjp(functools.partial(depthwise, form), x, kernel)[1](x)
    return depthwise(form, x, kernel)

  return jax.jit(run).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("gradient", [False, True])
def test_the_platform_chooses_the_convolution(gradient, monkeypatch):
  """Neither a CPU nor a GPU runs XLA's own, and the two have different forms."""
  forms = {form: lowered(form, "cuda", gradient=gradient) for form in FORMS}
  assert len(set(forms.values())) == 3
  for form, program in forms.items():
    assert ("stablehlo.convolution" in program) == (form == "library"), form
  for platform, form in (("cpu", "cpu"), ("gpu", "gpu"), ("tpu", "library")):
    monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
    jax.clear_caches()
    assert lowered("platform", "cuda", gradient=gradient) == forms[form]


def test_the_kernel_gradient_is_compiled_once_for_all_taps():
  text = lowered("platform", "cpu", gradient=True)
  assert text.count("stablehlo.dot_general") == text.count("stablehlo.while") == 1


def batch_norm_definition(x, scale, bias, epsilon, activate):
  mean = jnp.mean(x, axis=(0, 1, 2))
  variance = jnp.mean((x - mean) ** 2, axis=(0, 1, 2))
  z = (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias
  return z * jax.nn.sigmoid(z) if activate else z


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 1, 1, 3), (3, 1, 2, 1)])
def test_batch_norm_is_its_definition(shape, activate):
  x, scale, bias = 2 * normal(*shape) + 1, normal(shape[-1], seed=1), normal(shape[-1], seed=2)
  epsilon = 1e-2
  y, mean, variance = ops.batch_norm(x, scale, bias, epsilon, activate)
  wide = np.asarray(x, np.float64)
  np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=1e-4, atol=1e-5)
  z = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + epsilon) * scale + bias
  np.testing.assert_allclose(y, z / (1 + np.exp(-z)) if activate else z, rtol=1e-4, atol=1e-5)

  def own(x, scale, bias):
    return ops.batch_norm(x, scale, bias, epsilon, activate)[0]

  def plain(x, scale, bias):
    return batch_norm_definition(x, scale, bias, epsilon, activate)

  for a, b in zip(
    jax.tree.leaves(forward_and_gradients(own, x, scale, bias)),
    jax.tree.leaves(forward_and_gradients(plain, x, scale, bias)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_batch_norm_counts_in_float32(dtype):
  """300 x 300 pixels of 2 overflow a float16 sum, and stop a bfloat16 one at 512."""
  x = jnp.full((1, 300, 300, 1), 2, dtype).at[:, ::2].set(4)
  y, mean, variance = ops.batch_norm(x, jnp.ones(1), jnp.zeros(1), 1e-5, False)
  assert y.dtype == dtype and mean.dtype == variance.dtype == jnp.float32
  np.testing.assert_allclose((mean[0], variance[0]), (3, 1), rtol=1e-5)
  np.testing.assert_allclose(np.asarray(y[0, :2, 0, 0], np.float32), (1, -1), rtol=1e-2)


def test_batch_norm_of_a_constant_is_its_bias():
  x = jnp.full((2, 7, 7, 2), 1234.5)
  y, _, variance = ops.batch_norm(x, jnp.ones(2), jnp.array([0.5, -1.0]), 1e-5, False)
  assert np.all(np.asarray(variance) >= 0)
  np.testing.assert_allclose(y, np.broadcast_to([0.5, -1.0], x.shape), atol=1e-5)
