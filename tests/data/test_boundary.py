"""What lies in folders and archives is as foreign as a single file: pipes, devices, bombs, damage."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import tarfile
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.data.conftest import COLOURS, pack, png, tree
from vertebra.data.boundary import MOST, read_regular
from vertebra.data.datasets import open_dataset
from vertebra.data.decode import DecodeError, decode
from vertebra.data.doctor import examine
from vertebra.data.huggingface import HubSample
from vertebra.data.jpeg import jpeg_content
from vertebra.data.members import Member, list_folder, list_zip
from vertebra.spec import VertebraError

MEGABYTE = 2**20


@contextmanager
def at_most(count: int) -> Generator[None]:
    """No more bytes are held within than `count`, and it comes to an end."""
    late = threading.Timer(60, os._exit, (1,))  # a pipe that is waited for cannot be interrupted otherwise
    late.start()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < count
    finally:
        tracemalloc.stop()
        late.cancel()


def zeros(megabytes: int) -> bytes:
    """That many of zeros, deflated, in a thousandth of the time that packing them takes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes + packer.flush()


def zipped(path: Path, files: dict[str, tuple[bytes, int, int, int]]) -> Path:
    """A zip of (stored bytes, method, size that it claims, checksum that it claims)."""
    body, index = b"", b""
    for name, (data, method, size, crc) in files.items():
        fields = struct.pack("<5H3I2H", 20, 0, method, 0, 0, crc, len(data), size, len(name), 0)
        index += struct.pack("<4sH", b"PK\1\2", 20) + fields + struct.pack("<3H2I", 0, 0, 0, 0, len(body))
        index += name.encode()
        body += b"PK\3\4" + fields + name.encode() + data
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(files), len(files), len(index), len(body), 0)
    path.write_bytes(body + index + end)
    return path


def whole(content: bytes) -> tuple[bytes, int, int, int]:
    return content, zipfile.ZIP_STORED, len(content), zlib.crc32(content)


def odd_folder(root: Path) -> Path:
    """Class folders with a pipe, a device that never ends, a socket's like and a file with a hole of terabytes."""
    tree(root)
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "cat" / "zero.jpg").symlink_to("/dev/zero")
    with (root / "dog" / "hole.png").open("wb") as file:
        file.truncate(2**40)
    return root


ODD = {
    "pipe.jpg": "is a named pipe, not a regular file",
    "zero.jpg": "is a device, not a regular file",
    "hole.png": f"has {2**40:,} bytes, and at most {MOST:,} are read",
}


@pytest.mark.parametrize("name", list(ODD))
def test_what_is_no_file_of_a_photos_size_is_named_and_not_read(tmp_path: Path, name: str) -> None:
    (member,) = [m for m in list_folder(odd_folder(tmp_path)) if m.name.endswith(name)]
    with at_most(MEGABYTE), pytest.raises(VertebraError, match=f"{name}: {ODD[name]}"):
        member.read()
    if name != "hole.png":
        with at_most(MEGABYTE), pytest.raises(DecodeError, match="not a regular file"):
            decode(member.name)
    with at_most(MEGABYTE):
        assert jpeg_content(Path(member.name)) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_doctor_names_them_and_goes_on(tmp_path: Path, workers: int) -> None:
    with at_most(64 * MEGABYTE):
        report = examine(open_dataset(odd_folder(tmp_path)), workers=workers)
    assert report.images == 12
    (unreadable,) = [finding for finding in report.findings if finding.kind == "unreadable"]
    told = {Path(entry.files[0]).name: entry.note for entry in unreadable.entries}
    assert {name: ODD[name] in note for name, note in told.items()} == dict.fromkeys(ODD, True)


def test_a_file_that_grows_without_end_is_let_go(tmp_path: Path) -> None:
    """As seen by who listed it when it was empty."""
    (tmp_path / "log").write_bytes(bytes(64 * MEGABYTE))
    with at_most(8 * MEGABYTE), pytest.raises(VertebraError, match=r"and at most 2,097,152 are read"):
        read_regular(tmp_path / "log", 2 * MEGABYTE, expected=0)


