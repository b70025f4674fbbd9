"""The command as a shell sees it: what it prints where, and how it ends."""

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import vertebra
from vertebra.cli import app
from vertebra.data.eval_reader import TOLERANCE
from vertebra.hub.registry import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
DEIT = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of 7 classes, random, in a file that says what it is."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    vertebra.save_model(vertebra.create_model("dla46_c", num_classes=7), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos (one a folder deeper), one broken one, a text file, and what a Mac leaves behind."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (80, 60), "red").save(folder / "b red.JPG", "JPEG")
    Image.new("RGB", (80, 60), "blue").save(folder / "more" / "a.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no photo")
    (folder / "._b red.JPG").write_bytes(b"no photo")
    return folder


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], prog_name="vertebra")


def run_process(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m vertebra` on its own, as a machine without a network would run it."""
    base = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "vertebra", *map(str, args)]
    return subprocess.run(command, env=base | env, capture_output=True, text=True, timeout=300, check=False)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def complaint(result: Result) -> str:
    """The one line on stderr."""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("vertebra: ")
    return result.stderr


# --- classify


def test_zips_and_standard_input(photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(photos / "more" / "a.png", "in/a.png")
        archive.write(photos / "broken.png", "broken.png")
        archive.write(photos / "notes.txt", "notes.txt")
    named = ("--model", weights, "--top", "1", "--json")
    done = run("classify", tmp_path / "photos.zip", photos / "more" / "a.png", *named)
    assert done.exit_code == 1
    broken, inside, outside = lines(done.stdout)  # in the order of their names
    assert inside["path"] == f"{tmp_path}/photos.zip!in/a.png"
    assert inside["predictions"] == outside["predictions"]
    assert broken["path"] == f"{tmp_path}/photos.zip!broken.png"
    assert "not an image" in str(broken["error"])
    piped = CliRunner().invoke(
        app, ["classify", "-", *map(str, named)], input=(photos / "more" / "a.png").read_bytes(), prog_name="vertebra"
    )
    (answer,) = lines(piped.stdout)
    assert answer == outside | {"path": "-"}
    for content, message in ((b"", "standard input is empty"), (b"text", "-: ")):
        failed = CliRunner().invoke(app, ["classify", "-", *map(str, named)], input=content, prog_name="vertebra")
        assert failed.exit_code == 1
        assert message in failed.stderr
        assert "<bytes>" not in failed.stderr


def test_an_address_that_leads_nowhere_is_named(photos: Path, weights: Path) -> None:
    address = "http://127.0.0.1:1/a.png"
    done = run("classify", address, photos / "more" / "a.png", "--model", weights, "--json")
    assert done.exit_code == 1
    assert f"vertebra: {address}: cannot be fetched: " in done.stderr
    assert [line["path"] for line in lines(done.stdout)] == [address, str(photos / "more" / "a.png")]


def test_the_bound_of_pixels_goes_by_its_options_name(photos: Path, weights: Path) -> None:
    done = run("classify", photos / "more" / "a.png", "--model", weights, "--max-pixels", "100")
    assert "too many pixels for --max-pixels 100 (" in complaint(done)
    assert "raise --max-pixels" in complaint(done)


def test_the_dog_is_a_samoyed(shared_data: Path) -> None:
    file = shared_data / "weights" / f"{DEIT}.safetensors"
    named = ("classify", shared_data / "photos" / "dog.jpg", "--model", DEIT, "--weights", file)
    done = run_process(*named, "--exact")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == str(shared_data / "photos" / "dog.jpg")
    assert done.stdout.splitlines()[1].split()[:2] == ["77.5%", "Samoyed"]
    assert len(done.stdout.splitlines()) == 1 + 5 + 1
    assert "\x1b" not in done.stdout
    quick = json.loads(run(*named, "--json").stdout)["predictions"][0]
    assert quick["label"] == "Samoyed"
    assert quick["probability"] == pytest.approx(0.775, abs=TOLERANCE)


def test_weights_that_cannot_be_had_are_one_line_that_says_how_to_go_on(photos: Path, tmp_path: Path) -> None:
    # A model that is named: without a name, tests/hub/test_own_weights.py shows what answers in its place.
    done = run_process("classify", photos / "b red.JPG", "--model", "dla102", HF_HOME=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    for part in ("dla102.in1k", "--weights FILE", "--model DIR", "HF_HOME"):
        assert part in done.stderr


def test_json_is_one_line_a_photo_and_names_what_failed(photos: Path, weights: Path) -> None:
    result = run("classify", photos, photos / "absent.jpg", "--model", weights, "--json", "--top", "2")
    assert result.exit_code == 1
    answers = {str(line["path"]): line for line in lines(result.stdout)}
    assert list(answers) == [str(photos / name) for name in ("absent.jpg", "b red.JPG", "broken.png", "more/a.png")]
    good = answers[str(photos / "b red.JPG")]["predictions"]
    assert isinstance(good, list)
    assert [set(p) for p in good] == [{"label", "index", "probability"}] * 2
    assert good[0]["probability"] >= good[1]["probability"]
    assert good[0]["label"] == f"class {good[0]['index']}"
    assert answers[str(photos / "absent.jpg")]["error"] == "no such file"
    assert str(answers[str(photos / "broken.png")]["error"]).startswith("not an image")
    absent, broken, summary = result.stderr.splitlines()
    assert absent == f"vertebra: {photos / 'absent.jpg'}: no such file"
    assert broken.startswith(f"vertebra: {photos / 'broken.png'}: not an image")
    assert summary == "vertebra: 2 of 4 inputs could not be classified"


def test_names_are_answered_in_their_order_and_once(photos: Path, weights: Path) -> None:
    deep, red = photos / "more" / "a.png", photos / "b red.JPG"
    pattern = photos / "**" / "*[.]png"
    (photos / "broken.png").unlink()
    result = run("classify", deep, red, f"{photos}/more/../b red.JPG", pattern, photos, "--model", weights, "--json")
    assert result.exit_code == 0
    assert [line["path"] for line in lines(result.stdout)] == [str(deep), str(red)]


@pytest.mark.parametrize("named", ["none-*.jpg", "empty", "absent.jpg"])
def test_names_without_photos_are_told_before_any_model_is_loaded(named: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("classify", tmp_path / named, "--model", tmp_path / "absent.safetensors")
    assert result.exit_code == 1
    assert result.stdout == ""
    reason = {"none-*.jpg": "no file matches", "empty": "no images in this folder", "absent.jpg": "no such file"}
    assert f"{tmp_path / named}: {reason[named]}" in complaint(result)


def test_weights_alone_say_which_model_they_are_for(photos: Path, weights: Path) -> None:
    result = run("classify", photos / "b red.JPG", "--weights", weights)
    assert result.exit_code == 0
    assert "class " in result.stdout


def test_labels_come_from_a_file(photos: Path, weights: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"kind {i}" for i in range(7)))
    result = run("classify", photos / "b red.JPG", "--model", weights, "--labels", names, "--top", "9")
    assert result.exit_code == 0
    printed = [" ".join(line.split()[1:3]) for line in result.stdout.splitlines()[1:8]]
    assert sorted(printed) == [f"kind {i}" for i in range(7)]
    names.write_text("one\ntwo")
    result = run("classify", photos / "b red.JPG", "--model", weights, "--labels", names)
    assert result.exit_code == 1
    assert "2 labels for a model of 7 classes" in complaint(result)


def test_max_pixels_refuses_larger_photos(photos: Path, weights: Path) -> None:
    result = run("classify", photos / "b red.JPG", "--model", weights, "--max-pixels", "100")
    assert result.exit_code == 1
    assert "--max-pixels 100 (" in complaint(result)


def test_file_names_are_printed_whole_and_safely(photos: Path, weights: Path) -> None:
    long = photos / ("a long name " * 15 + ".png")
    odd = photos / os.fsdecode(b"new\nline \xff \x1b[31m.png")
    for path in (long, odd):
        (photos / "more" / "a.png").rename(path)
        result = run("classify", path, "--model", weights, "--top", "1")
        assert result.exit_code == 0
        wanted = str(path) if path == long else f"{photos}/new\\nline \\xff \\x1b[31m.png"
        assert result.stdout.splitlines()[0] == wanted
        path.rename(photos / "more" / "a.png")


@pytest.mark.parametrize("width", [24, 40, 200])
def test_tables_fit_the_terminal(width: int) -> None:
    from rich.console import Console

    from vertebra.engine.predict import Prediction

    command = importlib.import_module("vertebra.cli.classify")
    console = Console(width=width, force_terminal=True, color_system=None, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    prediction = Prediction(("black-and-gold garden spider, and more of it", "cat"), (1, 2), (0.9, 0.1))
    console.print(command._table(prediction, width))
    console.file.close()
    printed = console.export_text().splitlines()
    assert len(printed) == 2
    assert all(len(line.rstrip()) <= width for line in printed)
    assert "90.0%" in printed[0]


# --- models


def test_models_lists_every_architecture() -> None:
    result = run("models")
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["model", "params", "GMACs", "pixels", "top-1", "licence"]
    assert sorted(row.split()[0] for row in rows) == sorted(REGISTRY.archs)
    assert all(row == row.rstrip() for row in rows)


def test_models_by_pattern_as_json() -> None:
    by_part, by_pattern = run("models", "dla60", "--json"), run("models", "dla60*", "--json")
    assert by_part.stdout == by_pattern.stdout
    first = lines(by_part.stdout)[0]
    assert first["name"] == "dla60"
    assert first["params"] == 22_036_632
    assert first["top1"] == 77.036
    assert first["weights"] == ["dla60.in1k"]


def test_pretrained_models_have_a_line_for_every_checkpoint() -> None:
    names = [line["name"] for line in lines(run("models", "--pretrained", "--json").stdout)]
    wanted = [name for arch in REGISTRY.archs for name, row in REGISTRY.weights(arch).items() if row.available]
    assert sorted(map(str, names)) == sorted(wanted)


@pytest.mark.parametrize(
    ("order", "field", "falls"), [("top1", "top1", True), ("params", "params", False), ("macs", "gmacs", False)]
)
def test_models_are_sorted(order: str, field: str, falls: bool) -> None:
    values = [float(str(line[field])) for line in lines(run("models", "dla", "--sort", order, "--json").stdout)]
    assert len(values) == 12
    assert values == sorted(values, reverse=falls)


def test_no_model_of_that_name() -> None:
    result = run("models", "resnext*")
    assert result.exit_code == 1
    assert "no model matches 'resnext*'" in complaint(result)


# --- info


def test_info_shows_all_that_is_known() -> None:
    result = run("info", "dla60")
    assert result.exit_code == 0
    for part in (
        "22,036,632",
        "4,256,251,880",
        "level5",
        "dla60.in1k",
        "bsd-3-clause",
        "arXiv:1707.06484",
        "120 epochs",
    ):
        assert part in result.stdout
    assert "dropout 0.2" in result.stdout
    assert "top-1 77.04 %, top-5 93.32 % at 224 px" in result.stdout


def test_info_as_json_names_stages_and_checkpoints() -> None:
    record = json.loads(run("info", f"{DEIT}.fb_in1k", "--json").stdout)
    assert record["architecture"] == DEIT
    assert record["input_size"] == [3, 224, 224]
    assert [stage["default"] for stage in record["stages"]] == [False] * 9 + [True] * 3
    assert list(record["checkpoints"]) == [f"{DEIT}.fb_in1k"]
    assert record["checkpoints"][f"{DEIT}.fb_in1k"]["preprocess"]["crop_pct"] == 0.9


@pytest.mark.parametrize("arch", REGISTRY.archs)
def test_info_works_for_every_architecture(arch: str) -> None:
    result = run("info", arch)
    assert result.exit_code == 0
    assert all(name in result.stdout for name in REGISTRY.weights(arch))


# --- how it ends


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("clasify", "x"), "Did you mean 'classify'?"),
        (("classify",), "Missing argument"),
        (("classify", "x", "--tpo", "3"), "--tpo"),
        (("classify", "x", "--top", "0"), "--top"),
        (("models", "--sort", "size"), "'params', 'macs'"),
        (("info", "dla66"), "did you mean 'dla60'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(args: tuple[str, ...], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in complaint(result)


def test_an_unknown_model_or_device_is_wrong_usage(photos: Path, weights: Path) -> None:
    result = run("classify", photos / "b red.JPG", "--model", "dla103")
    assert result.exit_code == 2
    assert "did you mean 'dla102'" in complaint(result)
    result = run("classify", photos / "b red.JPG", "--model", weights, "--device", "gpu")
    assert result.exit_code == 2
    assert "'gpu' cannot be used" in complaint(result)


def test_a_broken_checkpoint_is_one_line(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "dla60.safetensors"
    file.write_bytes(b"not a checkpoint")
    result = run("classify", photos / "b red.JPG", "--model", file)
    assert result.exit_code == 1
    assert str(file) in complaint(result)


@pytest.mark.parametrize("place", [0, 3])
def test_debug_shows_the_traceback_wherever_it_stands(place: int, photos: Path, tmp_path: Path) -> None:
    args = ["classify", str(photos / "b red.JPG"), f"--model={tmp_path / 'absent.pth'}"]
    args.insert(place, "--debug")
    result = run(*args)
    assert isinstance(result.exception, vertebra.WeightsError)


def test_an_interruption_is_one_line_and_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(named: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("vertebra.cli.classify"), "expand", interrupt)
    result = run("classify", "x")
    assert result.exit_code == 130
    assert complaint(result) == "vertebra: interrupted\n"


def test_what_torch_cannot_do_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(named: list[str]) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(importlib.import_module("vertebra.cli.classify"), "expand", fail)
    result = run("classify", "x")
    assert result.exit_code == 1
    assert "CUDA out of memory. Tried to allocate 2 GiB; --debug shows where" in complaint(result)


def test_a_reader_that_leaves_is_no_error() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "vertebra", "models", "--json"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # long before the process has anything to print
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 1


def test_help_and_version_need_no_torch() -> None:
    code = (
        "import sys\nfrom vertebra.cli import app\n"
        "for args in (['--help'], ['classify', '--help'], ['models', '--help'], ['info', '--help'], ['--version']):\n"
        "    try: app(args)\n"
        "    except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"vertebra {vertebra.__version__}\n")


COMMANDS = [(command.callback.__name__,) for command in app.registered_commands if command.callback]


@pytest.mark.parametrize("command", [(), *COMMANDS])
def test_every_help_shows_an_example(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "xample:" in result.stdout
    assert f"vertebra {command[0] if command else 'classify'}" in result.stdout.split("xample:")[1]


def test_classify_at_another_size_and_with_test_pool(shared_data: Path, tmp_path: Path) -> None:
    """A ViT's position embedding follows `--img-size`; `--test-pool` is DPN's and refused elsewhere."""
    weights = shared_data / "weights" / "deit_tiny_patch16_224.safetensors"
    photo = str(shared_data / "photos" / "dog.jpg")
    named = ["classify", photo, "--model", "deit_tiny_patch16_224", "--weights", str(weights), "--json"]
    answer = run(*named, "--img-size", "288")
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["predictions"][0]["label"] == "Samoyed"
    refused = run(*named, "--img-size", "225")
    assert refused.exit_code == 1
    assert "16x16 patches" in refused.stderr
    dpn = vertebra.save_model(vertebra.create_model("dpn68", num_classes=3), tmp_path / "dpn68.safetensors")
    plain, pooled = (
        json.loads(run("classify", photo, "--model", str(dpn), "--json", "--img-size", "288", *more).stdout)
        for more in ([], ["--test-pool"])
    )
    assert plain["predictions"] != pooled["predictions"]
    assert "test_pool" in run("classify", photo, "--model", str(weights), "--test-pool").stderr


def test_info_says_of_sizes_what_the_capabilities_say() -> None:
    """A transformer's checkpoint is for one size, and its architecture for any: not "fixed"."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "capabilities.md").read_text()
    assert "a transformer takes the one that `img_size=` named" in page
    line = next(line for line in run("info", "deit_tiny_patch16_224").stdout.splitlines() if line.startswith("input"))
    assert line.split(maxsplit=1)[1] == "3 x 224 x 224; img_size= makes one for another"
