"""Prompt templates by name or file."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedit.data.chat import JinjaTemplate
from fedit.data.rendering import Rendered, Template
from fedit.data.rounds import ROUND_TEMPLATES, from_json
from fedit.errors import ConfigError, ModelError, UnknownName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendered", "Template", "get_template"]

_JINJA_SUFFIXES = (".j2", ".jinja", ".jinja2")


def get_template(name_or_path: str, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """Return the template of that name, or the one in that file.

    Args:
        name_or_path: "auto" (the tokenizer's chat template if it has one, else "alpaca"), "chat", a name
            of `ROUND_TEMPLATES`, a .json file in Shepherd's layout or a .j2 or .jinja file.
        tokenizer: gives the chat template and the end-of-sequence text.

    Raises:
        UnknownName: no template has that name.
        ConfigError: the template cannot be read.
        ModelError: the tokenizer has no end-of-sequence token.
    """
    if not isinstance(tokenizer.eos_token, str):
        raise ModelError("the tokenizer has no end-of-sequence token, so no answer could end; set its eos_token.")
    if name_or_path == "auto":
        name_or_path = "chat" if tokenizer.chat_template else "alpaca"
    if name_or_path == "chat":
        if not tokenizer.chat_template:
            raise ConfigError("template 'chat': the tokenizer has no chat template; use 'alpaca' or a file.")
        return JinjaTemplate.from_chat_template(tokenizer)
    if name_or_path in ROUND_TEMPLATES:
        return ROUND_TEMPLATES[name_or_path](tokenizer.eos_token)
    path = Path(name_or_path).expanduser()
    if path.suffix in _JINJA_SUFFIXES:
        return JinjaTemplate.from_file(path, _read(path), tokenizer)
    if path.suffix == ".json":
        return from_json(_read(path), tokenizer.eos_token, path.name, str(path))
    known = ("auto", "chat", *ROUND_TEMPLATES, "FILE.json", "FILE.jinja")
    raise UnknownName("template", name_or_path, known)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no template file {path}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the template {path}: {error}") from error
