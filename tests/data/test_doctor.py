"""`vertebra doctor`: each defect planted, each found, and nothing found in sound data."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner, Result

from tests.data.test_datasets import IMAGES, hub
from vertebra.cli import app
from vertebra.data.datasets import open_dataset
from vertebra.data.decode import inspect
from vertebra.data.doctor import Finding, Report, examine
from vertebra.data.near import WINDOW, alike, groups
from vertebra.spec import VertebraError


def picture(seed: int, size: int = 64) -> Image.Image:
    """Smooth blotches, other ones for every seed."""
    levels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sound data: train and val, two classes."""
    root, seed = tmp_path / "photos", 0
    for split, each in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                picture(seed).save(root / split / name / f"{i}.png")
                seed += 1
    return root


def diagnose(root: Path, workers: int = 0) -> Report:
    return examine(open_dataset(root), workers=workers)


def only(report: Report, kind: str, level: str) -> Finding:
    """The one finding that there is."""
    assert [(f.kind, f.level) for f in report.findings] == [(kind, level)]
    return report.findings[0]


def cases(finding: Finding, root: Path) -> list[tuple[str, ...]]:
    return [tuple(Path(name).relative_to(root).as_posix() for name in entry.files) for entry in finding.entries]


@pytest.mark.parametrize("workers", [0, 2])
def test_sound_data_is_sound(photos: Path, workers: int) -> None:
    report = diagnose(photos, workers)
    assert report.findings == ()
    assert report.counts == {"train": {"cat": 6, "dog": 6}, "val": {"cat": 3, "dog": 3}}
    assert (report.images, report.unreadable) == (18, 0)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_file_that_cannot_be_read(photos: Path, content: bytes | None) -> None:
    file = photos / "train" / "cat" / "0.png"
    file.write_bytes(file.read_bytes()[:900] if content is None else content)
    report = diagnose(photos)
    found = only(report, "unreadable", "error")
    assert cases(found, photos) == [("train/cat/0.png",)]
    assert not found.entries[0].note.startswith(str(photos))
    assert report.counts["train"]["cat"] == 5


@pytest.mark.parametrize(
    ("target", "kind", "level"),
    [
        ("train/cat/9.png", "duplicate", "warning"),
        ("train/dog/9.png", "conflict", "error"),
        ("val/cat/9.png", "leak", "error"),
    ],
)
def test_a_file_twice(photos: Path, target: str, kind: str, level: str) -> None:
    shutil.copy(photos / "train" / "cat" / "0.png", photos / target)
    assert cases(only(diagnose(photos), kind, level), photos) == [("train/cat/0.png", target)]


@pytest.mark.parametrize("change", ["smaller", "jpeg", "brighter"])
@pytest.mark.parametrize(
    ("target", "kind", "level"),
    [
        ("train/cat", "near-duplicate", "warning"),
        ("train/dog", "near-conflict", "warning"),
        ("val/cat", "near-leak", "error"),
    ],
)
def test_a_near_copy(photos: Path, change: str, target: str, kind: str, level: str) -> None:
    with Image.open(photos / "train" / "cat" / "0.png") as image:
        if change == "smaller":
            image.resize((40, 40)).save(photos / target / "9.png")
        elif change == "brighter":
            image.point(lambda v: v * 0.8 + 40).save(photos / target / "9.png")
        else:
            image.save(photos / target / "9.jpg", quality=60)
    ((first, second),) = cases(only(diagnose(photos), kind, level), photos)
    assert first == "train/cat/0.png"
    assert second.startswith(f"{target}/9.")


def test_a_copy_in_another_class_of_another_split_is_both(photos: Path) -> None:
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "val" / "dog" / "9.png")
    assert [f.kind for f in diagnose(photos).findings] == ["leak", "conflict"]


def test_plain_images_and_other_colours_are_no_copies_of_each_other(photos: Path) -> None:
    for i in range(6):
        Image.new("RGB", (64, 64), (250 - i, 250, 250)).save(photos / "train" / "cat" / f"white{i}.png")
    for i, colours in enumerate([("red", "blue"), ("blue", "red"), ("lime", "white")]):
        shape = picture(99).convert("L")
        ImageOps.colorize(shape, *colours).save(photos / "train" / "dog" / f"icon{i}.png")
    found = only(diagnose(photos), "blank", "warning")
    assert len(found.entries) == 6


def test_classes_that_are_missing_single_or_rare(photos: Path) -> None:
    for i in range(80):
        picture(1000 + i, 32).save(photos / "train" / "cat" / f"more{i}.png")
    (photos / "train" / "eel").mkdir()
    picture(2000).save(photos / "train" / "eel" / "0.png")
    notes = {f.kind: [e.note for e in f.entries] for f in diagnose(photos).findings}
    assert notes == {
        "class-missing": ["eel: none in val"],
        "class-single": ["eel: 1 in train"],
        "imbalance": ["dog: 6 in train, cat has 86", "eel: 1 in train, cat has 86"],
    }


