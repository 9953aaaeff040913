"""``fedit export``, ``push`` and ``serve``: a tuned model for other programs."""

import signal
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from fedit.cli.output import AsJson, console, notes, plain_table, print_json, working

if TYPE_CHECKING:
    from fedit.export.write import Exported

EPILOG = """Examples:

fedit export runs/first --to merged --out exports/first

fedit export runs/first --to gguf --out exports/gguf --dtype q8_0

fedit export runs/personal --to vllm --out exports/vllm

fedit export runs/personal --to peft --client client-3 --out exports/client-3"""

PUSH_EPILOG = """Examples:

fedit push runs/first --repo me/first --dry-run

fedit push runs/first --repo me/first-gguf --to gguf --private"""

SERVE_EPILOG = """Examples:

fedit serve runs/first

fedit serve exports/first --port 9000 --name tuned"""

PORT = 8000


class To(StrEnum):
    """Formats."""

    peft = "peft"
    merged = "merged"
    gguf = "gguf"
    ollama = "ollama"
    vllm = "vllm"
    mlx = "mlx"


class Stored(StrEnum):
    """How weights are stored."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    q8_0 = "q8_0"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run, an arm of one, or a PEFT LoRA folder.")]
DType = Annotated[
    Stored, typer.Option("--dtype", help="How merged weights are stored; auto: as the base's, fp16 in GGUF.")
]
Clients = Annotated[
    list[str] | None,
    typer.Option("--client", help="What this client runs instead of the federated model; repeatable; or all."),
]
AdapterOnly = Annotated[
    bool, typer.Option("--adapter-only", help="gguf: write the adapter without the merged model.")
]
Model = Annotated[str | None, typer.Option("--model", help="Base model, where it is not the one trained on.")]
Template = Annotated[str | None, typer.Option("--template", help="Prompt template, where not the training's.")]


def export(
    folder: Run,
    to: Annotated[To, typer.Option("--to", help="Format; docs/export.md says which program loads which.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the export.")],
    dtype: DType = Stored.auto,
    client: Clients = None,
    adapter_only: AdapterOnly = False,
    model: Model = None,
    template: Template = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an older export in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a tuned model as other programs load it: whole or not at all.

    The prompt template goes along as a chat template, so that other programs ask in the words of the training.
    """
    from fedit.export.formats import Options
    from fedit.export.write import export as write

    options = Options(dtype.value, adapter_only)
    with working("exporting …"):
        done = write(
            folder,
            to.value,
            out,
            options=options,
            clients=client or (),
            model=model,
            template=template,
            replace=replace,
        )
    if as_json:
        print_json({**done.record, "out": str(done.folder), "files": done.files})
        return
    _print(done)
    console().print(f"{done.folder} holds it; its README.md says how to load it.", soft_wrap=True)


def push(
    folder: Run,
    repo: Annotated[str, typer.Option("--repo", help="Model repository on the hub: ACCOUNT/NAME.")],
    to: Annotated[To, typer.Option("--to", help="Format, as in fedit export.")] = To.peft,
    dtype: DType = Stored.auto,
    client: Clients = None,
    adapter_only: AdapterOnly = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository a private one.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a tuned model to the hub, with a model card.

    The token comes from HF_TOKEN or `hf auth login`.
    """
    from fedit.export.formats import Options
    from fedit.export.push import push as upload

    with working("exporting …"):
        done = upload(
            folder,
            repo,
            to=to.value,
            options=Options(dtype.value, adapter_only),
            clients=client or (),
            private=private,
            dry_run=dry_run,
        )
    if as_json:
        print_json({**done.exported.record, "repo": repo, "files": done.exported.files, "address": done.address})
        return
    _print(done.exported)
    console().print(done.address or f"nothing was sent to {repo}", soft_wrap=True)


def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, an arm, a PEFT LoRA folder, or a merged export.")
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any that is free.")] = PORT,
    name: Annotated[str | None, typer.Option("--name", help="What requests call the model.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    model: Model = None,
    template: Template = None,
) -> None:
    """Answer OpenAI's chat completions with a tuned model, on this machine alone (127.0.0.1).

    The server is `transformers serve`, from the extra `serve`. Ctrl-C ends it.
    """
    from fedit.export.serve import serving

    signal.signal(signal.SIGTERM, _interrupt)
    aside = notes()
    try:
        with serving(
            folder,
            port=port,
            name=name,
            device=device,
            model=model,
            template=template,
            say=lambda text: aside.print(text, style="dim"),
        ) as endpoint:
            console().print(f"{endpoint.address} model {endpoint.model}", soft_wrap=True)
            aside.print("Ctrl-C ends.", style="dim")
            endpoint.wait()
    except KeyboardInterrupt:
        aside.print("\nended", style="dim")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print(done: "Exported") -> None:
    for note in done.notes:
        notes().print(note, style="yellow")
    table = plain_table("file", "bytes", numbers=("bytes",))
    for name, size in done.files.items():
        table.add_row(name, f"{size:,}")
    console().print(table)
    if "command" in done.record:
        console().print(str(done.record["command"]), soft_wrap=True)
