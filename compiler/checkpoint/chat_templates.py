"""Chat templates of a Hugging Face directory, by name.

In: a directory. Out: Jinja sources; ``default`` is the one of a plain chat, ``tool_use`` and others have uses of
their own. Of several places the first that has any counts, as in transformers:

    chat_template.jinja, additional_chat_templates/NAME.jinja
    chat_template.json         an older place
    tokenizer_config.json      chat_template: a source, or a list of {"name": …, "template": …}
"""

from __future__ import annotations

from pathlib import Path

from llmc.compiler.base.errors import CheckpointError, first_line
from llmc.compiler.checkpoint.json_file import read_json_object

TEMPLATE_NAME = "chat_template.jinja"
FOLDER = "additional_chat_templates"
_KEY = "chat_template"


def template_files(directory: Path) -> tuple[Path, ...]:
    """The files that hold a template each, the default one first."""
    default = directory / TEMPLATE_NAME
    return (*((default,) if default.is_file() else ()), *sorted((directory / FOLDER).glob("*.jinja")))


def read_chat_templates(directory: Path) -> dict[str, str]:
    """The templates by name; empty where the model has none.

    Raises:
        CheckpointError: a file is damaged, or an entry is no template with a name.
    """
    if files := template_files(directory):
        return {"default" if path.name == TEMPLATE_NAME else path.stem: _read_source(path) for path in files}
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = directory / name
        stated = read_json_object(path).get(_KEY) if path.is_file() else None
        if stated is not None:
            return _named(stated, path)
    return {}


def _named(stated: object, path: Path) -> dict[str, str]:
    if isinstance(stated, str):
        return {"default": stated}
    entries = stated if isinstance(stated, list) else [stated]
    templates = {}
    for entry in entries:
        name, template = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str):
            raise CheckpointError(
                f"{_KEY} in {path} is neither a template nor a list of them with name and template; correct it."
            )
        templates[name] = template
    return templates


def _read_source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a template ({first_line(error)}); fetch it again."
        ) from error