def exif(image: Image.Image, code: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = code
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=block)
    return buffer.getvalue()


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def animation() -> bytes:
    return saved(picture(70), "GIF", save_all=True, append_images=[picture(80)])


@pytest.mark.parametrize(
    ("name", "content", "kind", "note"),
    [
        ("9.png", saved(picture(70, 31), "PNG"), "tiny", "31 x 31"),
        ("9.png", saved(picture(70).resize((300, 64)), "PNG"), "aspect", "300 x 64"),
        ("9.jpg", saved(picture(70).convert("CMYK"), "JPEG"), "cmyk", "CMYK"),
        ("9.png", saved(Image.fromarray(np.asarray(picture(70).convert("L"), np.uint16) * 257), "PNG"), "deep", "I;16"),
        ("9.png", saved(picture(70).convert("RGBA"), "PNG"), "alpha", "RGBA"),
        ("9.tif", saved(picture(70).convert("YCbCr"), "TIFF"), "other-mode", "YCbCr"),
        ("9.gif", animation(), "frames", "2 frames"),
        ("9.jpg", exif(picture(70), 6), "rotated", "code 6"),
        ("9.jpg", saved(picture(70), "PNG"), "suffix", "is PNG"),
        ("9.psd", b"", "passed-over", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_odd_images(photos: Path, name: str, content: bytes, kind: str, note: str) -> None:
    for split in ("train", "val"):
        (photos / split / "dog" / "2.png").unlink()
    (photos / "train" / "cat" / name).write_bytes(content)
    found = only(diagnose(photos), kind, "warning")
    assert cases(found, photos) == [(f"train/cat/{name}",)]
    assert found.entries[0].note == note


def test_giants(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vertebra.data.doctor.GIANT", 99 * 100)
    picture(70, 100).save(photos / "train" / "cat" / "9.png")
    assert only(diagnose(photos), "giant", "warning").entries[0].note == "100 x 100"


def test_what_a_header_says(shared_data: Path) -> None:
    header = inspect(exif(picture(3).resize((50, 40)), 6))
    assert (header.format, header.mode, header.width, header.height) == ("JPEG", "RGB", 50, 40)
    assert (header.orientation, header.frames, header.deep, header.alpha) == (6, 1, False, False)
    colours = inspect((shared_data / "odd-images" / "ps1n2c16.png").read_bytes())  # Pillow calls it RGB
    assert (colours.mode, colours.deep) == ("RGB", True)
    with pytest.raises(VertebraError, match="not an image, but text"):
        inspect(b"no image")


def test_near_copies_are_found_among_many_and_no_others() -> None:
    numbers = np.random.default_rng(5)
    hashes = numbers.integers(0, 2**64, 20_000, dtype=np.uint64)
    thumbs = numbers.integers(0, 256, (20_000, 16, 16, 3), dtype=np.uint8)
    for copy, bits in ((11_000, 1), (12_000, 3), (13_000, 5)):
        hashes[copy], thumbs[copy] = hashes[copy - 10_000], thumbs[copy - 10_000]
        for bit in numbers.choice(64, bits, replace=False):
            hashes[copy] ^= np.uint64(1) << np.uint64(bit)
    hashes[14_000] = hashes[4_000]  # the same hash by chance: the thumbnails differ
    thumbs[15_000] = thumbs[5_000]  # the same thumbnail, another hash
    contrast = np.full(20_000, 50, np.float32)
    assert alike(hashes, thumbs, contrast) == [(1_000, 11_000), (2_000, 12_000), (3_000, 13_000)]
    contrast[2_000] = 1
    assert len(alike(hashes, thumbs, contrast)) == 2


def test_the_same_shape_in_another_colour_is_no_copy() -> None:
    shape = np.random.default_rng(5).integers(0, 256, (16, 16), dtype=np.uint8)
    red, blue, none = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8), np.zeros(2, np.uint64)
    red[..., 0] = blue[..., 2] = shape
    contrast = np.full(2, 50, np.float32)
    assert alike(none, np.stack([red, red]), contrast) == [(0, 1)]
    assert alike(none, np.stack([red, blue]), contrast) == []


def test_thousands_of_frames_of_one_film_take_no_square_of_their_number() -> None:
    numbers = np.random.default_rng(5)
    flips = np.uint64(1) << numbers.integers(0, 16, 3_000).astype(np.uint64)
    hashes = np.bitwise_xor.accumulate(flips)
    thumbs = np.repeat(numbers.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8), 3_000, 0)
    pairs = alike(hashes, thumbs, np.full(3_000, 50, np.float32))
    assert len(pairs) < 30 * 3_000
    assert len(pairs) < 3_000 * WINDOW
    assert [len(group) for group in groups(pairs)] == [3_000]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, args)], prog_name="vertebra")


