"""Hostile and broken inputs: each ends in success or in one line, and harms nothing.

`make fuzz` tries ten times as many. A failure names the number of its input, which gives the same
input again: `PYTHONPATH=.:tests python tests/slow/fuzz_worker.py NUMBER 1`.
"""

import collections
import concurrent.futures
import functools
import json
import os
import queue
import subprocess
import sys
import threading

import fuzz_worker
import pytest
from small_runs import ROOT, SCRATCH, arguments, launch, resolved, scratch, write_case

from medlitenet_jax import config as config_lib

COUNT = int(os.environ.get("FUZZ_INPUTS", "250"))
MOST_SECONDS, MOST_MIB = 10, 2048
SILENCE = 120  # seconds without a word from a worker, on a machine that others use too


def fuzz(first: int, count: int) -> list[dict]:
  """Runs inputs in a process of their own, which is started anew where one ends or hangs it."""
  results, number, last = [], first, first + count
  environment = {k: v for k, v in os.environ.items() if k != SCRATCH}  # each has its own
  environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
  while number < last:
    command = [sys.executable, str(ROOT / "tests" / "slow" / "fuzz_worker.py"), str(number)]
    with subprocess.Popen(
      [*command, str(last - number)],
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,  # image libraries in C write to it of their own accord
      env=environment,
      text=True,
    ) as worker:
      lines: queue.Queue = queue.Queue()
      threading.Thread(target=lambda w=worker, q=lines: [*map(q.put, w.stdout), q.put("")]).start()
      kind = ""
      try:
        while line := lines.get(timeout=SILENCE):
          result = json.loads(line)
          kind = result.get("kind", kind)
          if "wrong" in result:
            results.append({"kind": kind, **result})
            number = result["number"] + 1
      except queue.Empty:
        worker.kill()
    if number < last:
      wrong = f"hung or ended the process, status {worker.returncode}"
      results.append({"kind": kind, "number": number, "wrong": wrong, "seconds": 0, "mib": 0})
      number += 1
  return results


@functools.cache
def results() -> list[dict]:
  """How all inputs ended; two processes at a time where their start is worth it."""
  if COUNT < 1000:
    return fuzz(0, COUNT)
  half = COUNT // 2
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return [result for part in pool.map(fuzz, (0, half), (half, COUNT - half)) for result in part]


def test_every_input_ends_in_success_or_in_one_line():
  assert [result["number"] for result in results()] == list(range(COUNT))
  wrong = [result for result in results() if result["wrong"]]
  assert not wrong, "\n".join(f"{r['number']} {r['kind']}: {r['wrong']}" for r in wrong[:5])


def test_no_input_takes_long_or_much_memory():
  slowest = max(results(), key=lambda result: result["seconds"])
  largest = max(results(), key=lambda result: result["mib"])
  assert slowest["seconds"] < MOST_SECONDS, slowest
  assert largest["mib"] < MOST_MIB, largest


def test_inputs_of_every_kind_are_refused_and_accepted():
  endings = collections.defaultdict(collections.Counter)
  for result in results():
    for ending in ("success", "refused"):
      endings[result["kind"]][ending] += result.get(ending, 0)
  common = {kind.__name__ for kind, share in fuzz_worker.KINDS.items() if share >= 4}
  assert common <= endings.keys()
  for kind in common:
    assert endings[kind]["success"] and endings[kind]["refused"], (kind, endings[kind])


def raising(rng, folder):
  return lambda: [][0]


def changing(rng, folder):
  (folder / "in" / "x").write_text("a")
  return lambda: (folder / "in" / "x").write_text("b")


def writing_outside(rng, folder):
  return lambda: (folder / "y").write_text("b")


@pytest.mark.parametrize(
  ("kind", "says"), [(raising, "IndexError"), (changing, "changed"), (writing_outside, "outside")]
)
def test_the_harness_notices(monkeypatch, kind, says):
  monkeypatch.setattr(fuzz_worker, "KINDS", {kind: 1})
  assert says in fuzz_worker.run(0)["wrong"]


@functools.cache
def command_lines() -> dict[str, tuple[tuple[str, ...], str]]:
  """Hostile command lines and a word of the line that each is refused with."""
  folder = scratch() / "hostile"
  folder.mkdir()
  recipes = {
    "binary": b"\x7fELF\x00\x00\xff\xfe",
    "endless": b"def get_config():\n  return get_config()\n",
    "number": b"def get_config():\n  return 5\n",
    "empty": b"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict()\n",
  }
  for name, content in recipes.items():
    (folder / f"{name}.py").write_bytes(content)
  victim = folder / "victim"
  victim.mkdir()
  (victim / "check.json").write_text("precious")
  data = folder / "data"
  write_case(data, "a")
  named = folder / "named"
  named.mkdir()
  (named / "a\x1b[2J\n.png").write_bytes(b"")
  output, workdir, damaged = (folder / name for name in ("output", "workdir", "damaged"))
  for place in (output, workdir, damaged):
    place.mkdir()
  (output / "check.json.tmp").symlink_to(victim / "check.json")
  (workdir / "checkpoints").symlink_to(victim)
  config_lib.save(resolved(), damaged)
  (damaged / "config.json").write_text("[" * 100_000)
  predict = ("--mode=predict", f"--output={folder / 'new'}", f"--input={named}")
  return {
    "planted_link": (
      (
        *("--mode=check", *arguments(data__source="folder", data__root=data)),
        f"--output={output}",
      ),
      "check.json.tmp",
    ),
    "size": (arguments(train__image_sizes="(6400000,)"), "image_sizes"),
    "recipe_endless": ((f"--config={folder}/endless.py",), "RecursionError"),
    "recipe_binary": ((f"--config={folder}/binary.py",), "binary.py"),
    "recipe_number": ((f"--config={folder}/number.py",), "number.py"),
    "recipe_empty": ((f"--config={folder}/empty.py",), "lacks a field"),
    "linked_workdir": ((f"--workdir={workdir}",), "checkpoints"),
    "seed": (arguments(seed=10**25), "seed"),
    "batch": (arguments(train__batch_size=10**12), "batch_size"),
    "infinite": (arguments(optim__learning_rate="inf"), "learning_rate"),
    "not_a_number": (arguments(augment__hairs_probability="nan"), "hairs_probability"),
    "nested": (("--mode=evaluate", f"--workdir={damaged}"), "nested too deeply"),
    "no_scale": ((*predict, "--mm_per_pixel=wide"), "mm_per_pixel"),
    "no_output": (("--mode=check", f"--output={folder / 'binary.py'}"), "binary.py"),
  }


IN_THE_SUITE = ("planted_link", "size", "recipe_endless")


@functools.cache
def answers() -> dict[str, subprocess.CompletedProcess]:
  """The launcher's answers, two at a time; few of them unless many inputs are asked for."""
  names = [name for name in command_lines() if COUNT >= 2000 or name in IN_THE_SUITE]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return dict(zip(names, pool.map(lambda n: launch(*command_lines()[n][0]), names), strict=True))


def test_the_launcher_refuses_in_one_line():
  for name, done in answers().items():
    assert done.returncode == 2, (name, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and done.stderr.strip().isprintable(), done.stderr
    assert command_lines()[name][1] in done.stderr, (name, done.stderr)


def test_the_launcher_writes_nowhere_else():
  answers()
  victim = scratch() / "hostile" / "victim"
  assert [path.name for path in victim.iterdir()] == ["check.json"]
  assert (victim / "check.json").read_text() == "precious"
