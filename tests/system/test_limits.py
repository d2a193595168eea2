"""What the machine has left: memory under a limit of a group, room of a folder to be made."""

import shutil

import pytest

from medlitenet_jax.system import limits
from medlitenet_jax.system.errors import InputError

GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """Writes what Linux tells of 8 GiB available, with this process in the group `job/step`."""
  (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * 2**20} kB\n")
  (tmp_path / "own").write_text("0::/job/step\n")
  names = {"_MEMINFO": "meminfo", "_OWN_GROUPS": "own", "_CGROUPS": "groups"}
  for name, file in names.items():
    monkeypatch.setattr(limits, name, tmp_path / file)

  def limit(group, text, *, used=0, idle=0, version=2):
    folder = tmp_path / "groups" / group
    folder.mkdir(parents=True, exist_ok=True)
    allowed, use, stat = limits._NAMES[2 - version]
    (folder / allowed).write_text(text)
    (folder / use).write_text(str(used))
    (folder / "memory.stat").write_text(f"anon 7\n{stat} {idle}\n")

  return limit


def test_memory_is_what_is_available_or_what_a_limit_leaves(machine):
  assert limits.free_memory() == 8 * GIB
  machine("job/step", "max", used=GIB)  # no limit of its own
  assert limits.free_memory() == 8 * GIB
  # That around it; files that were read and can be dropped are no use of memory.
  machine("", str(4 * GIB), used=3 * GIB, idle=GIB)
  assert limits.free_memory() == 2 * GIB


def test_memory_in_groups_of_version_1(machine, tmp_path):
  (tmp_path / "own").write_text("5:cpu:/other\n4:memory:/job\n0::/\n")
  machine("memory/job", str(3 * GIB), used=2 * GIB, version=1)
  assert limits.free_memory() == GIB


def test_where_nothing_is_told_nothing_is_refused(machine, tmp_path):
  (tmp_path / "meminfo").unlink()
  (tmp_path / "own").unlink()
  assert limits.free_memory() is None
  limits.refuse_more_than(None, 1e18, "it takes", of="of memory", instead="")


def test_a_folder_to_be_made_has_the_room_of_the_one_it_is_made_in(tmp_path):
  there = shutil.disk_usage(tmp_path).free
  assert limits.free_disk(tmp_path / "no" / "such") == pytest.approx(there, abs=GIB)


def test_too_much_is_refused_or_warned_of(caplog):
  arguments = (GIB, 2.5 * GIB, "a step takes")
  words = {"of": "of memory", "instead": "take less"}
  line = "a step takes 2.5 GiB of memory, and 1 GiB are free; take less"
  with pytest.raises(InputError, match=line + "$"):
    limits.refuse_more_than(*arguments, **words)
  with pytest.raises(InputError, match="--force"):
    limits.refuse_more_than(*arguments, **words, force=False)
  limits.refuse_more_than(*arguments, **words, force=True)
  assert line in caplog.text
  limits.refuse_more_than(3 * GIB, 2.5 * GIB, "", **words)
