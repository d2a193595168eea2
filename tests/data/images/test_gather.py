"""Which photographs files, folders and patterns stand for, and by which names."""

import logging
import os
from pathlib import Path

import pytest

from medlitenet_jax.data.images.gather import gather
from medlitenet_jax.data.images.image_files import IMAGE_SUFFIXES
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import expand

RESULTS = "predict.json"


@pytest.fixture
def photos(tmp_path):
  """Nested folders with all that may lie among photographs."""
  files = (
    *("b.jpg", "notes.txt", "one/a.JPG", "one/c.png", "two/a.jpg", "two/deep/a.jpg"),
    *(".hidden/a.jpg", "set/images/x.jpg", "set/masks/x.png", "done/predict.json", "done/o.png"),
  )
  for name in files:
    path = tmp_path / "photos" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return tmp_path / "photos"


def places(*inputs: Path) -> list[str]:
  return [place.as_posix() for place in gather(inputs, RESULTS).values()]


def test_a_folder_stands_for_all_below_it_and_the_rest_is_named(photos, caplog):
  caplog.set_level(logging.WARNING)
  (photos / "two" / "up").symlink_to(photos, target_is_directory=True)
  found = ["b.jpg", "one/a.JPG", "one/c.png", "set/images/x.jpg", "two/a.jpg", "two/deep/a.jpg"]
  assert places(photos) == found
  assert "left out 5" in caplog.text
  for name in (".hidden", "done", "notes.txt", "set/masks", "two/up"):
    assert str(Path(name)) in caplog.text


def test_a_pattern_keeps_the_folders_that_it_runs_over_apart(photos, caplog):
  caplog.set_level(logging.WARNING)
  assert places(photos / "*" / "a.jpg") == ["two/a.jpg"]
  assert places(photos / "**" / "a.*") == ["one/a.JPG", "two/a.jpg", "two/deep/a.jpg"]
  assert not caplog.text
  assert places(photos / "*") == places(photos)
  assert set(places(photos / "**" / "*.*")) == set(places(photos))
  with pytest.raises(InputError, match="no image matches"):
    places(photos / "*.png")


def test_what_is_named_twice_is_taken_once_and_two_of_one_name_are_refused(photos, monkeypatch):
  monkeypatch.chdir(photos)
  assert places(Path("one"), photos / "one" / "a.JPG", Path("b.jpg")) == ["a.JPG", "c.png", "b.jpg"]
  with pytest.raises(InputError, match="same name; name a folder that holds both"):
    places(Path("two/deep"), Path("two/a.jpg"))


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path):
  for name in ("a[1].jpg", "a1.jpg"):
    (tmp_path / name).touch()
  assert places(tmp_path / "a[1].jpg") == ["a[1].jpg"]
  assert places(tmp_path / "a[2].jpg".replace("2", "1-9")) == ["a1.jpg"]
  assert expand(tmp_path / "none*") == [tmp_path / "none*"]


@pytest.mark.parametrize(
  ("given", "says"),
  [
    ("missing.jpg", "no such file or folder"),
    ("notes.txt", "not an image file"),
    ("done", f"holds what predict has written, as {RESULTS} says"),
    ("empty", "no image in it"),
  ],
)
def test_an_input_without_photographs_is_refused(photos, given, says):
  os.mkdir(photos / "empty")
  with pytest.raises(InputError, match=says):
    places(photos / given)


def test_a_folder_without_images_says_what_is_there(tmp_path):
  for name in ("a.nef", "b.nef", "c.txt"):
    (tmp_path / name).touch()
  with pytest.raises(InputError, match=r"no image in it, but 2 \.nef, 1 \.txt; put files"):
    places(tmp_path)


def test_every_format_is_found_and_names_that_differ_in_the_ending_alone_stay(tmp_path):
  for suffix in IMAGE_SUFFIXES:
    (tmp_path / f"a{suffix}").touch()
  assert places(tmp_path) == sorted(f"a{suffix}" for suffix in IMAGE_SUFFIXES)
