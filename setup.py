"""Puts the recipes of `configs/` into the package, as `medlitenet_jax.configs`.

pyproject.toml has everything else. It can find packages or place one elsewhere, not both.
"""

from setuptools import find_packages, setup

setup(
  packages=[
    *find_packages(include=["medlitenet_jax*"]),
    "medlitenet_jax.configs",
    "medlitenet_jax.configs.table1",
  ],
  package_dir={"medlitenet_jax.configs": "configs"},
)
