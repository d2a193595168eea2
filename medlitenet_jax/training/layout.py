"""Where a run keeps its checkpoints, and the names that tell their states apart."""

from pathlib import Path

CHECKPOINT_FOLDER = "checkpoints"  # holds a folder for each checkpoint, named by batches seen
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # ending that Orbax takes away once a checkpoint is complete
DAMAGED = ".damaged"  # ending of a checkpoint that could not be read and was put aside
REMOVED = "removed"  # subfolder that a checkpoint is moved to before its files are deleted
METRICS = "metrics"  # subfolder of a checkpoint, and the file in it, where Orbax keeps the scores
DESCRIPTION = "_CHECKPOINT_METADATA"  # the file that Orbax describes a checkpoint in


def checkpoint_folder(workdir: Path) -> Path:
  """The folder of a run's checkpoints, as an absolute path; it may not exist."""
  return (workdir / CHECKPOINT_FOLDER).absolute()


def whole_steps(workdir: Path) -> list[int]:
  """Batches seen by each completely written checkpoint of a run, in rising order."""
  folder = checkpoint_folder(workdir)
  return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())


def scores_path(checkpoint: Path) -> Path:
  """The file that holds the scores of a checkpoint; missing where it was not validated."""
  return checkpoint / METRICS / METRICS
