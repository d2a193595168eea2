"""Formats the results of a benchmark as text."""

from collections.abc import Mapping
from typing import Any

from medlitenet_jax.system import tables


def page(result: Mapping[str, Any]) -> str:
  """Formats the content of `benchmark.json`.

  Args:
    result: content of `benchmark.json`.

  Returns:
    Text with Markdown tables.
  """
  size = result["parts_image_size"]
  parts = [(p["name"], f"{p['params']:,}", f"{p['flops'] / 1e6:,.1f}") for p in result["parts"]]
  lines = [
    f"{result['model']}, {result['precision']}, {result['device']} ({result['machine']}, "
    f"{result['cores']} cores)",
    tables.table(("part", "parameters", f"MFLOP at {size}x{size}"), parts),
  ]
  for group in result["groups"]:
    lines.append(
      f"{group['title']}: beside them a matrix product ran at {group['matmul_gflops']:.0f} "
      f"GFLOP/s, {group['float32_matmul_gflops']:.0f} in float32, a copy at "
      f"{group['copy_gb_per_second']:.0f} GB/s"
    )
    columns = (
      *("task", "size", "batch", "ms", "images/s", "floor ms", "of floor", "of matmul rate"),
      *("plain ms", "times plain", "MiB", "compile s", "cached s"),
    )
    lines.append(tables.table(columns, [_cells(row) for row in group["rows"]]))
  lines += _profile(result["profile"])
  lines += [f"{ratio['what']}: {ratio['times']:.2f}x" for ratio in result["ratios"]]
  loop, evaluation, peak = result["loop"], result["evaluation"], result["peak_memory"]
  pipeline = result["pipeline"]
  lines.append(f"reading {result['data']} on one core, augmented on the {pipeline['augment_on']}:")
  steps = [
    (name, f"{pipeline[f'{name}_images_per_second']:.0f}")
    for name in ("decode", "preprocess", "augment", "total")
  ]
  lines.append(tables.table(("step", "images/s"), steps))
  lines.append(
    f"training loop: {loop['images_per_second']:.1f} images/s at "
    f"{loop['image_size']}x{loop['image_size']}, step {loop['step_share']:.1%}, waiting for data "
    f"{loop['waiting_share']:.1%}, logging {loop['logging_share']:.1%}"
  )
  if evaluation:
    lines.append(
      f"evaluation of {evaluation['cases']} cases, views: {evaluation['tta']}: "
      f"{evaluation['images_per_second']:.2f} images/s, {evaluation['share']:.0%} of the networks "
      f"alone ({evaluation['networks_alone_images_per_second']:.2f})"
    )
  held = [
    f"{peak[f'{place}_bytes'] / 2**20:,.0f} MiB of the {what}"
    for place, what in (("host", "process"), ("device", "device"))
    if peak[f"{place}_bytes"]
  ]
  if held:
    lines.append(f"peak memory: {', '.join(held)}")
  return "\n\n".join(lines)


def _profile(profile: Mapping[str, Any]) -> tuple[str, str]:
  names = ("mflop", "at_matmul_rate_ms", "products_ms", "rest_ms")
  spent = [(p["part"], *(f"{p[name]:.2f}" for name in names)) for p in profile["parts"]]
  header = ("part", "MFLOP", "ms at the matmul rate", "ms of products", "ms of the rest")
  title = (
    f"where the {profile['ms']:.1f} ms of a forward pass at {profile['image_size']}x"
    f"{profile['image_size']}, batch 1, go"
  )
  return title, tables.table(header, spent)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  plain = row["plain_ms"]
  cached = row["cached_compile_seconds"]
  return (
    row["task"],
    str(row["image_size"]),
    str(row["batch"]),
    f"{row['ms']:.1f}",
    f"{row['images_per_second']:.1f}",
    f"{row['floor_ms']:.1f}",
    f"{100 * row['floor_share']:.0f}%",
    f"{100 * row['matmul_rate_share']:.0f}%",
    "-" if plain is None else f"{plain:.1f}",
    "-" if plain is None else f"{row['times_plain']:.1f}x",
    f"{row['memory_bytes'] / 2**20:,.0f}",
    f"{row['compile_seconds']:.1f}",
    "-" if cached is None else f"{cached:.1f}",
  )
