"""Formats by name: what each writes, which program loads it, and what its card says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedit.errors import ConfigError
from fedit.export.adapters import write_mlx, write_peft, write_vllm
from fedit.export.ggufs import ADAPTER, MODEL, TYPES, write_gguf_adapter, write_gguf_model
from fedit.export.merged import DTYPES, tokenizer_of, write_model
from fedit.export.ollama import write_ollama
from fedit.export.subject import Subject

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How weights are stored, and whether a format that has both leaves the merged model out."""

    dtype: str = "auto"
    adapter_only: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    write:    (models, empty folder, options, say) -> facts for ``export.json``.
    library, relation, how: of the card (`fedit.export.card.write_card`).
    dtypes:   names that ``Options.dtype`` may have beside "auto".
    several:  whether it holds several models; others hold one.
    """

    write: Callable[[Sequence[Subject], Path, Options, Say], dict[str, object]]
    library: str
    relation: str
    how: str
    dtypes: Sequence[str] = ()
    several: bool = False

    def check(self, name: str, options: Options) -> None:
        """Raise ``ConfigError`` if an option is none of this format's."""
        if options.dtype not in ("auto", *self.dtypes):
            known = f"expected auto, {', '.join(self.dtypes)}" if self.dtypes else "it always stores float32"
            raise ConfigError(f"--dtype {options.dtype} is none of format '{name}'; {known}.")
        if options.adapter_only and name != "gguf":
            raise ConfigError(f"--adapter-only belongs to --to gguf; format '{name}' is one or the other.")


def _peft(subjects: Sequence[Subject], folder: Path, options: Options, say: Say) -> dict[str, object]:
    write_peft(subjects[0], folder)
    return {}


def _merged(subjects: Sequence[Subject], folder: Path, options: Options, say: Say) -> dict[str, object]:
    return {"dtype": write_model(subjects[0], folder, dtype=options.dtype, say=say)}


def _gguf(subjects: Sequence[Subject], folder: Path, options: Options, say: Say) -> dict[str, object]:
    facts: dict[str, object] = {}
    if subjects[0].kind == "lora":
        write_gguf_adapter(subjects[0], folder / ADAPTER)
        tokenizer, _ = tokenizer_of(subjects[0])
        (folder / "chat_template.jinja").write_text(str(tokenizer.chat_template), encoding="utf-8")
    elif options.adapter_only:
        raise ConfigError(f"{subjects[0].kind} has no GGUF adapter; leave out --adapter-only.")
    if not options.adapter_only:
        facts["dtype"] = write_gguf_model(subjects[0], folder / MODEL, dtype=options.dtype, say=say)
    return facts


def _ollama(subjects: Sequence[Subject], folder: Path, options: Options, say: Say) -> dict[str, object]:
    return {"dtype": write_ollama(subjects[0], folder, dtype=options.dtype, say=say)}


def _vllm(subjects: Sequence[Subject], folder: Path, options: Options, say: Say) -> dict[str, object]:
    return write_vllm(subjects, folder)


def _mlx(subjects: Sequence[Subject], folder: Path, options: Options, say: Say) -> dict[str, object]:
    write_mlx(subjects[0], folder)
    return {}


_PEFT_HOW = """
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), folder)
tokenizer = AutoTokenizer.from_pretrained(folder)  # its chat template is that of the training
```
"""
_MERGED_HOW = """
```python
from transformers import pipeline

chat = pipeline("text-generation", "path/to/this/folder")
print(chat([{"role": "user", "content": "Name a colour."}])[0]["generated_text"][-1]["content"])
```
"""
_GGUF_HOW = """
`model.gguf`, where it is here, is the whole model with its chat template; `adapter.gguf` is the adapter alone, for
a GGUF file of {base}.

```sh
llama-server --model model.gguf --jinja
llama-server --model BASE.gguf --lora adapter.gguf --jinja --chat-template-file chat_template.jinja
```
"""
_OLLAMA_HOW = """
```sh
ollama create tuned -f Modelfile
ollama run tuned
```
"""
_VLLM_HOW = """
`serve.sh` serves {base} with every folder of `adapters` by its name; `BASE=path/to/base ./serve.sh` takes
another copy of the base model.

```sh
pip install vllm    # in an environment of its own
sh serve.sh
```
"""
_MLX_HOW = """
```sh
mlx_lm.generate --model {base} --adapter-path . --prompt "Name a colour."
mlx_lm.server --model {base} --adapter-path . --chat-template "$(cat chat_template.jinja)"
```
"""

FORMATS: Mapping[str, Format] = {
    "peft": Format(_peft, "peft", "adapter", _PEFT_HOW),
    "merged": Format(_merged, "transformers", "finetune", _MERGED_HOW, tuple(DTYPES)),
    "gguf": Format(_gguf, "gguf", "quantized", _GGUF_HOW, tuple(TYPES)),
    "ollama": Format(_ollama, "gguf", "quantized", _OLLAMA_HOW, tuple(TYPES)),
    "vllm": Format(_vllm, "vllm", "adapter", _VLLM_HOW, several=True),
    "mlx": Format(_mlx, "mlx", "adapter", _MLX_HOW),
}
