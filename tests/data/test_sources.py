"""Sources: the right cases in the right split, and one-line errors that name the cause."""

import hashlib
import logging
import os
import sys
import unicodedata

import cv2
import numpy as np
import pytest
from small_runs import ROOT, draw_case, write_case, write_splits

from configs.base import get_config
from medlitenet_jax.data.cases import split_hash
from medlitenet_jax.data.sources import CachedCases, SyntheticSource, create_source
from medlitenet_jax.system.errors import InputError

SPLITS = {"a": "train", "b": "val", "c": "train", "d": "test", "e": "train"}
REAL_DATA = ROOT.parent / "shared" / "data" / "isic2018"


@pytest.fixture
def root(tmp_path):
  """Five cases with their splits."""
  for number, case_id in enumerate(SPLITS):
    write_case(tmp_path, case_id, number, size=(20 + number, 30))
  write_splits(tmp_path, SPLITS)
  return tmp_path


def data(root=None, **fields):
  """`config.data` with these fields."""
  data = get_config().data.to_dict()
  return {**data, "source": "folder", "root": str(root), **fields}


def folder_source(root, split, with_classes=False, **fields):
  """The cases of a split of a folder."""
  return create_source(data(root, **fields), split, 0, with_classes=with_classes)


def refusal(root, split="train", with_classes=False, **fields):
  """The one-line error message for a folder."""
  with pytest.raises(InputError) as error:
    folder_source(root, split, with_classes, **fields)
  assert len(str(error.value).splitlines()) == 1
  return str(error.value)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_folder_gives_the_cases_of_its_split(root, split):
  source = folder_source(root, split)
  expected = sorted(case_id for case_id, name in SPLITS.items() if name == split)
  assert list(source.case_ids) == expected and len(source) == len(expected)
  for index, case_id in enumerate(expected):
    case = source[index]
    number = list(SPLITS).index(case_id)
    image, mask = (
      cv2.imread(str(root / name), cv2.IMREAD_UNCHANGED)
      for name in (f"images/{case_id}.png", f"masks/{case_id}_segmentation.png")
    )
    assert (case.index, case.case_id) == (index, case_id)
    assert case.image.shape == (20 + number, 30, 3)
    np.testing.assert_array_equal(case.image, image[..., ::-1])
    np.testing.assert_array_equal(case.mask, mask // 255)


@pytest.mark.parametrize("ending", ["jpg", "JPG", "jpeg", "bmp", "tif"])
def test_photographs_with_other_suffixes(tmp_path, ending):
  write_case(tmp_path, "x", suffix=ending)
  write_splits(tmp_path, {"x": "train"})
  assert folder_source(tmp_path, "train")[0].image.shape == (70, 90, 3)


def test_other_files_are_not_photographs(root):
  (root / "images" / "ATTRIBUTION.txt").write_text("by somebody")
  (root / "images" / ".hidden").touch()
  assert len(folder_source(root, "train")) == 3


def test_byte_order_mark_and_windows_lines(root):
  text = "\ufeffid,split\r\n" + "".join(f"{i},{s}\r\n" for i, s in SPLITS.items())
  (root / "splits.csv").write_bytes(text.encode())
  assert list(folder_source(root, "train").case_ids) == ["a", "c", "e"]


@pytest.mark.parametrize(
  "text",
  [
    "ID;Split\na;Train\nb;VALIDATION\nc;training\nd;Testing\ne;TRAIN\n",
    "\ufeffid\tsplit\na.png\ttrain\nb.PNG\tvalid\nc.jpg\ttrain\nd\ttest\ne\ttrain\n",
    'split;"remark, if any";Id\ntrain;"x;y";a\nval;;b.png\n\ntrain;;c\ntest;;d \ntrain ;;e\n',
  ],
)
def test_splits_file_as_people_write_it(root, text):
  (root / "splits.csv").write_text(text)
  assert all_splits(root) == SPLITS


def test_a_group_column_in_other_capitals(root):
  rows = "".join(f"{case_id};{'P1' if case_id in 'ab' else case_id}\n" for case_id in SPLITS)
  (root / "splits.csv").write_text("Id;Patient\n" + rows)
  found = all_splits(root, group_column="patient", val_fraction=0.3, test_fraction=0.3)
  assert found.keys() == SPLITS.keys() and found["a"] == found["b"]


def test_an_ending_that_belongs_to_the_name(tmp_path):
  for case_id in ("x.jpg", "y"):
    write_case(tmp_path, case_id)
  write_splits(tmp_path, {"x.jpg": "train", "y.jpg": "val"})
  assert all_splits(tmp_path) == {"x.jpg": "train", "y": "val"}


def test_further_columns_are_ignored(root):
  rows = "".join(f"{split},someone,{case_id}\n" for case_id, split in SPLITS.items())
  (root / "splits.csv").write_text("split,patient,id\n" + rows)
  assert list(folder_source(root, "val").case_ids) == ["b"]


def test_split_by_name_is_a_partition_that_new_files_do_not_change(tmp_path):
  def splits():
    found = {}
    for split in ("train", "val", "test"):
      found |= dict.fromkeys(folder_source(tmp_path, split).case_ids, split)
    return found

  for number in range(60):
    write_case(tmp_path, f"case_{number}", size=(8, 8))
  before = splits()
  assert len(before) == 60
  for number in range(60, 90):
    write_case(tmp_path, f"case_{number}", size=(8, 8))
  after = splits()
  assert len(after) == 90
  assert {case_id: after[case_id] for case_id in before} == before


def all_splits(root, **fields):
  """Split of each case."""
  found = {}
  for split in ("train", "val", "test"):
    try:
      cases = folder_source(root, split, **fields).case_ids
    except InputError as error:
      assert "is empty" in str(error)
      continue
    assert not found.keys() & set(cases)
    found |= dict.fromkeys(cases, split)
  return found


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """A hundred photographs, a third of them in a group of two."""
  root = tmp_path_factory.mktemp("many")
  rows = ["id,patient"]
  for number in range(100):
    write_case(root, f"case_{number}", size=(8, 8))
    if number < 90:  # the last ten have no row
      rows.append(f"case_{number},{'' if number % 9 == 0 else f'patient {number // 3}'}")
  (root / "splits.csv").write_text("\n".join(rows) + "\n")
  return root


def test_fractions_and_seed_of_the_split_by_hash(many):
  (many / "splits.csv").rename(many / "other.csv")
  try:
    plain = all_splits(many)
    assert len(plain) == 100
    counts = [list(plain.values()).count(split) for split in ("train", "val", "test")]
    assert 65 <= counts[0] <= 95 and all(2 <= count <= 20 for count in counts[1:])
    other = all_splits(many, split_seed=1)
    assert sum(plain[c] != other[c] for c in plain) > 10
    none = all_splits(many, val_fraction=0.0, test_fraction=0.0)
    assert set(none.values()) == {"train"}
    wide = all_splits(many, val_fraction=0.5)
    assert 30 < list(wide.values()).count("val") < 70
    assert [c for c in wide if wide[c] == "test"] == [c for c in plain if plain[c] == "test"]
    assert all(wide[c] == "val" for c in plain if plain[c] == "val")
  finally:
    (many / "other.csv").rename(many / "splits.csv")


def test_groups_stay_together(many, caplog):
  found = all_splits(many, group_column="patient", val_fraction=0.3, test_fraction=0.3)
  assert len(found) == 100 and set(found.values()) == {"train", "val", "test"}
  for number in range(90):
    sisters = {
      found[f"case_{n}"] for n in range(number - number % 3, number - number % 3 + 3) if n % 9
    }
    assert len(sisters) == 1
  alone = [found[f"case_{number}"] for number in [*range(0, 90, 9), *range(90, 100)]]
  assert len(set(alone)) == 3  # those without a group are not one group
  warning = " ".join(record.getMessage() for record in caplog.records)
  assert "10 photographs are in no group" in warning


@pytest.mark.parametrize("column", ["", "patient"])
def test_folds_divide_train_and_val_by_group(many, column):
  def deal(**fields):
    if column:
      return all_splits(many, group_column=column, test_fraction=0.3, **fields)
    return {
      case_id: split
      for split in ("train", "val", "test")
      for case_id in create_source(synthetic(**fields), split, 0).case_ids
    }

  plain = deal()
  folds = [deal(folds=4, fold=fold) for fold in range(4)]
  kept = [case_id for case_id in plain if plain[case_id] == "test"]
  assert kept and all([c for c in fold if fold[c] == "test"] == kept for fold in folds)
  times = {c: [fold[c] for fold in folds].count("val") for c in plain if plain[c] != "test"}
  assert set(times.values()) == {1}
  sizes = [list(fold.values()).count("val") for fold in folds]
  assert max(sizes) - min(sizes) <= (3 if column else 1)  # the largest group
  assert deal(folds=4, fold=1) == folds[1] != deal(folds=4, fold=1, split_seed=1)
  for number in range(0, 90 if column else 0, 3):
    sisters = {folds[2][f"case_{n}"] for n in range(number, number + 3) if n % 9}
    assert len(sisters) == 1


def synthetic(**fields):
  """`config.data` of 22 generated pictures."""
  counts = {"num_train": 14, "num_val": 5, "num_test": 3, "image_size": 32}
  return data(source="synthetic", synthetic=counts, **fields)


def test_folds_without_cases_or_known_groups_are_refused(root):
  with pytest.raises(InputError, match=r"data\.folds is 6, but outside of test there are 4"):
    folder_source(root, "train", folds=6)
  with pytest.raises(InputError, match="has several photographs of a lesion"):
    create_source(data(source="ham10000", folds=2), "train", 0)


def test_group_in_two_splits_is_refused_by_name(root):
  rows = [f"{c},{s},{'twin' if c in 'ab' else c}" for c, s in SPLITS.items()]
  (root / "splits.csv").write_text("\n".join(["id,split,lesion", *rows]) + "\n")
  assert len(folder_source(root, "train")) == 3  # without group_column it is not a group
  for split in ("train", "val", "test"):
    line = refusal(root, split, group_column="lesion")
    assert "lesion 'twin' is in train and val" in line and "splits.csv" in line


def test_given_split_is_used_if_groups_agree(root):
  rows = [f"{c},{s},{s}" for c, s in SPLITS.items()]
  (root / "splits.csv").write_text("\n".join(["id,split,site", *rows]) + "\n")
  assert all_splits(root, group_column="site") == SPLITS


def test_group_column_that_is_not_there(root):
  line = refusal(root, group_column="patient")
  assert "'patient'" in line and "'id', 'split'" in line and "config.data.group_column" in line
  (root / "splits.csv").unlink()
  assert "config.data.group_column" in refusal(root, group_column="patient")


@pytest.mark.parametrize("suffix", ["", "_mask", " lesion", ".seg"])
def test_masks_of_another_suffix(root, suffix):
  for path in list((root / "masks").iterdir()):
    path.rename(path.with_name(path.name.replace("_segmentation", suffix)))
  assert len(folder_source(root, "train", mask_suffix=suffix)) == 3
  line = refusal(root)
  assert f"--config.data.mask_suffix={suffix} 5 of 5" in line and "'_segmentation'" in line


def test_one_mask_of_another_suffix_is_a_missing_one(root):
  path = root / "masks" / "c_segmentation.png"
  path.rename(root / "masks" / "c_mask.png")
  assert "c_segmentation" in refusal(root)


def test_names_with_spaces_accents_and_case(tmp_path):
  names = ("Läsion 1", "läsion 1", "皮膚 2", "a,b", "x.y")
  for number, name in enumerate(names):
    write_case(tmp_path, name, number)
  assert set(all_splits(tmp_path)) == set(names)
  rows = "".join(f'"{name}",train\n' for name in names)
  (tmp_path / "splits.csv").write_text("id, split\n" + rows)
  source = folder_source(tmp_path, "train")
  for index, name in enumerate(source.case_ids):
    expected = draw_case(names.index(name), 70, 90)[0]
    np.testing.assert_array_equal(source[index].image, expected)


def test_accents_written_in_two_characters(tmp_path):
  write_case(tmp_path, unicodedata.normalize("NFD", "é"))
  write_splits(tmp_path, {unicodedata.normalize("NFC", "é"): "train"})
  assert list(folder_source(tmp_path, "train").case_ids) == [unicodedata.normalize("NFC", "é")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name themselves")
def test_a_name_that_is_not_utf8_is_refused(root):
  (root / "images" / os.fsdecode(b"caf\xe9.png")).touch()
  line = refusal(root)
  assert str(root / "images") in line and "UTF-8" in line and "caf" in line
  line.encode()


def test_hidden_files_are_not_photographs(root):
  (root / "images" / "._a.png").write_bytes(b"what a Mac leaves behind")
  assert all_splits(root) == SPLITS


def test_a_limit_draws_by_the_seed_and_says_so(tmp_path, caplog):
  for number in range(40):
    write_case(tmp_path, f"case_{number:02d}", size=(8, 8))
  write_splits(tmp_path, {f"case_{n:02d}": "val" if n < 15 else "train" for n in range(40)})

  def kept(split, count, seed):
    limits = {"max_train_images": count, "max_eval_images": count}
    source = create_source(data(tmp_path, **limits), split, seed)
    assert [source[i].case_id for i in range(len(source))] == list(source.case_ids)
    assert [source[i].index for i in range(len(source))] == list(range(count))
    return list(source.case_ids)

  with caplog.at_level(logging.INFO):
    first = kept("train", 8, 0)
  assert "train: 8 of 25 cases, drawn at random, by config.seed=0." in caplog.text
  assert kept("train", 8, 0) == first == sorted(first)
  assert set(first) < set(kept("train", 12, 0))
  draws = [kept("train", 8, seed) for seed in range(4)]
  assert len(set(map(tuple, draws))) == 4
  assert len(set().union(*draws)) > 12
  assert kept("val", 5, 0) == kept("val", 5, 1) != [f"case_{n:02d}" for n in range(5)]


def test_limits(root):
  assert len(create_source(data(root, max_train_images=2), "train", 0)) == 2
  assert len(create_source(data(root, max_train_images=9), "train", 0)) == 3
  assert len(create_source(data(root, max_eval_images=1), "train", 0)) == 3
  with pytest.raises(IndexError):
    create_source(data(root, max_train_images=2), "train", 0)[3]


def test_limit_of_evaluation_counts_for_val_and_test():
  for split in ("val", "test"):
    source = create_source(data(source="synthetic", max_eval_images=5), split, 0)
    assert len(source) == 5 and len(source.case_ids) == 5


def test_unused_photographs_are_counted_in_a_warning(root, caplog):
  write_splits(root, {"a": "train", "b": "val"})
  with caplog.at_level(logging.WARNING):
    folder_source(root, "train")
  warning = " ".join(record.getMessage() for record in caplog.records)
  assert str(root) in warning and "3 photographs" in warning


def test_names_that_differ_in_case_are_counted_in_a_warning(root, caplog):
  for case_id in ("A", "C"):
    write_case(root, case_id)
  write_splits(root, {**SPLITS, "A": "train", "C": "val"})
  assert list(folder_source(root, "train").case_ids) == ["A", "a", "c", "e"]
  assert "2 photographs are named like another one except for upper and lower case" in caplog.text


def test_no_warning_without_need(root, caplog):
  with caplog.at_level(logging.WARNING):
    folder_source(root, "train")
  assert not caplog.records


CLASSES = {"a": "nevus", "b": "melanoma", "c": "", "d": "keratosis", "e": "melanoma"}


def with_classes(root):
  rows = [f"{name}.png,{SPLITS[name]},{CLASSES[name]}" for name in SPLITS]
  (root / "splits.csv").write_text("\n".join(("id,split,Diagnosis", *rows)) + "\n")


def test_a_class_is_a_target_with_the_same_number_in_every_split(root):
  with_classes(root)
  numbers = {
    name: int(source[i].targets["class"])
    for split in ("train", "val", "test")
    for source in [folder_source(root, split, True, class_column="diagnosis")]
    for i, name in enumerate(source.case_ids)
  }
  assert numbers == {"a": 2, "b": 1, "c": -1, "d": 0, "e": 1}
  assert folder_source(root, "train", True)[0].targets == {}
  # Whoever does not learn classes needs no such column.
  assert folder_source(root, "train", class_column="other")[0].targets == {}


def test_a_class_column_that_cannot_be_used(root):
  with_classes(root)
  assert "no column 'kind'" in refusal(root, with_classes=True, class_column="kind")
  for kinds, said in (
    (",,", "no class"),
    ("mole,mole,", "one class"),
    ("mole,Mole,burn", "capitals"),
  ):
    rows = zip("abc", SPLITS.values(), kinds.split(","), strict=False)
    (root / "splits.csv").write_text("id,split,kind\n" + "\n".join(map(",".join, rows)) + "\n")
    assert said in refusal(root, with_classes=True, class_column="kind")
  (root / "splits.csv").unlink()
  assert "splits.csv: missing" in refusal(root, with_classes=True, class_column="kind")
  with pytest.raises(InputError, match=r"a column of splits\.csv, which synthetic has not"):
    drawn = data(source="synthetic", class_column="kind")
    create_source(drawn, "train", 0, with_classes=True)


def test_missing_root(tmp_path):
  line = refusal(tmp_path / "nowhere")
  assert str(tmp_path / "nowhere") in line and "config.data.root" in line


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_missing_folder(root, folder):
  (root / folder).rename(root / "other")
  line = refusal(root)
  assert str(root / folder) in line and "config.data.root" in line


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_folder_without_images(root, folder):
  for path in (root / folder).iterdir():
    path.unlink()
  assert str(root / folder) in refusal(root)


def test_missing_photographs(root):
  (root / "images" / "c.png").unlink()
  line = refusal(root)
  assert "splits.csv" in line and "1 file" in line and f"{root}/images: c" in line


def test_many_missing_photographs_are_counted(root):
  write_splits(root, {f"gone_{i}": "train" for i in range(40)})
  line = refusal(root)
  assert "40 files" in line and "gone_0" in line and len(line) < 400


def test_missing_mask(root):
  (root / "masks" / "e_segmentation.png").unlink()
  line = refusal(root)
  assert str(root / "masks") in line and "e_segmentation" in line
  folder_source(root, "val")  # which needs no mask of e


def test_training_needs_every_pair_that_the_splits_name(root):
  def training(split="train"):
    return create_source(data(root), split, 0, to_score=False)

  assert list(training().case_ids) == ["a", "c", "e"]
  mask = root / "masks" / "d_segmentation.png"
  content = mask.read_bytes()
  mask.unlink()
  with pytest.raises(InputError, match=r"/masks: d_segmentation \(test\); add what is missing"):
    training()
  assert len(folder_source(root, "train")) == 3  # which is scored without it
  mask.write_bytes(content)
  write_splits(root, {**SPLITS, "gone": "test"})
  with pytest.raises(InputError, match=r"/images: gone \(test\)"):
    training()
  write_splits(root, {**SPLITS, "d": "train"})
  assert len(training()) == 4  # without any test


def test_all_splits_together(root):
  source = folder_source(root, "all")
  assert list(source.case_ids) == ["a", "c", "e", "b", "d"]
  for index, case_id in enumerate(source.case_ids):
    case = source[index]
    assert (case.index, case.case_id) == (index, case_id)
    np.testing.assert_array_equal(
      case.image, draw_case(list(SPLITS).index(case_id), *case.image.shape[:2])[0]
    )
  assert len(folder_source(root, "all", max_eval_images=2)) == 2
  write_splits(root, dict.fromkeys("abc", "val"))
  assert list(folder_source(root, "all").case_ids) == ["a", "b", "c"]
  (root / "masks" / "b_segmentation.png").unlink()
  assert "b_segmentation (val)" in refusal(root, "all")
  synthetic = {"num_train": 2, "num_val": 0, "num_test": 3, "image_size": 32}
  assert len(create_source(data(source="synthetic", synthetic=synthetic), "all", 0)) == 5


def test_mask_of_another_size(root):
  cv2.imwrite(str(root / "masks" / "c_segmentation.png"), np.zeros((30, 22), np.uint8))
  line = refusal(root)
  assert "c_segmentation.png" in line and "c.png" in line and "30x22" in line and "22x30" in line


def test_two_photographs_of_one_name(root):
  write_case(root, "c", suffix="jpg")
  line = refusal(root)
  assert "c.jpg" in line and "c.png" in line


def test_a_file_that_is_not_an_image(root):
  (root / "images" / "c.png").write_text("nothing to see")
  assert str(root / "images" / "c.png") in refusal(root)


def test_a_truncated_photograph_is_found_when_it_is_read(root):
  (root / "images" / "c.png").unlink()
  write_case(root, "c", suffix="jpg")
  path = root / "images" / "c.jpg"
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  source = folder_source(root, "train")
  with pytest.raises(InputError, match=r"c\.jpg"):
    source[1]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_empty_split(root, split):
  write_splits(root, dict.fromkeys(SPLITS, "val" if split == "train" else "train"))
  line = refusal(root, split)
  assert str(root) in line and split in line and "splits.csv" in line


@pytest.mark.parametrize(
  ("text", "named"),
  [
    ("id,split\na,train\nb,Dev\n", ("line 3", "'Dev'", "train, val, test")),
    ("id,split\na,train\nb\n", ("line 3",)),
    ("id,split\na,train\nb,val\na,val\n", ("line 4", "a", "twice")),
    ("name,fold\na,train\n", ("columns id and split",)),
    ("a,train\nb,val\n", ("columns id and split",)),
    ("", ("columns id and split",)),
  ],
)
def test_splits_file_that_cannot_be_used(root, text, named):
  (root / "splits.csv").write_text(text)
  line = refusal(root)
  assert str(root / "splits.csv") in line
  for part in named:
    assert part in line


def test_a_column_without_a_name_is_not_a_group(root):
  lines = (root / "splits.csv").read_text().splitlines()
  before = {split: folder_source(root, split).case_ids for split in ("train", "val")}
  (root / "splits.csv").write_text(
    "\n".join(f"{line},{'x' * (n > 0)}" for n, line in enumerate(lines))
  )
  assert {split: folder_source(root, split).case_ids for split in before} == before


def test_splits_file_in_another_encoding(root):
  (root / "splits.csv").write_bytes("id,split,remark\na,train,Läsion\n".encode("latin-1"))
  assert str(root / "splits.csv") in refusal(root)


def test_unknown_source_and_split(root):
  with pytest.raises(InputError, match=r"config\.data\.source.*folder, synthetic"):
    create_source(data(root, source="isic"), "train", 0)
  with pytest.raises(InputError, match=r"'dev'.*train, val, test"):
    create_source(data(root), "dev", 0)


def test_no_generated_cases():
  synthetic = {**data()["synthetic"], "num_val": 0}
  with pytest.raises(InputError, match=r"config\.data\.synthetic\.num_val"):
    create_source(data(source="synthetic", synthetic=synthetic), "val", 0)


def test_generated_splits_are_disjoint_and_repeat():
  synthetic = {"num_train": 6, "num_val": 5, "num_test": 4, "image_size": 32}
  settings = data(source="synthetic", synthetic=synthetic)
  sources = {split: create_source(settings, split, 3) for split in ("train", "val", "test")}
  assert [len(source) for source in sources.values()] == [6, 5, 4]
  case_ids = [case_id for source in sources.values() for case_id in source.case_ids]
  pictures = {source[i].image.tobytes() for source in sources.values() for i in range(len(source))}
  assert len(set(case_ids)) == len(pictures) == 15
  for split, source in sources.items():
    again = create_source(settings, split, 3)[2]
    np.testing.assert_array_equal(again.image, source[2].image)
    np.testing.assert_array_equal(again.mask, source[2].mask)
    assert again.case_id == source[2].case_id == source.case_ids[2]
    assert np.any(create_source(settings, split, 4)[2].image != source[2].image)


def test_split_hash_does_not_depend_on_the_order():
  expected = hashlib.sha256(b"a\nb\nc").hexdigest()[:16]
  assert split_hash(["a", "b", "c"]) == split_hash(["c", "a", "b"]) == expected
  others = (["a", "b"], ["a", "b", "d"], ["a", "b", "c", "c2"], ["ab", "c"])
  assert len({expected, *map(split_hash, others)}) == 5


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no ISIC 2018 photographs beside the project")
def test_real_photographs():
  sources = {split: folder_source(REAL_DATA, split) for split in ("val", "test")}
  assert not set(sources["val"].case_ids) & set(sources["test"].case_ids)
  for index in (0, 7, len(sources["val"]) - 1):
    case = sources["val"][index]
    assert case.case_id.startswith("ISIC_")
    assert case.image.ndim == 3 and case.image.shape[:2] == case.mask.shape
    assert case.image.std() > 5 and set(np.unique(case.mask)) <= {0, 1} and case.mask.any()


class CountingSource(SyntheticSource):
  """Generated cases of 32x32, 4 KiB each, and how often each was read."""

  def __init__(self, count):
    super().__init__(seed=0, first=0, count=count, image_size=32)
    self.reads = [0] * count

  def __getitem__(self, index):
    self.reads[index] += 1
    return super().__getitem__(index)


@pytest.mark.parametrize(("kibibytes", "kept"), [(0, 0), (11.9, 2), (12, 3), (1000, 4)])
def test_cases_that_fit_the_cache_are_read_once_and_the_others_at_every_use(kibibytes, kept):
  source = CountingSource(4)
  cached = CachedCases(source, kibibytes * 1024)
  assert list(cached.case_ids) == list(source.case_ids) and len(cached) == len(source)
  for _ in range(3):
    for index in range(4):
      case, plain = cached[index], SyntheticSource.__getitem__(source, index)
      assert (case.index, case.case_id) == (index, plain.case_id)
      np.testing.assert_array_equal(case.image, plain.image)
      np.testing.assert_array_equal(case.mask, plain.mask)
  assert source.reads == [1] * kept + [3] * (4 - kept)


def test_cached_cases_are_read_only():
  case = CachedCases(CountingSource(1), 2**20)[0]
  for pixels in (case.image, case.mask):
    with pytest.raises(ValueError, match="read-only"):
      pixels[0] = 0
