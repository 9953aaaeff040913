"""What a worker process does when it is asked: the same work as in one process, a piece at a time."""

import gc
import queue
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from fedit import arms
from fedit.comparison import arm_folder, train_arm
from fedit.compute import ArmWork, Here, Part, losses_as_tensors
from fedit.config import RunConfig
from fedit.engines.frames import Header, write_frame
from fedit.engines.messages import BROADCAST_PARTS, error_header, join, read_task, result_frame
from fedit.model.fast.decode import Prompt
from fedit.prepare import prepare
from fedit.tensors import can_flatten, flatten
from fedit.training import Progress
from fedit.types import Likened, Running, Tensors
from fedit.worker import Worker

Answer = tuple[Header, Tensors]
Tell = Callable[[Header], None]


def serve(requests: "queue.SimpleQueue[Answer]", stream: BinaryIO) -> None:
    """Answer requests for ever; the first says what to prepare. Errors are answers too."""
    held: dict[str, Tensors] = {}
    service: Service | None = None
    while True:
        header, tensors = requests.get()
        if header["do"] == "hold":
            for key in cast(list[str], header["drop"]):
                del held[key]
            held[cast(str, header["key"])] = flatten(tensors) if can_flatten(tensors) else tensors
            continue
        try:
            if service is None:
                service = Service(header, lambda event: write_frame(stream, {"event": event}, {}))
                gc.freeze()  # what is here stays: looking through it again takes a client milliseconds
                answer: Answer = ({"ready": True}, {})
            else:
                sets = {role: held[key] for role, key in cast(dict[str, str], header["sets"]).items()}
                answer = service.answer(header, sets)
        except Exception as error:
            answer = ({"error": error_header(error)}, {})
        write_frame(stream, *answer)


class Service:
    """One run's job, prepared once, and the kinds of work that can be asked for."""

    def __init__(self, header: Header, tell: Tell) -> None:
        config = RunConfig.model_validate(header["config"])
        self._folder = Path(cast(str, header["folder"]))
        self._tell = tell
        self._job = prepare(config, num_threads=cast(int, header["num_threads"]))
        if self._job.partition.hash != header["partition"]:
            raise RuntimeError("the rows were dealt differently in this process")
        self._here = Here(self._job)
        self._workers: dict[str, Worker] = {}
        self._job.model  # noqa: B018  (loaded now, not while the first client waits)
        self._work: dict[str, Callable[[Header, dict[str, Tensors]], Answer]] = {
            "initial": lambda header, sets: ({}, self._here.initial()),
            "measure": lambda header, sets: ({"seconds": self._here.seconds_per_token()}, {}),
            "path": lambda header, sets: ({"why_general": self._here.why_general()}, {}),
            "train": self._train,
            "losses": self._losses,
            "likened": self._likened,
            "answers": self._answers,
            "export": self._export,
            "arm": self._arm,
        }

    def answer(self, header: Header, sets: dict[str, Tensors]) -> Answer:
        """Do what ``header`` asks."""
        return self._work[cast(str, header["do"])](header, sets)

    def _train(self, header: Header, sets: dict[str, Tensors]) -> Answer:
        name = cast(str, header["arm"])
        if name not in self._workers:
            folder = self._folder if name == arms.FEDERATED else arm_folder(self._folder, name)
            self._workers[name] = self._here.worker(arms.named(self._job, name, {}), folder)

        def on_step(index: int, progress: Progress) -> None:
            self._tell({"task": index, **progress.as_event()})

        tasks = [
            read_task(fields, {part: sets.get(f"{index}/{part}", {}) for part in BROADCAST_PARTS})
            for index, fields in enumerate(cast(list[Header], header["tasks"]))
        ]
        frames = [result_frame(result) for result in self._workers[name].train_together(tasks, on_step)]
        return (
            {"results": [fields for fields, _ in frames]},
            join({str(index): parts for index, (_, parts) in enumerate(frames)}),
        )

    def _losses(self, header: Header, sets: dict[str, Tensors]) -> Answer:
        share = (cast(int, header["share"]), cast(int, header["of"]))
        return {}, losses_as_tensors(self._here.losses(_adapters(sets), cast(Part, header["part"]), share))

    def _likened(self, header: Header, sets: dict[str, Tensors]) -> Answer:
        own, general, ledger = (sets.get(str(index), {}) for index in range(3))
        likened = Likened(
            Running(general, ledger, cast(float, header["scale"])),
            cast(float, header["most"]),
            cast(int, header["examples"]),
        )
        running, share = Running(own, {}, 0.0, likened), (cast(int, header["share"]), cast(int, header["of"]))
        client, part = cast(str, header["client"]), cast(Part, header["part"])
        return {}, losses_as_tensors([self._here.likened_losses(client, running, part, share)])

    def _answers(self, header: Header, sets: dict[str, Tensors]) -> Answer:
        share = (cast(int, header["share"]), cast(int, header["of"]))
        asked = cast("list[tuple[int, list[int]]]", header["prompts"])
        prompts = [Prompt(ids, adapter) for adapter, ids in asked]
        longest = cast("int | None", header["longest"])
        texts = self._here.some_answers(_adapters(sets), prompts, share, max_new_tokens=longest)
        return {"texts": list(texts.items())}, {}

    def _export(self, header: Header, sets: dict[str, Tensors]) -> Answer:
        self._here.export(sets["adapter"], cast(int, header["round"]), Path(cast(str, header["folder"])))
        return {}, {}

    def _arm(self, header: Header, sets: dict[str, Tensors]) -> Answer:
        train_arm(self._job, self._here, ArmWork.from_header(header), self._tell)
        return {}, {}


def _adapters(sets: dict[str, Tensors]) -> list[Tensors]:
    """Return the adapters of a request in their order."""
    return [sets[str(index)] for index in range(len(sets))]
