"""FedLLM-Bench (github.com/rui-ye/FedLLM-Bench): splits of natural users, and the arguments of its scripts."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedit.data.examples import row_id
from fedit.data.schemas import choose_schema
from fedit.errors import ConfigError, DataError
from fedit.migration import openfedllm
from fedit.migration.arguments import Arguments, complete, read_command
from fedit.migration.base import Draft, Taken, read_content

NAME = "FedLLM-Bench"
DEFAULTS: dict[str, object] = {
    **{name: value for name, value in openfedllm.DEFAULTS.items() if name != "save_model_freq"},
    "fedopt_beta1": 0.5,
    "multi_turn_task": False,
    "dynamic_local_step": False,
    "checkpoint_step": None,
}
"""Arguments as of August 2024, its last version."""
ROWS = "rows.jsonl"
CLIENT = "client"
"""The field of a written row that names its client."""


def read(paths: Sequence[Path], draft: Draft) -> None:
    """Fill ``draft`` from a split, a JSON object of client -> rows, and maybe a shell script of its training.

    Raises:
        UserError: a path is none of these, or what it holds is broken.
    """
    arguments: Arguments | None = None
    split: Path | None = None
    for path in paths:
        if path.suffix == ".sh":
            arguments = complete(read_command(path, (openfedllm.SFT, openfedllm.DPO)), DEFAULTS)
        elif path.suffix == ".json":
            split = path
        else:
            raise DataError(
                f"{path} is nothing of FedLLM-Bench's; expected a split (.json: client -> rows) or a "
                "shell script (.sh)."
            )
    if split is None:
        raise ConfigError("no split is named; expected a .json file of FedLLM-Bench, client -> rows.")
    rows = read_split(split)
    if arguments is not None and len(rows) > arguments.whole("num_clients"):
        # Its scripts take the first clients of the file.
        rows = dict(list(rows.items())[: arguments.whole("num_clients")])
        draft.taken.append(Taken("num_clients", len(rows), "(rows)", "the first so many clients of the file"))
    preferences = _rows(draft, rows, split)
    if arguments is None:
        draft.open.append("no training script was given: rounds, steps, rates and the model are fedit's defaults")
        if preferences:
            draft.fix("objective", "dpo")
        return
    _template(draft, arguments)
    openfedllm.translate(draft, arguments, len(rows))
    if arguments.on("dynamic_local_step"):
        draft.missing["dynamic_local_step"] = "steps in proportion to rows are local_epochs instead of local_steps"
    draft.missing["dataset_name, dataset_sample"] = "its scripts read local_data_dir alone"


def read_split(path: Path) -> dict[str, list[Mapping[str, object]]]:
    """Return client -> rows.

    Raises:
        DataError: the file is no such object, or a client has no rows.
    """
    content = read_content(path)
    if isinstance(content, list):
        raise DataError(f"{path} is a list, the rows of one client alone; expected an object, client -> rows.")
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} holds {type(content).__name__}; expected an object, client -> rows.")
    for client, rows in content.items():
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: client '{client}' has no list of rows.")
    return content


def _rows(draft: Draft, rows: Mapping[str, Sequence[Mapping[str, object]]], split: Path) -> bool:
    """Write all rows with their client into one file; return whether they are preferences."""
    first = next(iter(rows.values()))[0]
    schema = choose_schema(first, "auto", {}, f"{split}, client '{next(iter(rows))}', row 1")
    owners: dict[str, set[str]] = {}
    repeated: Counter[str] = Counter()
    lines: list[str] = []
    for client, own in rows.items():
        for number, row in enumerate(own, 1):
            example = schema.read(row, f"{split}, client '{client}', row {number}")
            identity = row_id(example)
            repeated[identity] += 1
            owners.setdefault(identity, set()).add(client)
            lines.append(json.dumps({**row, CLIENT: client}, ensure_ascii=False))
    draft.files[ROWS] = ("\n".join(lines) + "\n").encode()
    draft.take("local_data_dir", str(split), "dataset", draft.place(ROWS))
    draft.take("rows", f"{len(lines)} of {len(rows)} clients", "data_format", schema.name)
    draft.fix("partitioner", "natural")
    draft.fix("partition_by", CLIENT)
    shared = sum(len(own) > 1 for own in owners.values())
    again = sum(repeated.values()) - len(repeated)
    if again:
        draft.differs.append(
            f"{again} rows repeat another one ({shared} rows are of several clients): fedit keeps the "
            "first of each"
        )
    draft.differs.append("a tenth of every client's rows is held out and measured every round (held_out)")
    return schema.prefers


def _template(draft: Draft, arguments: Arguments) -> None:
    if arguments.on("multi_turn_task"):
        draft.take("multi_turn_task", True, "prompt_template", "vicuna")
        return
    name = arguments.text("template")
    if arguments.script == openfedllm.DPO and name.startswith("vicuna"):
        draft.take("template", name, "prompt_template", "vicuna")
        return
    draft.files[openfedllm.TEMPLATE] = openfedllm.template(name)
    draft.take("template", name, "prompt_template", draft.place(openfedllm.TEMPLATE))