def test_archives_and_tables_that_are_pipes_or_devices_are_refused(tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar", "a.csv", "a.parquet"):
        os.mkfifo(tmp_path / name)
        (tmp_path / f"zero{name}").symlink_to("/dev/zero")
        for source in (name, f"zero{name}"):
            with at_most(8 * MEGABYTE), pytest.raises(VertebraError, match=r"not a regular file"):
                open_dataset(tmp_path / source)
    os.mkfifo(tmp_path / "photos")
    with at_most(8 * MEGABYTE), pytest.raises(VertebraError, match="data is a folder"):
        open_dataset(tmp_path / "photos")


@pytest.mark.parametrize("claims", [3000 * MEGABYTE, 1000, 2 * MEGABYTE])
def test_a_zip_bomb_is_refused_whatever_it_claims(tmp_path: Path, claims: int) -> None:
    """3 GB in 3 MB, which says so; which says that they are 1000 bytes; two megabytes."""
    bomb = zeros(3000)
    assert len(bomb) < 4 * MEGABYTE
    files = {"cat/0.png": (bomb, zipfile.ZIP_DEFLATED, claims, 0), "dog/0.png": whole(png("green"))}
    bad, good = open_dataset(zipped(tmp_path / "a.zip", files)).parts["train"].samples
    said = "at most" if claims > MOST else f"unpacks to more, not to the {claims:,} bytes that the zip says"
    with at_most(16 * MEGABYTE), pytest.raises(VertebraError, match=rf"a.zip!cat/0.png: .*{said}"):
        bad.read()
    assert good.read() == png("green")


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_bytes_are_the_damage_of_that_member(tmp_path: Path, packing: int) -> None:
    """Even where the picture can be shown: 'nothing found' would be said of any other."""
    path = pack(tree(tmp_path / "photos"), tmp_path / "photos.zip", packing=packing)
    first = next(list_zip(path))
    content = bytearray(path.read_bytes())
    at = content.index(b"cat/0.png") + len(b"cat/0.png")
    content[at + first.size - 20] ^= 1
    path.write_bytes(content)
    dataset = open_dataset(path)
    with pytest.raises(VertebraError, match=r"photos.zip!cat/0.png: the archive is damaged here"):
        dataset.parts["train"].samples[0].read()
    report = examine(dataset)
    assert report.unreadable == 1
    assert [entry.files for entry in report.findings[0].entries] == [(f"{path}!cat/0.png",)]


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ((png("red")[:-3], 0, len(png("red")), 0), "it unpacks to"),
        ((png("red"), 0, len(png("red")), 1), r"do not match their checksum \(CRC\)"),
        ((b"no deflate", 8, 10, 0), "invalid"),
        ((zeros(1)[:-9], 8, MEGABYTE, zlib.crc32(bytes(MEGABYTE))), "it unpacks to 1,047,224, not to"),
    ],
)
def test_a_member_that_is_not_what_the_zip_says(tmp_path: Path, member: tuple[bytes, int, int, int], said: str) -> None:
    path = zipped(tmp_path / "a.zip", {"cat/0.png": member, "dog/0.png": whole(png("green"))})
    samples = open_dataset(path).parts["train"].samples
    with pytest.raises(VertebraError, match=rf"cat/0.png: .*({said})"):
        samples[0].read()
    assert samples[1].read() == png("green")


def test_a_zip_that_was_cut_or_written_over_since_it_was_listed(tmp_path: Path) -> None:
    path = pack(tree(tmp_path / "photos"), tmp_path / "photos.zip", packing=zipfile.ZIP_STORED)
    members = list(list_zip(path))
    content = path.read_bytes()
    path.write_bytes(content[:300])
    with pytest.raises(VertebraError, match="the archive is damaged here"):
        members[-1].read()
    path.write_bytes(b"x" * len(content))
    with pytest.raises(VertebraError, match="its header is not where the zip says"):
        members[0].read()


def test_of_two_members_under_one_name_the_last_counts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, colour in (("cat/0.png", "blue"), ("dog/0.png", "green")):
            archive.writestr(name, png(colour))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("cat/0.png", png("red"))
    assert [m.read() for m in list_zip(tmp_path / "a.zip")] == [png("red"), png("green")]


