"""Figures on disk: no line twice, none half written, tables that line up."""

import csv
import json

import pytest

from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.tables import append_csv, read_csv, read_table, table, write_csv
from medlitenet_jax.training.log import MetricsLog, read_metrics


def write_lines(workdir, steps, resume_step=0):
  log = MetricsLog(workdir, resume_step=resume_step)
  for step in steps:
    log.write(step=step, epoch=step / 7, split="train", figures={"loss": 1 / step})
  log.close()


def steps_of(workdir):
  return [row["step"] for row in read_metrics(workdir)]


def test_lines_hold_step_epoch_split_and_figures(tmp_path):
  log = MetricsLog(tmp_path, resume_step=0)
  log.write(step=3, epoch=1 / 3, split="val", figures={"dice": 0.5, "iou": 0.25})
  log.close()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 3, "epoch": 0.3333, "split": "val", "dice": 0.5, "iou": 0.25}
  ]


def test_lines_can_be_read_while_the_run_goes_on(tmp_path):
  log = MetricsLog(tmp_path, resume_step=0)
  log.write(step=1, epoch=0.1, split="train", figures={"loss": 1.0})
  assert steps_of(tmp_path) == [1]
  log.close()


def test_events_for_tensorboard(tmp_path):
  write_lines(tmp_path, [1, 2])
  events = list(tmp_path.glob("events.out.tfevents.*"))
  assert events and b"train/loss" in events[0].read_bytes()


def test_resuming_drops_lines_that_come_again(tmp_path):
  write_lines(tmp_path, [2, 4, 6, 8])
  write_lines(tmp_path, [6, 8, 10], resume_step=5)
  assert steps_of(tmp_path) == [2, 4, 6, 8, 10]
  assert not list(tmp_path.glob("*.tmp"))


def test_resuming_keeps_the_line_of_the_checkpoint_itself(tmp_path):
  write_lines(tmp_path, [2, 4])
  write_lines(tmp_path, [6], resume_step=4)
  assert steps_of(tmp_path) == [2, 4, 6]


@pytest.mark.parametrize("torn", ['{"step": 6, "ep', "{", '{"step": 6, "epoch": 0.1, "split": "tr'])
def test_line_that_was_cut_off_is_dropped(tmp_path, torn):
  write_lines(tmp_path, [2, 4])
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(torn)
  assert steps_of(tmp_path) == [2, 4]
  write_lines(tmp_path, [6], resume_step=4)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]


def test_nothing_to_read(tmp_path):
  assert read_metrics(tmp_path) == []


def test_numbers_survive_exactly(tmp_path):
  value = 0.1 + 0.2
  log = MetricsLog(tmp_path, resume_step=0)
  log.write(step=1, epoch=1, split="val", figures={"dice": value})
  log.close()
  write_lines(tmp_path, [], resume_step=1)
  assert read_metrics(tmp_path)[0]["dice"] == value


def test_table():
  rows = [("dice", "0.5", 12), ("threshold_jaccard", "1,024", 3)]
  assert table(("score", "mean", "n"), rows).splitlines() == [
    "| score             |  mean |  n |",
    "| ----------------- | ----: | -: |",
    "| dice              |   0.5 | 12 |",
    "| threshold_jaccard | 1,024 |  3 |",
  ]


def test_table_with_words_among_numbers_is_set_to_the_left():
  lines = table(("a", "b"), [("1", "2x"), ("none", "30%")]).splitlines()
  assert lines == ["| a    |   b |", "| ---- | --: |", "| 1    |  2x |", "| none | 30% |"]


def test_table_without_rows():
  assert table(("name", "value"), []).splitlines() == ["| name | value |", "| ---- | ----- |"]


def test_csv(tmp_path):
  rows = [{"case_id": "a,b", "dice": 1 / 3, "height": 5}, {"case_id": "c", "dice": 1, "height": 6}]
  write_csv(tmp_path / "cases.csv", rows)
  content = (tmp_path / "cases.csv").read_bytes()
  assert b"\r" not in content
  with (tmp_path / "cases.csv").open(newline="") as file:
    read = list(csv.DictReader(file))
  assert [row["case_id"] for row in read] == ["a,b", "c"]
  assert float(read[0]["dice"]) == 1 / 3 and list(read[0]) == ["case_id", "dice", "height"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "'", "'="])
def test_a_text_that_looks_like_a_formula_is_marked_and_comes_back(tmp_path, start):
  path, row = tmp_path / "cases.csv", {"case_id": f"{start}1+2", "lowest": -0.5}
  write_csv(path, [row])
  append_csv(path, row)
  with path.open(newline="") as file:
    for cells in csv.DictReader(file):
      assert cells == {"case_id": f"'{start}1+2", "lowest": "-0.5"}  # numbers stay numbers
  assert read_csv(path) == [{"case_id": f"{start}1+2", "lowest": "-0.5"}] * 2


@pytest.mark.parametrize(("name", "marked"), [("Läsion", True), ("lesion", False)])
def test_a_table_that_is_not_ascii_begins_with_a_mark_for_spreadsheets(tmp_path, name, marked):
  path, row = tmp_path / "cases.csv", {"case_id": name, "dice": 1}
  write_csv(path, [row])
  append_csv(path, row)
  assert path.read_bytes().startswith(b"\xef\xbb\xbf") == marked
  assert read_csv(path) == [{"case_id": name, "dice": "1"}] * 2


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_of_any_delimiter(tmp_path, delimiter, mark):
  path = tmp_path / "x.csv"
  lines = ("Id, Patient ,b", '"a,1" ,P 7,', "", "c")
  text = "\r\n".join(line.replace(",", delimiter) for line in lines)
  path.write_bytes((mark + text).encode())
  found = read_table(path)
  assert found.columns == ["Id", "Patient", "b"]
  assert found.rows == [
    (2, {"Id": f"a{delimiter}1", "Patient": "P 7", "b": ""}),
    (4, {"Id": "c", "Patient": "", "b": ""}),
  ]
  assert [found.column(name) for name in ("patient", "b", "x")] == ["Patient", "b", None]


def test_a_carriage_return_ends_no_row(tmp_path):
  write_csv(tmp_path / "cases.csv", [{"case_id": "\r=1\r2", "dice": 1}])
  assert read_csv(tmp_path / "cases.csv") == [{"case_id": " =1 2", "dice": "1"}]


@pytest.mark.parametrize("content", [b"a,b\n1\n", b"a,b\n1,2,3\n", b"\xff\xfe\n", b'a\n"1"2\n'])
def test_a_damaged_table_is_refused_by_name(tmp_path, content):
  (tmp_path / "cases.csv").write_bytes(content)
  with pytest.raises(InputError, match=r"cases\.csv"):
    read_csv(tmp_path / "cases.csv")


def test_damaged_lines_are_counted(tmp_path, caplog):
  write_lines(tmp_path, [1, 2])
  for line in ('{"step": 3', "[]", '{"step": "4", "epoch": 1, "split": "val"}', "[" * 100_000):
    with (tmp_path / "metrics.jsonl").open("a") as file:
      file.write(line + "\n")
  assert steps_of(tmp_path) == [1, 2]
  assert "left out 4 damaged lines" in caplog.text
  (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
  with pytest.raises(InputError, match=r"metrics\.jsonl"):
    read_metrics(tmp_path)
