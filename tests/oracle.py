"""What fedit should compute, written with PyTorch, transformers and PEFT alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import peft
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

Row = tuple[list[int], list[bool]]
"""Token ids and, for each, whether it is a target."""


def load(
    folder: Path, adapter: Mapping[str, Tensor], *, alpha: float, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """Return a PEFT model whose factors are ``adapter``'s ("m.A", "m.B")."""
    config = AutoConfig.from_pretrained(folder)
    # Some versions of transformers leave Gemma 2's cap of scores out unless they are told not to.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    for name in base.config.to_dict():
        if "dropout" in name or name.endswith("_pdrop"):
            setattr(base.config, name, 0.0)
    rank = next(t.shape[0] for n, t in adapter.items() if n.endswith(".A"))
    targets = sorted({name.rpartition(".")[0] for name in adapter})
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        fan_in_fan_out=base.config.model_type == "gpt2",
    )
    model = peft.get_peft_model(base, config)
    model.eval()
    write(model, adapter)
    return model


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the LoRA factors under the names "m.A" and "m.B"."""
    found = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(next(iter(model.parameters())).dtype)
            module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            found[f"{module}.{rest[0]}"] = parameter
    return found


def write(model: nn.Module, adapter: Mapping[str, Tensor]) -> None:
    own = factors(model)
    assert set(own) == set(adapter)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(adapter[name])


def read(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in factors(model).items()}


def row_loss(model: nn.Module, row: Row) -> tuple[Tensor, int]:
    """Return the summed loss over a row's targets and their number; one row, no padding, all logits."""
    ids, supervised = row
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    chosen = torch.tensor(supervised[1:])
    targets = torch.tensor(ids[1:])[chosen]
    return nn.functional.cross_entropy(logits[chosen], targets, reduction="sum"), len(targets)


def batch_loss(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """Return the mean loss over the targets of all rows together."""
    losses = [row_loss(model, row) for row in rows]
    return sum((loss for loss, _ in losses), torch.zeros(())) / sum(count for _, count in losses)


def gradients(model: nn.Module, rows: Sequence[Row]) -> dict[str, Tensor]:
    own = factors(model)
    grads = torch.autograd.grad(batch_loss(model, rows), list(own.values()))
    return dict(zip(own, grads, strict=True))


def train(
    model: nn.Module,
    batches: Iterable[Sequence[Row]],
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    rates: Sequence[float] | None = None,
    max_norm: float = 0.0,
) -> list[float]:
    """Take one optimizer step a batch; return the losses before each."""
    own = list(factors(model).values())
    optimizer = make_optimizer(own)
    losses = []
    for index, rows in enumerate(batches):
        if rates is not None:
            for group in optimizer.param_groups:
                group["lr"] = rates[index]
        optimizer.zero_grad()
        loss = batch_loss(model, rows)
        loss.backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(own, max_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