def test_members_named_with_backslashes_lie_in_folders(tmp_path: Path) -> None:
    files = {f"photos\\{name}\\0.png": whole(png(colour)) for name, colour in COLOURS.items()}
    path = zipped(tmp_path / "a.zip", {"photos\\": whole(b""), "__MACOSX\\cat\\._0.png": whole(b"x"), **files})
    dataset = open_dataset(path)
    assert dataset.classes == tuple(COLOURS)
    assert dataset.parts["train"].samples[0].name == f"{path}!photos/cat/0.png"


def tar(path: Path, files: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_what_a_tar_holds_beside_files_is_empty_and_never_opened(tmp_path: Path) -> None:
    pipe, device = tarfile.TarInfo("cat/pipe.png"), tarfile.TarInfo("cat/zero.png")
    pipe.type, device.type = tarfile.FIFOTYPE, tarfile.CHRTYPE
    device.devmajor, device.devminor = 1, 5
    files = {"cat/pipe.png": pipe, "cat/zero.png": device, "cat/0.png": png("red"), "dog/0.png": png("green")}
    samples = open_dataset(tar(tmp_path / "a.tar", files)).parts["train"].samples
    assert sorted(len(sample.read()) for sample in samples) == sorted([0, 0, len(png("red")), len(png("green"))])


def test_a_tars_sparse_member_is_refused_for_that_reason(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        with (tmp_path / "in" / name / "0.png").open("wb") as file:
            file.truncate(10 * MEGABYTE)
    subprocess.run(["tar", "--sparse", "-cf", tmp_path / "a.tar", "-C", tmp_path / "in", "cat", "dog"], check=True)
    for sample in open_dataset(tmp_path / "a.tar").parts["train"].samples:
        with at_most(MEGABYTE), pytest.raises(VertebraError, match=r"0.png: is stored with its holes left out"):
            sample.read()


def test_a_tar_that_claims_terabytes_is_not_believed(tmp_path: Path) -> None:
    info = tarfile.TarInfo("cat/0.png")
    info.size = 2**40
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**40
    for header in (info, name):
        path = tmp_path / "a.tar"
        path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
        with at_most(40 * MEGABYTE), pytest.raises(VertebraError, match="cannot be read as a tar"):
            open_dataset(path)
    member = Member(str(path), "cat/0.png", 2**40, 512)
    with at_most(MEGABYTE), pytest.raises(VertebraError, match="at most"):
        member.read()


def test_a_shards_label_is_short_and_utf8(tmp_path: Path) -> None:
    for label, said in ((b"\xff\xfe", "in UTF-8"), (bytes(2**17), "at most 65,536")):
        tar(tmp_path / "train.tar", {"a.png": png("red"), "a.cls": label, "b.png": png("red"), "b.cls": b"1"})
        with pytest.raises(VertebraError, match=f"train.tar!a.cls: .*{said}"):
            open_dataset(tmp_path / "train.tar")


def test_a_hub_datasets_images_pass_the_same_gate(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    rows = [{"image": {"bytes": None, "path": str(tmp_path / "pipe.jpg")}}, {"image": {"path": "/dev/zero"}}]
    for index in range(2):
        with at_most(MEGABYTE), pytest.raises(VertebraError, match=rf"train\[{index}\]: .*not a regular file"):
            HubSample(rows, "image", index, "train").read()


def test_a_parquet_table_that_unpacks_to_billions_of_lines_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    batch = pa.table({"path": pa.array(["a.png"] * 2**20).dictionary_encode(), "label": [1] * 2**20})
    with parquet.ParquetWriter(tmp_path / "t.parquet", batch.schema) as writer:
        for _ in range(40):
            writer.write_table(batch)
    assert (tmp_path / "t.parquet").stat().st_size < MEGABYTE
    with at_most(8 * MEGABYTE), pytest.raises(VertebraError, match="has 41,943,040 lines, and at most"):
        open_dataset(tmp_path / "t.parquet")
