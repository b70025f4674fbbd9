"""What code written for timm does with model names beside asking whether they exist."""

import re

from vertebra.spec import VertebraError

SOURCES = ("hf-hub", "local-dir")


def parse_model_name(model_name: str) -> tuple[str | None, str]:
    """`hf-hub:owner/name` -> ('hf-hub', 'owner/name'), `local-dir:PATH`; (None, name) for a name of the registry."""
    source, colon, name = model_name.replace("hf_hub:", "hf-hub:", 1).partition(":")
    if colon and source in SOURCES:
        return source, name
    if re.search(r"[:/\\]", model_name):
        raise VertebraError(
            f"{model_name!r} names no known source: say hf-hub:{model_name} for a repository of the hub, "
            f"local-dir:{model_name} for a folder"
        )
    return None, model_name


def safe_model_name(model_name: str, remove_source: bool = True) -> str:
    """A name that files can have: letters, digits and underscores."""
    name = parse_model_name(model_name)[1] if remove_source else model_name
    return re.sub(r"\W", "_", name).rstrip("_")
