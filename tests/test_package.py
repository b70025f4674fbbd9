"""The package as its user meets it: its names, what importing costs, and that README and the issue's words run."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image

import vertebra
from tests.docs.test_docs import as_module
from vertebra.hub import fetch

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", vertebra.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(vertebra, name)
    assert name in dir(vertebra)
    if name != "__version__":
        assert (value.__doc__ or "").strip()


def test_rooms_that_the_documentation_names_are_there_at_once() -> None:
    code = "import vertebra; print(vertebra.export.load, vertebra.data.create_transform, vertebra.compat)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'vertebra' has no attribute 'create_modle'"):
        vertebra.create_modle  # noqa: B018
    with pytest.raises(AttributeError, match=r"module 'vertebra\.data' has no attribute 'nope'"):
        vertebra.data.nope  # noqa: B018


def imported_by(code: str) -> set[str]:
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_imports_no_library() -> None:
    heavy = {"torch", "torchvision", "numpy", "PIL", "huggingface_hub", "safetensors", "jaxtyping", "rich", "typer"}
    assert not imported_by("import vertebra; vertebra.__all__") & heavy


def test_importing_the_data_room_imports_no_torchvision() -> None:
    assert "torchvision" not in imported_by("import vertebra.data")
    assert not imported_by("import vertebra; vertebra.create_model") & {"torchvision", "huggingface_hub", "timm"}


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked_shapes: None) -> Path:
    """A folder of photos and the authors' file, and a hub that answers with freshly written weights."""
    work = tmp_path / "work"
    (work / "photos").mkdir(parents=True)
    picture = Image.effect_mandelbrot((320, 240), (-2, -1, 1, 1), 50).convert("RGB")
    for name in ("photo.jpg", "photos/one.jpg", "photos/two.jpg"):
        picture.save(work / name)
    for number in range(12):
        flower = work / "flowers" / ("rose" if number % 2 else "tulip") / f"{number}.jpg"
        flower.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (250 - number, 10 * number, 200 * (number % 2))).save(flower)
    torch.save(vertebra.create_model("dla34").state_dict(), work / "dla34-ba72cf86.pth")
    monkeypatch.chdir(work)

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert filename == "model.safetensors"
        path = tmp_path / repo_id.replace("/", "--") / filename
        if not path.is_file():
            vertebra.save_model(vertebra.create_model(repo_id.partition("/")[2]), path)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(fetch, "reachable", lambda _: True)
    return work


def test_the_promised_code_runs_unchanged(workplace: Path) -> None:
    import vertebra as timm

    img = Image.open("photo.jpg")
    m = timm.create_model("dla102.in1k", pretrained=True).eval()
    cfg = timm.data.resolve_model_data_config(m)
    assert timm.data.resolve_data_config({}, model=m) == cfg
    tf = timm.data.create_transform(**cfg, is_training=False)
    with torch.no_grad():
        p5, i5 = torch.topk(m(tf(img).unsqueeze(0)).softmax(dim=1) * 100, k=5)
    assert p5.shape == i5.shape == (1, 5)
    assert 0 < p5.sum() <= 100.001
    direct = timm.data.transforms_factory.create_transform(**cfg)
    parts = ("interpolation", "mean", "std")
    plain = timm.data.transforms_factory.transforms_imagenet_eval(img_size=224, **{key: cfg[key] for key in parts})
    assert torch.equal(direct(img), tf(img))
    assert torch.equal(plain(img), tf(img))
    maps = timm.create_model("dla102.in1k", features_only=True)(torch.randn(1, 3, 224, 224))
    assert isinstance(maps, list)
    assert [tuple(x.shape) for x in maps] == [
        (1, 32, 112, 112),
        (1, 128, 56, 56),
        (1, 256, 28, 28),
        (1, 512, 14, 14),
        (1, 1024, 7, 7),
    ]


def blocks(kind: str) -> str:
    return "\n".join(re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE))


def test_readme_python(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its Python blocks in their order; what a comment under a print says is what is printed."""
    readme = (ROOT / "README.md").read_text()
    module = workplace / "readme.py"
    module.write_text(as_module(readme))
    runpy.run_path(str(module), run_name="readme")
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r"^print\(.*\n# (.*)$", readme, re.MULTILINE)
    assert said
    assert [line for line in printed if line in said] == said


def commands() -> list[str]:
    """README's console lines that call vertebra, without their comments."""
    lines = re.findall(r"^\$ (vertebra .*)$", blocks("console"), re.MULTILINE)
    return [shlex.join(shlex.split(line, comments=True)) for line in lines]


def test_readme_shows_commands() -> None:
    assert {line.split()[1] for line in commands()} >= {"classify", "models", "info"}


@pytest.mark.parametrize("line", commands())
def test_readme_commands(
    line: str, workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vertebra.cli import main

    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code in (0, None), shown.err
    assert shown.out.strip()
