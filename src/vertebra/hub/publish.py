"""A model as a repository of the hub: config.json, weights, and a card written from their record."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vertebra.hub.factory import describe, load_model
from vertebra.hub.pretrained import own_record
from vertebra.hub.resolve import HUB_SCHEMES, is_name
from vertebra.hub.save import save_model
from vertebra.hub.state import read_file
from vertebra.models.backbone import Backbone
from vertebra.spec import VertebraError, WeightsError, WeightsUnavailableError, printable

_METRICS = {"val_top1": "accuracy", "val_top5": "top-5 accuracy", "val_macro_f1": "macro F1", "val_map": "mAP"}


def save_pretrained(model: Backbone, folder: str | Path) -> Path:
    """`config.json`, `model.safetensors` and `README.md` in `folder`, which `load_model`, timm (`local-dir:`) and
    transformers read. Files of these names that are there are replaced. Raises `VertebraError`.
    """
    return _save(model, Path(folder), None)


def push_to_hub(
    model: Backbone,
    repo: str,
    *,
    commit_message: str = "Add model",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload what `save_pretrained` writes to the hub's `owner/name`, which is made where it is not there; its address.

    `token`: default, the one that `hf auth login` keeps. Raises `WeightsUnavailableError` where the hub refuses.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    with tempfile.TemporaryDirectory() as folder:
        try:
            url = api.create_repo(repo, private=private, exist_ok=True)
            _save(model, Path(folder), url.repo_id)
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except (HfHubHTTPError, OSError, ValueError) as error:
            if isinstance(error, VertebraError):
                raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise WeightsUnavailableError(
                f"cannot upload to {repo}: {reason}", "log in with `hf auth login`, or give token="
            ) from error
    return str(url)


def from_pretrained(source: str | Path, *, revision: str | None = None, **options: Any) -> Backbone:
    """A model with its weights, in evaluation mode as callers of this name expect: of a folder that `save_pretrained`
    wrote, a hub repository, or a registered name.

    `options` are those of `load_model`. Raises `VertebraError`.
    """
    name = str(source)
    hub = "/" in name and not Path(name).expanduser().exists() and not is_name(name)
    if revision is not None and not hub:
        raise VertebraError(f"revision={revision!r}: {name} is no hub repository, and has none")
    if hub and not name.startswith(HUB_SCHEMES):
        name = f"hf-hub:{name}"
    model: Backbone = load_model(f"{name}@{revision}" if revision else name, **options)
    return model.eval()


def _save(model: Backbone, folder: Path, repo: str | None) -> Path:
    training = _training(model)
    names = model.pretrained_cfg.get("label_names")
    own: dict[str, Any] = {"label_names": list(names)} if names else {}
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file; name a folder")
    save_model(model, folder / "model.safetensors", extra={**own, **({"training": training} if training else {})})
    record = json.dumps({**describe(model), **own}, indent=1, ensure_ascii=False)
    try:
        (folder / "config.json").write_text(record + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(model, training, repo or "owner/name"), encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"cannot write {error.filename}: {error.strerror}") from error
    return folder


def _training(model: Backbone) -> Mapping[str, Any]:
    """What the file that the model was loaded from says of its training; nothing where its weights are others now."""
    file = model.pretrained_cfg.get("file")
    if not file or Path(file).suffix != ".safetensors" or not Path(file).is_file():
        return {}
    told = own_record(Path(file)).get("training")
    if not isinstance(told, Mapping):
        return {}
    then, now = read_file(file)[0], model.state_dict()
    same = then.keys() == now.keys() and all(torch.equal(then[key].to(now[key]), now[key]) for key in now)
    return told if same else {}


def card(model: Backbone, training: Mapping[str, Any], repo: str) -> str:
    """The repository's README.md."""
    cfg = model.pretrained_cfg
    arch: str = cfg["architecture"]
    names = cfg.get("label_names") or ()
    licence = str(cfg.get("license") or "")
    told = [f"license: {licence}"] if re.fullmatch(r"[\w.+-]+", licence) else []
    head = ["---", "tags:", "- image-classification", "- timm", "- vertebra", "pipeline_tag: image-classification"]
    head += ["library_name: timm", *told, "---"]
    prep = " x ".join(str(side) for side in cfg["input_size"])
    facts = [
        ("architecture", arch),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("classes", f"{model.num_classes}" + (", each answered by itself" if cfg.get("multi_label") else "")),
        ("input", f"{prep}, {cfg['interpolation']}, {cfg['crop_mode']} crop of {cfg['crop_pct']:g}"),
        ("licence", licence or "none stated"),
        ("paper", ", ".join(_several(cfg.get("paper_ids")))),
        ("original weights", str(cfg.get("origin_url") or "")),
        *_trained(training),
    ]
    table = [f"| {name} | {_cell(value)} |" for name, value in facts if value]
    use = _USE.replace("REPO", repo)
    classes = ["", "## Classes", "", ", ".join(_cell(str(name)) for name in names)] if names else []
    return (
        "\n".join([*head, "", f"# {_cell(repo.rpartition('/')[2])}", "", "| | |", "|---|---|", *table, use, *classes])
        + "\n"
    )


def _several(value: Any) -> list[str]:
    return [] if not value else [str(value)] if isinstance(value, str) else [str(one) for one in value]


def _trained(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows about data and metrics."""
    config, data, epoch = (training.get(key) for key in ("config", "data", "epoch"))
    rows: list[tuple[str, str]] = []
    if isinstance(config, Mapping) and isinstance(config.get("data"), Mapping):
        rows.append(("trained on", Path(str(config["data"].get("source"))).name))
        rows.append(("recipe", str(config.get("recipe") or "")))
    if isinstance(data, Mapping):
        counts = (
            f"{part['images']} {name}" for name, part in data.items() if isinstance(part, Mapping) and "images" in part
        )
        rows.append(("images", ", ".join(counts)))
    if isinstance(epoch, Mapping):
        found = ((word, epoch.get(key)) for key, word in _METRICS.items())
        rows += [(f"{word} (validation)", f"{value:.2%}") for word, value in found if isinstance(value, float)]
    return rows


def _cell(text: str) -> str:
    """As it may stand in a table of Markdown, whoever chose it."""
    return "".join(f"\\{char}" if char in "\\`|<>[]*_#" else char for char in printable(text))


_USE = """
## Use

```python
import vertebra

predict = vertebra.Predictor("hf-hub:REPO")
print(predict("photo.jpg").labels[0])
```

With timm:

```python
import timm

model = timm.create_model("hf-hub:REPO", pretrained=True).eval()
```

With transformers:

```python
from transformers import pipeline

print(pipeline("image-classification", "REPO")("photo.jpg"))
```"""
