"""The command line as a stranger meets it: every mode, and one clear line for every mistake."""

import concurrent.futures
import functools
import json
import os
import shutil
import subprocess
import sys

import cv2
import encoder_files
import numpy as np
import pytest
from small_runs import (
  REDUCED,
  ROOT,
  arguments,
  contents,
  copy_of_run,
  finished_run,
  launch,
  resolved,
  scratch,
  small_arguments,
  write_case,
  write_splits,
)

from medlitenet_jax import cli
from medlitenet_jax import config as config_lib
from medlitenet_jax.modes import MODES


@functools.cache
def bad_inputs():
  """By name: the arguments, the workdir, and what the line has to name."""
  folder = scratch() / "bad_inputs"
  folder.mkdir()
  new = folder / "new"

  recipes = {
    "broken": "def get_config(:\n",
    "raising": "import nothing_of_that_name\n",
    "other": "def something_else():\n  pass\n",
  }
  for name, text in recipes.items():
    (folder / f"{name}.py").write_text(text)
  for name in ("no_checkpoint", "corrupt", "no_fields"):
    (folder / name).mkdir()
  config_lib.save(resolved(), folder / "no_checkpoint")
  (folder / "corrupt" / "config.json").write_text('{"model": {"na')
  (folder / "no_fields" / "config.json").write_text('{"model": {"name": "medlitenet"}}')
  finished = copy_of_run(folder)
  photographs = folder / "photographs"
  write_case(photographs, "a")
  write_case(photographs, "b")
  write_splits(photographs, {"a": "train", "b": "val"})
  cv2.imwrite(str(photographs / "masks" / "b_segmentation.png"), np.zeros((9, 9), np.uint8))
  occupied = folder / "occupied"
  occupied.mkdir()
  (occupied / "notes.txt").write_text("not a run")
  encoder_files.write_file(encoder := folder / "resnet34.safetensors", encoder_files.resnet34(4))

  evaluate = ("--mode=evaluate",)
  folder_source = small_arguments(data__source="folder", data__root=str(folder / "nowhere"))
  mask_source = small_arguments(data__source="folder", data__root=str(photographs))
  return {
    "mode": (("--mode=fly",), new, ("mode", "fly", "train", "evaluate")),
    "flag": (("--confg=x",), new, ("confg",)),
    "argument": (("train",), new, ("'train'", "--name=value")),
    "field": (arguments(train__batchsize=8), new, ("batchsize", "batch_size")),
    "group": (arguments(trian__epochs=8), new, ("trian", "train")),
    "whole_number": (arguments(train__epochs="many"), new, ("epochs", "many")),
    "fraction": (arguments(train__batch_size=1.5), new, ("batch_size", "1.5")),
    "tuple": (arguments(train__image_sizes="(64,"), new, ("image_sizes",)),
    "no_recipe": (
      ("--config=configs/nothing.py", "--config.data.root=x"),
      new,
      ("--config=configs/nothing.py: no such file",),
    ),
    "no_recipe_at_the_end": (
      ("--config.data.root=x", "--config=configs/nothing.py"),
      new,
      ("--config=configs/nothing.py: no such file",),
    ),
    "broken_recipe": ((f"--config={folder}/broken.py",), new, ("broken.py",)),
    "raising_recipe": ((f"--config={folder}/raising.py",), new, ("nothing_of_that_name",)),
    "other_recipe": ((f"--config={folder}/other.py",), new, ("get_config",)),
    "not_prepared": (
      (*small_arguments(data__source="isic2018"), f"--config.data.root={folder}/nowhere"),
      new,
      (
        f"{folder}/nowhere: isic2018 is not prepared there",
        "\n    python launch.py --mode=prepare --config=configs/base.py ",
        f" --config.data.root={folder}/nowhere",
        "\n    python launch.py --config=configs/base.py --config.data.source=folder "
        "--config.data.root=FOLDER\n",
        "\n    python launch.py --config=configs/quickstart.py\n",
      ),
    ),
    "no_archives": (
      (
        *small_arguments(data__source="isic2018", data__raw=str(photographs)),
        f"--config.data.root={folder}/nowhere",
      ),
      new,
      (str(photographs), "ISIC2018_Task1-2_Training_Input"),
    ),
    "dry_run": (
      (
        *("--dry-run", *small_arguments(data__source="isic2018", data__raw=str(photographs))),
        f"--config.data.root={folder}/nowhere",
      ),
      new,
      (f"{folder}/nowhere: isic2018 is not prepared there",),
    ),
    "no_data": (folder_source, new, (f"{folder}/nowhere", "config.data.root")),
    "mask_size": (mask_source, new, ("b_segmentation.png", "b.png", "9x9")),
    "image_size": (small_arguments(train__image_sizes="(100,)"), new, ("image_sizes", "100")),
    "augmentation": (small_arguments(augment__elastic_grid=1), new, ("augment.elastic_grid",)),
    "preprocessing": (
      small_arguments(preprocess__color_constancy="white"),
      new,
      ("config.preprocess.color_constancy", "white", "shades_of_grey"),
    ),
    "source": (small_arguments(data__source="web"), new, ("config.data.source", "web")),
    "another_encoder": (
      small_arguments(train__start_from=encoder, train__start_partly=True),
      new,
      (f"{encoder}: holds ResNet-34", "not stub", "set config.model.name=fat_net"),
    ),
    "another_run": (
      small_arguments(optim__learning_rate=0.25),
      finished,
      (str(finished), "config.optim.learning_rate", "0.25"),
    ),
    "another_network": (
      small_arguments(model__variant="wide"),
      finished,
      (str(finished), "config.model.stub.width"),
    ),
    "occupied": (small_arguments(), occupied, (str(occupied), "--workdir")),
    "under_a_file": (small_arguments(), occupied / "notes.txt" / "run", ("notes.txt",)),
    "no_run": (evaluate, new, (str(new), "--workdir")),
    "no_checkpoint": (evaluate, folder / "no_checkpoint", ("no_checkpoint", "train")),
    "corrupt": (evaluate, folder / "corrupt", ("corrupt/config.json",)),
    "corrupt_train": (small_arguments(), folder / "corrupt", ("corrupt/config.json",)),
    "no_fields": (evaluate, folder / "no_fields", ("config.json",)),
    "other_recipe_evaluated": (
      (
        *evaluate,
        f"--config={ROOT}/configs/base.py",
      ),
      finished,
      (str(finished), "--config"),
    ),
    "changed_network": (
      (*evaluate, *arguments(model__variant="wide")),
      finished,
      ("config.model.variant",),
    ),
    "no_threshold": (
      (*evaluate, *arguments(eval__threshold=1.5)),
      finished,
      ("config.eval.threshold", "1.5"),
    ),
    "two_networks": (
      (
        *(*evaluate, f"--config={ROOT}/configs/ensemble.py", "--weights=base"),
        *arguments(data__source="synthetic"),
      ),
      new,
      ("config.ensemble.members", "--weights"),
    ),
    "measured_ensemble": (
      ("--mode=benchmark", f"--config={ROOT}/configs/ensemble.py"),
      {},
      ("config.ensemble.members", "one by one"),
    ),
    "described_ensemble": (
      ("--mode=describe", f"--config={ROOT}/configs/ensemble.py"),
      new,
      ("config.ensemble.members", "one by one"),
    ),
    "no_split": (
      (*evaluate, *arguments(eval__split="dev")),
      finished,
      ("config.eval.split", "dev"),
    ),
  }


