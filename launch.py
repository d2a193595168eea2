"""Starts every mode: `python launch.py --config=configs/base.py --workdir=runs/base`.

The command `medlitenet` is the same; `medlitenet_jax/cli.py` has the flags.
"""

from medlitenet_jax.cli import main

if __name__ == "__main__":
  main()
