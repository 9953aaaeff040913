"""What settings imply before anything is trained: sizes, bytes and steps, from the model's shapes and the rows."""

from fedit.config import RunConfig


def implications(config: RunConfig) -> dict[str, object]:
    """Return what a job's settings come to; reads rows and model shapes, loads no weights.

    Raises:
        UserError: they cannot work together.
    """
    from fedit.facts import bytes_of_a_round
    from fedit.model.shapes import adapted_shapes, empty_model
    from fedit.model.targets import choose_targets
    from fedit.prepare import prepare

    job = prepare(config)
    config = job.config
    model = empty_model(job.source)
    targets = choose_targets(model, config.lora_target_modules)
    shapes = adapted_shapes(model, targets)
    parameters = sum(config.rank * sum(shape) for shape in shapes)
    up, down = bytes_of_a_round(job.strategy, shapes, config.rank, cohort=job.cohort_size)
    up *= 1 if job.secure is None else 2  # a masked entry has 64 bits
    training = job.training(example_noise=0.0)
    sizes = [len(rows) for rows in job.clients.values()]
    per_epoch = [-(-size // config.batch_size) for size in sizes]
    steps = [training.steps or (training.epochs or 1) * batches for batches in per_epoch]
    rounds, cohort = config.num_rounds, job.cohort_size
    return {
        "base_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": parameters,
        "adapted_layers": ", ".join(targets),
        "scale": config.scale,
        "prompt_template": job.template.name,
        "clients": len(sizes),
        "clients_per_round": job.cohort_size,
        "rows_per_client": {"smallest": min(sizes), "largest": max(sizes)},
        "held_out_rows": len(job.corpus.held_out),
        "validation_rows": len(job.corpus.validation),
        "steps_per_client_and_round": "until the tokens are spent"
        if training.tokens
        else {"smallest": min(steps), "largest": max(steps)},
        "lora_r": config.rank,
        "bytes_up_per_round": round(up * cohort),
        "bytes_down_per_round": round(down * cohort),
        "bytes_total": round((up + down) * cohort * rounds),
        **({"bytes_are_of": "the adapter before its transforms"} if job.transforms else {}),
    }
