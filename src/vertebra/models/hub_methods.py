"""The names by which models of this field are saved, shared and loaded; `hub.publish` does the work.

By name: the hub lies below this room, and none of it is needed until somebody asks.
"""

from importlib import import_module
from pathlib import Path
from typing import Any


class HubMethods:
    """What every model has from it."""

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json`, `model.safetensors` and a card, `README.md`: vertebra, timm (`local-dir:`) and
        transformers read the folder.
        """
        return _publish().save_pretrained(self, folder)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload the same to the hub's `owner/name`; its address. `options`: `commit_message`, `private`, `token`,
        `revision`, `create_pr`.
        """
        return _publish().push_to_hub(self, repo, **options)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Any:
        """A model with its weights, from such a folder, a hub repository or a name; `revision` and the options of
        `load_model`. Raises `TypeError` where it is none of this class.
        """
        model = _publish().from_pretrained(source, **options)
        if not isinstance(model, cls):
            raise TypeError(
                f"{source} is a {type(model).__name__}, not a {cls.__name__}; {type(model).__name__}.from_pretrained"
            )
        return model


def _publish() -> Any:
    return import_module("vertebra.hub.publish")
