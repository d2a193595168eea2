"""Files of bounded size and known kind, and no way out of the folder that is written to."""

import os

import numpy as np
import pytest

from medlitenet_jax.data.images.image_files import write_mask
from medlitenet_jax.system import files
from medlitenet_jax.system.errors import InputError
from medlitenet_jax.system.files import replace_file


def test_a_file_and_a_link_to_one_are_read_whole(tmp_path):
  (tmp_path / "a").write_bytes(b"\xef\xbb\xbf{}")
  (tmp_path / "link").symlink_to(tmp_path / "a")
  assert files.read_bytes(tmp_path / "link") == b"\xef\xbb\xbf{}"
  assert files.read_json(tmp_path / "link") == {}


def test_what_may_have_no_end_is_not_read(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "zero").symlink_to("/dev/zero")
  (tmp_path / "loop").symlink_to("loop")
  for name in ("pipe", "zero", "loop", "missing", "."):
    with pytest.raises(OSError):
      files.read_bytes(tmp_path / name)


def test_no_more_is_read_than_is_allowed(tmp_path):
  (tmp_path / "a").write_bytes(bytes(2 << 20))
  assert len(files.read_bytes(tmp_path / "a", 2 << 20)) == 2 << 20
  with pytest.raises(ValueError, match="larger than the 1 MiB"):
    files.read_bytes(tmp_path / "a", 1 << 20)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_a_value_error(tmp_path, content):
  (tmp_path / "a").write_bytes(content)
  with pytest.raises(ValueError):
    files.read_json(tmp_path / "a")


def test_the_setting_that_differs_is_named_however_deep_it_lies(tmp_path):
  old = {"networks": [{"step": 3, "scores": {"dice": 0.5, "iou": 0.4}}], "tta": "none"}
  new = {"networks": [{"step": 3, "scores": {"dice": 0.5, "iou": 0.3}}], "tta": "none"}
  files.claim_folder(tmp_path / "out", "made.json", old, "--output", {"by": "me"})
  files.claim_folder(tmp_path / "out", "made.json", old, "--output", {"by": "another"})
  with pytest.raises(InputError, match=r"made with networks\.0\.scores\.iou=0\.4, not 0\.3; ch"):
    files.claim_folder(tmp_path / "out", "made.json", new, "--output")
  one_more = {**old, "networks": [*old["networks"], {"step": "x" * 300}]}
  with pytest.raises(InputError, match=r"made with networks=\[.*, not \[") as error:
    files.claim_folder(tmp_path / "out", "made.json", one_more, "--output")
  assert len(str(error.value)) < 400
  assert files.read_json(tmp_path / "out" / "made.json") == {**old, "by": "another"}


@pytest.mark.parametrize("place", ["link", "masks/deeper/link"])
@pytest.mark.parametrize("target", ["/nowhere", "."])
def test_a_link_below_what_is_written_to_is_refused(tmp_path, place, target):
  output, elsewhere = tmp_path / "output", tmp_path / "elsewhere"
  path = output / place
  path.parent.mkdir(parents=True)
  elsewhere.symlink_to(output)
  for folder in (output, elsewhere, tmp_path / "missing"):
    files.refuse_links(folder)  # the folder itself may be one
  path.symlink_to(target)
  with pytest.raises(InputError, match="is a link"):
    files.refuse_links(output)


def test_a_file_shared_with_another_folder_keeps_its_content(tmp_path):
  other = tmp_path / "other"
  other.write_text("precious")
  for name in ("a.png", "b.txt.tmp"):
    os.link(other, tmp_path / name)
  write_mask(tmp_path / "a.png", np.ones((3, 3), np.uint8))
  replace_file(tmp_path / "b.txt", "new")
  assert other.read_text() == "precious" and (tmp_path / "b.txt").read_text() == "new"