@functools.cache
def answers():
  """Starts every one of those commands, two at a time: what they print, and what they change."""
  inputs = bad_inputs()
  before = contents(scratch() / "bad_inputs")
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    started = {
      name: pool.submit(launch, *args, f"--workdir={workdir}")
      for name, (args, workdir, _) in inputs.items()
    }
  return {name: done.result() for name, done in started.items()}, before


NAMES = (
  *("mode", "flag", "argument", "field", "group", "whole_number", "fraction", "tuple"),
  *("no_recipe", "no_recipe_at_the_end", "broken_recipe", "raising_recipe", "other_recipe"),
  *(
    "not_prepared",
    "no_archives",
    "dry_run",
    "no_data",
    "mask_size",
    "image_size",
    "augmentation",
    "preprocessing",
    "source",
  ),
  *("another_encoder", "another_run", "another_network", "occupied", "under_a_file"),
  *("no_run", "no_checkpoint", "corrupt", "corrupt_train", "no_fields"),
  *("other_recipe_evaluated", "changed_network", "no_threshold", "no_split"),
  *("two_networks", "measured_ensemble", "described_ensemble"),
)


WAYS_ON = {"not_prepared": 3, "dry_run": 3}


def test_every_mistake_has_a_test():
  assert sorted(bad_inputs()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_mistake_is_answered_by_one_line_that_names_it(name):
  done = answers()[0][name]
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("launch.py: error: ")
  # Below the line there may be ways on, each a title and a command, indented.
  _, *ways = done.stderr.splitlines()
  assert len(ways) == 2 * WAYS_ON.get(name, 0) and all(way.startswith("  ") for way in ways)
  for part in bad_inputs()[name][2]:
    assert part in done.stderr


def test_mistakes_create_and_change_nothing():
  _, before = answers()
  after = contents(scratch() / "bad_inputs")
  assert after.keys() - before.keys() == set()
  assert {name for name in before if after.get(name) != before[name]} == set()


HEAVY = ("jax", "flax", "optax", "grain", "orbax", "cv2", "scipy", "matplotlib", "numpy")


def forbid_imports(folder, *names):
  """Puts modules into a folder that fail when they are imported."""
  for name in names:
    (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")


def test_the_package_itself_imports_nothing_heavy(tmp_path):
  forbid_imports(tmp_path, *HEAVY, "absl", "ml_collections")
  program = (
    "import time; start = time.perf_counter(); import medlitenet_jax\n"
    "print(time.perf_counter() - start, medlitenet_jax.__version__, medlitenet_jax.load)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert float(done.stdout.split()[0]) < 0.2


def test_the_installed_command_finds_the_recipes_that_came_with_it(tmp_path):
  """As a wheel lays it out: the recipes within the package, and none where it is started."""
  site, empty = tmp_path / "site", tmp_path / "empty"
  leave_out = shutil.ignore_patterns("released", "__pycache__")
  shutil.copytree(ROOT / "medlitenet_jax", site / "medlitenet_jax", ignore=leave_out)
  shutil.copytree(ROOT / "configs", site / "medlitenet_jax" / "configs", ignore=leave_out)
  forbid_imports(site, "configs", "jax")  # another project's
  (site / "medlitenet").write_text("from medlitenet_jax.cli import main\nmain()\n")
  empty.mkdir()

  def start(*args):
    return subprocess.run(
      [sys.executable, str(site / "medlitenet"), *args],
      cwd=empty,
      capture_output=True,
      text=True,
      timeout=60,
    ).stderr

  for recipe in ("configs/quickstart.py", "wide_context.py", "configs/table1/unet.py"):
    error = start(f"--config={recipe}", "--config.train.batchsize=8")
    assert error.startswith("medlitenet: error: no such config field: batchsize"), error
  assert "--config=configs/no.py: no such file" in start("--config=configs/no.py")
  assert not list(empty.iterdir())


def test_help_needs_no_jax(tmp_path):
  forbid_imports(tmp_path, *HEAVY)
  for flags in (["--help"], ["-h"], []):
    done = launch(*flags, timeout=60, anew=True, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert all(mode in done.stdout for mode in MODES)
    assert "--workdir" in done.stdout and "--config" in done.stdout
    assert not done.stderr


def test_mistyped_flag_needs_no_jax(tmp_path):
  forbid_imports(tmp_path, *HEAVY)
  done = launch("--mode=fly", timeout=60, anew=True, PYTHONPATH=str(tmp_path))
  assert done.returncode == 2 and "was imported" not in done.stderr


def test_train_says_what_it_runs_on():
  """The finished run was made by this mode; a second start says where it stands."""
  workdir = finished_run()
  assert (workdir / "config.json").exists() and (workdir / "checkpoints").is_dir()
  config = json.loads((workdir / "config.json").read_text())
  assert config["precision"] == "float32" and config["eval"]["image_size"] == 96


def test_evaluate_takes_split_and_size_and_leaves_the_rest_of_the_run_alone(tmp_path):
  workdir = copy_of_run(tmp_path)
  before = contents(workdir)
  done = launch(
    "--mode=evaluate", f"--workdir={workdir}", *arguments(eval__split="val", eval__image_size=64)
  )
  assert done.returncode == 0, done.stderr
  assert "dice" in done.stdout and str(workdir / "eval" / "val") in done.stdout + done.stderr
  summary = json.loads((workdir / "eval" / "val" / "summary.json").read_text())
  assert summary["cases"] == 3 and summary["protocol"]["network_size"] == 64
  after = contents(workdir)
  assert {name: after[name] for name in before} == before
  assert all(name.split("/")[0] == "eval" for name in after.keys() - before.keys())


def test_describe_prints_the_parts_and_draws_them(tmp_path):
  fields_first = (*small_arguments(**REDUCED), "--config=configs/base.py")
  done = launch("--mode=describe", f"--output={tmp_path}", *fields_first)
  assert done.returncode == 0, done.stderr
  assert "encoder/stage4" in done.stdout and "total" in done.stdout
  assert cv2.imread(str(tmp_path / "architecture.png")) is not None


def test_benchmark_is_of_the_recipe_or_of_a_trained_run(tmp_path):
  """What is measured is tested without the launcher."""
  patch = (
    "from medlitenet_jax.modes import benchmark\n"
    "def benchmark_of(config, output, trained=None):\n"
    "  print('asked', config.train.batch_size, config.benchmark.rounds, output.name, trained)\n"
    "benchmark.benchmark = benchmark_of\n"
  )
  args = ("--mode=benchmark", f"--output={tmp_path / 'speed'}", *arguments(benchmark__rounds=2))
  done = launch(*args, patch=patch)
  assert done.returncode == 0 and "asked 16 2 speed None" in done.stdout, done.stderr
  done = launch(*args, f"--workdir={finished_run()}", patch=patch)
  assert done.returncode == 0 and "asked 4 2 speed (" in done.stdout, done.stderr
  assert str(finished_run()) in done.stdout


def test_scores_of_weights_go_where_predict_looks_for_their_threshold(tmp_path):
  done = launch("--mode=predict", "--input=x.png", "--config.eval.threshold=0")
  assert done.returncode == 2 and "x.png: no such file" in done.stderr
  patch = (
    "from medlitenet_jax.modes import evaluate, predict\n"
    "evaluate.evaluate = lambda config, networks, workdir, *_: print('at', workdir)\n"
    "predict.read_threshold = lambda networks, config, workdir: print('at', workdir) or 0.5\n"
    "predict.predict = lambda *_: None\n"
  )
  write_case(tmp_path, "x")
  photograph = f"--input={tmp_path / 'images' / 'x.png'}"
  scored = launch("--mode=evaluate", "--weights=base", patch=patch)
  outlined = launch("--mode=predict", photograph, "--config.eval.threshold=0", patch=patch)
  place = f"at {ROOT / 'runs' / 'base-weights'}\n"
  assert scored.stdout.endswith(place) and outlined.stdout.endswith(place)


def test_bars_do_not_fill_a_log():
  patch = (
    "import atexit\n"
    "def say():\n"
    "  from tqdm import tqdm\n"
    "  print('interval', tqdm(total=1).mininterval)\n"
    "atexit.register(say)\n"
  )
  wrong = ("--mode=predict", "--input=nowhere")
  assert "interval 10.0" in launch(*wrong, patch=patch, anew=True).stdout
  assert "interval 3.0" in launch(*wrong, patch=patch, anew=True, TQDM_MININTERVAL="3").stdout


def test_too_little_memory_of_a_device_is_one_line(tmp_path):
  patch = (
    "from medlitenet_jax.modes import describe\n"
    "def describe_of(config, output):\n"
    "  raise RuntimeError(config.eval.split)\n"
    "describe.describe = describe_of\n"
  )
  text = "RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes."
  done = launch("--mode=describe", patch=patch.replace("config.eval.split", repr(text)))
  assert done.returncode == 2 and "not enough memory" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  done = launch("--mode=describe", patch=patch)
  assert done.returncode == 1 and "Traceback" in done.stderr  # any other is a defect of ours


def test_what_is_set_before_jax_starts_is_noted_and_can_be_switched_off(tmp_path):
  """On the way the augmentations and the preprocessing are drawn."""
  drawn = arguments(data__source="synthetic", train__image_sizes=(64,))
  fields = ("--mode=preview", f"--output={tmp_path}", *drawn)
  set_by_user = {
    "GLIBC_TUNABLES": "",
    "JAX_COMPILATION_CACHE_DIR": "",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true",
  }
  for variables in ({}, set_by_user):
    done = launch(*fields, anew=True, **variables)
    assert done.returncode == 0, done.stderr
    assert "GLIBC_TUNABLES" not in done.stdout + done.stderr
    for name in ("augmentations.png", "preprocessing.png"):
      assert cv2.imread(str(tmp_path / name)) is not None and name in done.stdout
  lines = (tmp_path / "starts.jsonl").read_text().splitlines()
  own, users = map(json.loads, lines)
  tunables = own["environment"].get("GLIBC_TUNABLES", "")
  assert tunables.startswith("glibc.malloc.hugetlb=1:") or sys.platform != "linux"
  older = "fusion_emitters=false" if own["versions"]["jaxlib"].startswith("0.10.") else ""
  assert older in own["environment"].get("XLA_FLAGS", "")
  assert own["compilation_cache"] == str(scratch() / "medlitenet_jax" / "xla")
  assert users["compilation_cache"] == "" and users["environment"].items() >= set_by_user.items()
  assert f"--mode=preview --output={tmp_path}" in users["command"]


def test_a_device_that_is_not_there_is_one_line(tmp_path):
  output = tmp_path / "out"
  for asked in ("cuda", "abacus"):
    # No device is visible where this machine has one.
    done = launch(
      *("--mode=describe", f"--output={output}"),
      anew=True,
      JAX_PLATFORMS=asked,
      CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 2, done.stderr
    assert f"error: JAX_PLATFORMS={asked}: no such device" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not output.exists()


@pytest.mark.parametrize(
  ("given", "taken"),
  [
    ("--config.seed=1 --mode=train --config=a.py", "--config=a.py --config.seed=1 --mode=train"),
    ("--config.seed 1 --config a.py", "--config=a.py --config.seed 1"),
    ("--input a b --force --input=c", "--input=a --input=b --force --input=c"),
    ("--mode=check --config", "--mode=check --config"),
    ("--input=a b", "--input=a b"),
  ],
)
def test_flags_may_stand_in_any_order(given, taken):
  assert cli._in_order(given.split()) == taken.split()


@pytest.mark.skipif(sys.platform != "linux", reason="an allocator of Linux")
def test_memory_is_given_back_after_a_long_compilation_alone():
  program = (
    "import ctypes, types\n"
    "from medlitenet_jax.system import process\n"
    "libc = types.SimpleNamespace(malloc_trim=lambda kept: print('given back'))\n"
    "ctypes.CDLL = lambda name: libc\n"
    "process.return_memory_after_compiling()\n"
    "process.LONG_COMPILATION_SECONDS = 1000\n"
    "import jax\n"
    "jax.jit(lambda x: x + 1)(1.0)\n"
    "print('short')\n"
    "process.LONG_COMPILATION_SECONDS = 0\n"
    "jax.jit(lambda x: x - 1)(1.0)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
  )
  assert done.stdout.split("\n") == ["short", "given back", ""], done.stderr


def test_photograph_found_broken_while_training_is_named_without_a_traceback(tmp_path):
  root = tmp_path / "photographs"
  for number in range(6):
    write_case(root, f"case_{number}", number, suffix="jpg")
  write_splits(root, {f"case_{n}": "train" if n < 5 else "val" for n in range(6)})
  path = root / "images" / "case_1.jpg"
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  fields = small_arguments(data__source="folder", data__root=str(root))
  done = launch(*fields, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  last = done.stderr.rstrip().splitlines()[-1]
  assert "launch.py: error: " in last and str(path) in last
