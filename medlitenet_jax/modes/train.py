"""Training: the data made ready where that needs no question, then the loop."""

from medlitenet_jax.modes.call import Call, begin, resolve_recipe
from medlitenet_jax.modes.prepare import make_ready
from medlitenet_jax.training.loop import train


def main(call: Call) -> None:
  """Trains the network of the recipe, or goes on where an earlier call stopped; see `train`."""
  begin(call, call.workdir, shared=True)
  config = resolve_recipe(call)
  make_ready(call, config)
  train(config, call.workdir, force=call.force)
