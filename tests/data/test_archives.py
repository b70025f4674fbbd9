"""Zips, tars and WebDataset shards, to the same table as folders."""

from __future__ import annotations

import io
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.data.conftest import COLOURS, check_content, pack, png, sizes, tree
from vertebra.data.datasets import open_dataset
from vertebra.spec import VertebraError


@pytest.mark.parametrize("prefix", ["", "my photos/"])
@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_folders_wrapped_in_another_or_not(tmp_path: Path, prefix: str, packing: int) -> None:
    dataset = open_dataset(pack(tree(tmp_path / "photos"), tmp_path / "photos.zip", prefix, packing))
    assert sizes(dataset) == {"train": 9}
    check_content(dataset)


def test_a_folder_of_zips_named_after_their_splits(tmp_path: Path) -> None:
    photos = tree(tmp_path / "photos")
    out = tmp_path / "zips"
    out.mkdir()
    for name in ("train-0", "train-1", "validation"):
        pack(photos, out / f"{name}.zip", "train/" if name.startswith("train") else "validation/")
    (out / "classes.csv").write_text("index,name\n")
    assert sizes(open_dataset(out)) == {"train": 18, "val": 9}
    check_content(open_dataset(out))


def test_the_end_of_an_archives_name_may_be_in_capitals(tmp_path: Path) -> None:
    photos, out = tree(tmp_path / "photos"), tmp_path / "zips"
    out.mkdir()
    pack(photos, out / "VAL.ZIP", "val/")
    pack(photos, out / "._VAL.zip")  # what a Mac leaves
    for source in (out, out / "VAL.ZIP"):
        assert sizes(open_dataset(source)) == {"val": 9}
        check_content(open_dataset(source))


@pytest.mark.parametrize("name", ["old.zip", "OLD.TAR"])
def test_archives_beside_class_folders_hide_none_of_them(tmp_path: Path, name: str) -> None:
    (tree(tmp_path) / name).write_bytes(b"")
    with pytest.raises(VertebraError, match=rf"archives \({name}\) and photos \(cat/0.png\)"):
        open_dataset(tmp_path)


def test_threads_read_a_zip_without_getting_in_each_others_way(tmp_path: Path) -> None:
    dataset = open_dataset(pack(tree(tmp_path / "photos", each=30), tmp_path / "photos.zip"))
    part = dataset.parts["train"]
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda sample: sample.read(), part.samples))
    assert contents == [png(COLOURS[dataset.classes[label]]) for label in part.labels]


@pytest.mark.parametrize(
    ("names", "expected", "note"),
    [
        (("imagenet1k-train-0", "imagenet1k-validation-00"), {"train": 9, "val": 9}, ""),
        (("cifar10_train", "cifar10_test"), {"train": 9, "test": 9}, ""),
        (("train-of-test-a", "dev"), {"train": 9, "val": 9}, ""),  # the first word counts
        (("photos-train-test", "more"), {"train": 18}, ""),  # what names several says nothing
        (
            ("train", "val", "holdout"),
            {"train": 9, "val": 9},
            "split 'holdout.zip' left out; only train, val and test are read",
        ),
        (("photos", "val"), {"train": 9, "val": 9}, ""),
        (("my-test-photos",), {"train": 9}, ""),  # there is nothing that it could be the test of
        (("test-photos",), {"test": 9}, ""),
    ],
)
def test_archives_say_their_split_in_their_names(
    tmp_path: Path, names: tuple[str, ...], expected: dict[str, int], note: str
) -> None:
    for name in names:
        pack(tree(tmp_path / "source"), tmp_path / "packed" / f"{name}.zip")
    dataset = open_dataset(tmp_path / "packed")
    assert (sizes(dataset), dataset.note.partition(": ")[2]) == (expected, note)


def test_links_in_a_tar_are_the_files_that_they_lead_to(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name, colour in COLOURS.items():
            info = tarfile.TarInfo(f"./{name}/0.png")
            info.size = len(png(colour))
            archive.addfile(info, io.BytesIO(png(colour)))
        for name, kind, target in (
            ("cat/hard.png", tarfile.LNKTYPE, "./cat/0.png"),
            ("dog/soft.png", tarfile.SYMTYPE, "0.png"),
            ("eel/twice.png", tarfile.SYMTYPE, "../eel/once.png"),
            ("eel/once.png", tarfile.SYMTYPE, "./0.png"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    dataset = open_dataset(tmp_path / "photos.tar")
    assert sizes(dataset) == {"train": 7}
    check_content(dataset)


@pytest.mark.parametrize("cut", [3 * 1024, 3 * 1024 + 100, 3 * 1024 + 600])
def test_a_tar_that_was_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    """Behind a file, in the next one's header, in its data; tar itself is silent of the first two."""
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(6):
            info = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}.png")
            info.size = 512
            archive.addfile(info, io.BytesIO(bytes(512)))
    assert sizes(open_dataset(path)) == {"train": 6}
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(VertebraError, match=r"photos.tar: (is cut off|cannot be read as a tar: unexpected end)"):
        open_dataset(path)


def test_a_link_in_a_tar_that_leads_nowhere_is_empty(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name, target in (("cat/a.png", "b.png"), ("cat/b.png", "a.png"), ("dog/a.png", "/etc/a.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    part = open_dataset(tmp_path / "photos.tar").parts["train"]
    assert [sample.read() for sample in part.samples] == [b""] * 3


@pytest.mark.parametrize(
    ("files", "read"),
    [(("a.png", "a.mask.png", "a.thumb.jpg"), "a.png"), (("a.image.png",), "a.image.png"), (("a.png", "a.jpg"), "")],
)
def test_a_shards_key_has_one_image(tmp_path: Path, files: tuple[str, ...], read: str) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name in (*files, "a.cls", "b.png", "b.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(name[:1].encode()))
    if not read:
        with pytest.raises(VertebraError, match=r"a.png and .*a.jpg share one label, and either could be its image"):
            open_dataset(tmp_path)
    else:
        samples = open_dataset(tmp_path).parts["train"].samples
        assert [sample.name.partition("!")[2] for sample in samples] == [read, "b.png"]


def test_shards_of_keys_with_labels(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard:03}.tar", "w") as archive:
            for i, (name, colour) in enumerate(COLOURS.items()):
                for suffix, content in (("png", png(colour)), ("cls", name.encode()), ("json", b"{}")):
                    info = tarfile.TarInfo(f"{shard}{i}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    for source in (tmp_path, f"{tmp_path}/train-{{000..001}}.tar"):
        dataset = open_dataset(source)
        assert sizes(dataset) == {"train": 6}
        check_content(dataset)
