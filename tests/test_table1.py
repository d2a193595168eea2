"""The table of all networks: budgets, what is not done again, and the figures that it prints."""

import csv
import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
from small_runs import (
  ROOT,
  compiled_as_by_launch,
  copy_of_run,
  network_of,
  small_config,
  write_case,
  write_splits,
)

from medlitenet_jax import config as config_lib
from medlitenet_jax.modes.evaluate import evaluate

SPEC = importlib.util.spec_from_file_location("table1", ROOT / "examples" / "table1.py")
table1 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(table1)

RATES = {"medlitenet": 16.0, "unet": 2.0}  # photographs a second in training
DICE = {"medlitenet": 0.8, "unet": 0.7}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
  """The folder of an evaluation of six cases."""
  run = copy_of_run(tmp_path_factory.mktemp("evaluated"))
  config = config_lib.for_evaluation(config_lib.load(run), {}, "cpu", small_config())
  with compiled_as_by_launch():
    evaluate(config, [network_of(run, config)], run, "python launch.py")
  return run / "eval" / "test"


@pytest.fixture
def data(tmp_path):
  """A folder of 12 photographs to learn from."""
  splits = {f"c{n:02d}": "train" if n < 12 else ("val", "test")[n % 2] for n in range(16)}
  for case_id in splits:
    write_case(tmp_path / "data", case_id, size=(8, 8))
  write_splits(tmp_path / "data", splits)
  return tmp_path / "data"


@pytest.fixture
def call(data, evaluation, tmp_path, monkeypatch):
  """Runs the script with commands that leave at once what the real ones leave after hours."""
  commands = []

  def launch(*arguments):
    commands.append(arguments)
    given = dict(a.removeprefix("--").split("=", 1) for a in arguments)
    if given.get("mode") == "benchmark":
      write_speed(given["output"])
    elif given.get("mode") == "evaluate":
      write_scores(given["workdir"])

  def write_speed(folder):
    name = folder.split("/")[-2]
    rows = [("forward", 1), ("forward", 8), ("training step", 8)]
    common = {"images_per_second": RATES[name], "ms": 5.0, "gflop": 1.5, "memory_bytes": 2**27}
    groups = [{"rows": [{"task": task, "batch": batch, **common} for task, batch in rows]}]
    speed = {"groups": groups, "parts": [{"params": 3_000_000}], "device": "cpu", "cores": 2}
    path = tmp_path / "out" / name / "speed"
    path.mkdir(parents=True)
    (path / "benchmark.json").write_text(json.dumps({**speed, "precision": "float32"}))

  def write_scores(workdir):
    """An evaluation whose cases have a Dice that follows from network and seed alone."""
    name, run = workdir.split("/")[-2:]
    folder = tmp_path / "out" / name / run / "eval" / "test"
    shutil.copytree(evaluation, folder)
    with (folder / "cases.csv").open(newline="") as file:
      rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
      row["dice"] = DICE[name] + 0.01 * (number % 2) + 0.02 * int(run[-1])
    with (folder / "cases.csv").open("w", newline="") as file:
      table = csv.DictWriter(file, rows[0])
      table.writeheader()
      table.writerows(rows)

  monkeypatch.setattr(table1, "launch", launch)

  def run(*options):
    commands.clear()
    flags = ("--networks=medlitenet,unet", "--size=64", "--epochs=4", "--hours=0.001", *options)
    monkeypatch.setattr(sys, "argv", ["table1.py", str(data), str(tmp_path / "out"), *flags])
    table1.main()
    return [" ".join(map(str, command)) for command in commands]

  return run


def test_slow_networks_learn_for_hours_and_nothing_is_done_twice(call, tmp_path, capsys):
  trained = [c for c in call("--equal-hours") if "--mode" not in c]
  # 4 epochs of 12 photographs in batches of 8; 0.001 hours at 2 and at 16 photographs a second.
  lengths = [c.partition("max_steps=")[2].split()[0] for c in trained]
  assert lengths == ["6", "1", "7"] and "table1/unet.py" in trained[1]
  assert "hours-seed0" in trained[2] and "configs/base.py" in trained[2]
  assert all("config.train.image_sizes=(64,)" in c for c in trained)
  assert call("--equal-hours") == []
  assert len([c for c in call("--seeds=2") if "--mode" not in c]) == 2
  assert "configs" not in capsys.readouterr().out
  with pytest.raises(SystemExit, match="was begun with"):
    call("--epochs=5")


def test_the_table_has_means_intervals_and_paired_differences(call, tmp_path, capsys):
  call("--seeds=2", "--equal-hours")
  lines = capsys.readouterr().out.splitlines()
  assert lines == (tmp_path / "out" / "table1.md").read_text().splitlines()
  header, first, second = (
    [cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:4])
  )
  cells = dict(zip(header, second, strict=True))
  assert lines[4:] == ["", "- medlitenet: the paper's figures are of three networks together."]
  assert first[0] == "medlitenet" and cells["network"] == "unet"
  names = ("parameters, M", "GFLOP", "training images/s", "training memory, MiB", "epochs")
  assert [cells[name] for name in names] == ["3.00", "1.50", "2.0", "128", "0.7"]
  assert cells["Dice minus medlitenet"] == "-0.1000 (-0.1000 to -0.1000)"
  assert cells["Dice"].startswith("0.7150 (0.71")
  assert cells["Dice"].endswith(f"± {np.std([0.705, 0.725], ddof=1):.4f} over 2 seeds")
  assert cells["Dice after 0.001 h"] == "0.7050" == f"{DICE['unet'] + 0.005:.4f}"
  page = (tmp_path / "out" / "table1.html").read_text()
  assert page.count("<svg") == 2 and "unet" in page and "http:" not in page


def test_an_unknown_network_is_one_line(call, capsys):
  with pytest.raises(SystemExit):
    call("--networks=medlitenet,vnet")
  assert "'vnet' is not one of medlitenet, " in capsys.readouterr().err