def test_the_command_says_which_splits_of_the_hub_it_does_not_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"train": ([0, 1, 2], IMAGES), "extra": ([0], IMAGES[:1])})
    said = run("hf:o/pets", "--workers", "0")
    assert said.stderr.splitlines()[0] == (
        "vertebra: hf:o/pets: split 'extra' left out; only train, val and test are read"
    )
    assert "3 train images" in said.stdout


def test_the_command_names_what_is_wrong_and_what_to_do(photos: Path) -> None:
    done = run(photos)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split() == ["data", "12", "train,", "6", "val", "images,", "2", "classes"]
    assert done.stdout.splitlines()[-1] == f"next       nothing found: vertebra train {photos} --model NAME"
    for i in range(5):
        shutil.copy(photos / "train" / "cat" / f"{i}.png", photos / "train" / "cat" / f"copy{i}.png")
    warned = run(photos)
    assert warned.exit_code == 0
    assert "and 2 more" in warned.stdout
    assert "copy4.png" not in warned.stdout
    assert "warning\tduplicate\ttrain/cat/4.png = train/cat/copy4.png\n" in run(photos, "--all").stdout
    (photos / "val" / "dog" / "bad\nname.png").write_bytes(b"")
    failed = run(photos)
    assert failed.exit_code == 1
    assert "val/dog/bad\\nname.png  (is empty (0 bytes))" in failed.stdout
    assert "mend the errors first (1 unreadable)" in failed.stdout.splitlines()[-1]


@pytest.fixture
def several(photos: Path) -> Path:
    """The same with any number of classes a photo: all have both but for one of one, and one of none."""
    files = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    lines = [f"{file},{file.split('/')[0]},cat|dog" for file in files]
    lines[0], lines[1] = f"{files[0]},train,", f"{files[1]},train,dog"
    table = photos / "labels.csv"
    table.write_text("\n".join(["path,split,label", *lines]) + "\n")
    return table


def test_several_labels_a_photo(several: Path) -> None:
    cat = several.parent / "train" / "cat"
    done = run(several, "--label-separator", "|")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "data       12 train, 6 val images, 2 classes"
    assert done.stdout.splitlines()[-1].endswith("--label-separator '|' --set loss.kind=bce --model NAME")
    shutil.copy(cat / "2.png", cat / "1.png")  # dog, and both
    shutil.copy(cat / "4.png", cat / "3.png")  # both
    found = run(several, "--label-separator=|", "--all")
    assert found.exit_code == 1
    assert found.stdout.splitlines() == [
        f"error\tconflict\t{cat}/1.png = {cat}/2.png  (dog, cat|dog)",
        f"warning\tduplicate\t{cat}/3.png = {cat}/4.png",
    ]
    assert run(several, "--label-separator=|").stdout.splitlines()[-1].endswith("--label-separator '|' --all")


def test_without_the_separator_it_says_how_to_give_it(several: Path) -> None:
    for text in (several.read_text(), several.read_text().replace(",\n", ",cat\n").replace("|dog\n", "\n", 5)):
        several.write_text(text)
        done = run(several)
        assert done.exit_code == 1
        assert len(done.stderr.splitlines()) == 1
        assert "on a command line --label-separator '|'" in done.stderr


def test_columns_and_lists_of_classes(photos: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    files = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    (photos / "t.csv").write_text("\n".join(["path,cat,dog,age", *(f"{f},1,{i % 2},{i}" for i, f in enumerate(files))]))
    assert "--label-column a --label-column b" in run(photos / "t.csv").stderr
    done = run(photos / "t.csv", "--label-column=cat", "--label-column=dog", "--json")
    record = json.loads(done.stdout)
    assert (record["splits"], record["counts"]) == ({"train": 18}, {"train": {"cat": 18, "dog": 9}})
    said = run(photos / "t.csv", "--label-column=cat", "--label-column=dog").stdout.splitlines()[-1]
    assert "--label-column cat --label-column dog --set loss.kind=bce" in said
    lists = [["cat", "dog"], ["cat"], [], *([["dog"]] * (len(files) - 3))]
    parquet.write_table(pa.table({"path": files, "label": lists}), photos / "t.parquet")
    assert diagnose(photos / "t.parquet").counts == {"train": {"cat": 2, "dog": 16}}


def test_json_is_one_object_with_every_case(photos: Path) -> None:
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "val" / "cat" / "9.png")
    done = run(photos, "--json")
    assert (done.exit_code, done.stderr) == (1, "")
    record = json.loads(done.stdout)
    assert (record["errors"], record["warnings"], record["images"]) == (1, 0, 19)
    (finding,) = record["findings"]
    assert (finding["kind"], finding["level"], finding["count"]) == ("leak", "error", 1)
    assert finding["entries"][0]["files"] == [str(photos / "train/cat/0.png"), str(photos / "val/cat/9.png")]


def test_data_that_is_none_is_one_line(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "holds no images; give a folder of class folders"), (tmp_path / "none", "no data at")):
        done = run(path)
        assert done.exit_code == 1
        assert len(done.stderr.splitlines()) == 1
        assert why in done.stderr
