"""Untrusted archives are read up to the sizes they declare and never unpacked to disk."""

import re
import struct
import zipfile

import pytest

from medlitenet_jax.data.public.archives import find_members
from medlitenet_jax.system.errors import InputError

NAME = re.compile(r"(ISIC_\d{7})")


def pack(path, members, compression=zipfile.ZIP_DEFLATED):
  with zipfile.ZipFile(path, "w", compression) as packed:
    for name, content in members.items():
      packed.writestr(name, content)
  return path


def refusal(path, case_id="ISIC_0000001"):
  with pytest.raises(InputError, match=path.name) as error:
    find_members([path], NAME)[case_id]()
  return str(error.value)


def patched(path, signature, offset, value):
  """Writes a 16- or 32-bit value into every record of a kind."""
  content = bytearray(path.read_bytes())
  for match in re.finditer(re.escape(signature), bytes(content)):
    content[match.start() + offset : match.start() + offset + len(value)] = value
  path.write_bytes(content)


def test_names_with_parent_folders_are_harmless(tmp_path):
  members = {"../../ISIC_0000001.jpg": b"a", "/ISIC_0000002.jpg": b"b", "notes.txt": b"c"}
  path = pack(tmp_path / "set.zip", members)
  found = find_members([path], NAME)
  assert {name: read() for name, read in found.items()} == {
    "ISIC_0000001": b"a",
    "ISIC_0000002": b"b",
  }
  assert [entry.name for entry in tmp_path.iterdir()] == ["set.zip"]


def test_a_member_that_declares_too_much_is_not_unpacked(tmp_path):
  path = pack(tmp_path / "set.zip", {"ISIC_0000001.jpg": bytes(1000)})
  patched(path, b"PK\1\2", 24, struct.pack("<I", 2**31))
  assert "larger than the limit of 512 MiB" in refusal(path)


@pytest.mark.parametrize("declared", [10, 5000])
def test_a_member_that_declares_another_size_is_refused(tmp_path, declared):
  path = pack(tmp_path / "set.zip", {"ISIC_0000001.jpg": bytes(1000)})
  patched(path, b"PK\1\2", 24, struct.pack("<I", declared))
  refusal(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_a_bound_is_refused(tmp_path, compression):
  path = pack(tmp_path / "set.zip", {"ISIC_0000001.jpg": bytes(1000)}, compression)
  assert "neither stored nor deflated" in refusal(path)


def test_an_encrypted_member_is_refused(tmp_path):
  path = pack(tmp_path / "set.zip", {"ISIC_0000001.jpg": bytes(1000)})
  patched(path, b"PK\1\2", 8, struct.pack("<H", 1))
  patched(path, b"PK\3\4", 6, struct.pack("<H", 1))
  assert "encrypted" in refusal(path)


def test_damaged_data_is_refused(tmp_path):
  path = pack(tmp_path / "set.zip", {"ISIC_0000001.jpg": bytes(range(256)) * 9})
  content = bytearray(path.read_bytes())
  content[50:60] = b"\xff" * 10
  path.write_bytes(content)
  refusal(path)
