"""What is noted of a start, and that nothing depends on it."""

import json
import os
import shlex
import sys

import jax

from medlitenet_jax.system.starts import STARTS_FILE, record_start


def test_each_start_is_a_line_with_what_is_needed_to_repeat_it(tmp_path, monkeypatch):
  monkeypatch.setenv("NCCL_DEBUG", "INFO")
  monkeypatch.setenv("SECRET_TOKEN", "hush")
  folder = tmp_path / "new" / "run"
  record_start(folder)
  monkeypatch.delenv("NCCL_DEBUG")
  record_start(folder)
  text = (folder / STARTS_FILE).read_text()
  first, second = map(json.loads, text.splitlines())
  assert first["environment"]["NCCL_DEBUG"] == "INFO" and "hush" not in text
  assert "NCCL_DEBUG" not in second["environment"] and second["process"] == os.getpid()
  assert first["versions"]["jax"] == jax.__version__
  assert sum(first["devices"].values()) == jax.device_count()
  assert shlex.split(first["command"]) == sys.orig_argv


def test_a_note_that_cannot_be_written_stops_nothing(tmp_path, caplog):
  (tmp_path / STARTS_FILE).mkdir()
  record_start(tmp_path)
  assert f"{STARTS_FILE}: cannot be written" in caplog.text


def test_one_of_several_processes_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  record_start(tmp_path)
  assert not list(tmp_path.iterdir())
