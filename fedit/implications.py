"""What settings imply before anything is trained: sizes, bytes and steps, from the model's shapes and the rows."""

from fedit.config import RunConfig


def implications(config: RunConfig) -> dict[str, object]:
    """Return what a job's settings come to; reads rows and model shapes, loads no weights.

    Raises:
        UserError: they cannot work together.
    """
    from fedit.planning.amounts import amounts_of
    from fedit.prepare import prepare

    job = prepare(config)
    config = job.config
    found = amounts_of(job)
    up, down = found.bytes_up.expected, found.bytes_down.expected
    sizes, steps = list(job.sizes.values()), found.steps_per_client
    return {
        "base_parameters": found.layers.base,
        "trainable_parameters": found.trainable,
        **({"adapted_layers": ", ".join(found.layers.names)} if found.layers.names else {}),
        "scale": config.scale,
        "prompt_template": job.template.name,
        "clients": len(sizes),
        "clients_per_round": job.cohort_size,
        "rows_per_client": {"smallest": min(sizes), "largest": max(sizes)},
        "held_out_rows": len(job.corpus.held_out),
        "validation_rows": len(job.corpus.validation),
        "steps_per_client_and_round": "until the tokens are spent"
        if steps is None
        else {"smallest": steps[0], "largest": steps[1]},
        "lora_r": config.rank,
        "bytes_up_per_round": round(up / config.num_rounds),
        "bytes_down_per_round": round(down / config.num_rounds),
        "bytes_total": round(up + down),
    }
