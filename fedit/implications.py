"""What settings imply before anything is trained: sizes, bytes and steps, from the model's shapes and the rows."""

from fedit.config import RunConfig


def implications(config: RunConfig) -> dict[str, object]:
    """Return what a job's settings come to; reads rows and model shapes, loads no weights.

    Raises:
        UserError: they cannot work together.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fedit.model.targets import choose_targets
    from fedit.prepare import prepare

    job = prepare(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(job.source.path, local_files_only=True)
        )
    targets = choose_targets(model, config.lora_target_modules)
    parameters = sum(config.lora_r * sum(shape) for shape in linear_shapes(model, targets))
    training = job.training()
    sizes = [len(rows) for rows in job.clients.values()]
    per_epoch = [-(-size // config.batch_size) for size in sizes]
    steps = [training.steps or (training.epochs or 1) * batches for batches in per_epoch]
    bytes_each = 4 * parameters
    rounds = config.num_rounds
    return {
        "base_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": parameters,
        "adapted_layers": ", ".join(targets),
        "scale": config.lora_alpha / (config.lora_r**0.5 if config.use_rslora else config.lora_r),
        "prompt_template": job.template.name,
        "clients": len(sizes),
        "clients_per_round": job.cohort_size,
        "rows_per_client": {"smallest": min(sizes), "largest": max(sizes)},
        "held_out_rows": len(job.corpus.held_out),
        "validation_rows": len(job.corpus.validation),
        "steps_per_client_and_round": "until the tokens are spent"
        if training.tokens
        else {"smallest": min(steps), "largest": max(steps)},
        "bytes_up_per_round": bytes_each * job.cohort_size,
        "bytes_down_per_round": bytes_each * job.cohort_size,
        "bytes_total": 2 * bytes_each * job.cohort_size * rounds,
        **({"bytes_are_of": "the adapter before its transforms"} if job.transforms else {}),
    }


def linear_shapes(model: object, targets: list[str]) -> list[tuple[int, int]]:
    """Return (in, out) of every layer of ``model`` whose name ends in one of ``targets``."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a module, found {type(model).__name__}")
    shapes = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name.rpartition(".")[2] in targets and weight is not None and weight.dim() == 2:
            shapes.append((int(weight.shape[1]), int(weight.shape[0])))
    return shapes
