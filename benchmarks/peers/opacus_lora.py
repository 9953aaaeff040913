"""DP-SGD on LoRA by Opacus over transformers and PEFT: the loop of its tutorials, one logical batch of all rows.

Modes: "hooks" materialises per-example gradients, "ghost" finds their norms and runs a second backward pass over
the weighted losses, "plain" is the same loop without privacy. A row's loss is the mean over its own answer; rows
of like lengths share a physical batch, padded on the right.
"""

import warnings

from common import Clock, counted, load_model, print_result, read_request, read_rows, versions, warm_up_rows

DEFAULTS = {"mode": "hooks", "dtype": "fp32", "micro_batch": 8, "clip": 1.0, "noise": 1.0}


def batch_of(rows):
    """Return ids, mask and labels (rows, longest)."""
    import torch

    longest = max(len(row["ids"]) for row in rows)
    ids, mask = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
    labels = torch.full((len(rows), longest), -100)
    for line, row in enumerate(rows):
        own = torch.tensor(row["ids"])
        ids[line, : len(own)], mask[line, : len(own)] = own, 1
        labels[line, : len(own)] = torch.where(torch.tensor(row["supervised"]) > 0, own, -100)
    return ids, mask, labels


def losses_of(model, rows, dtype):
    """Return each row's mean loss over its own answer, (rows,)."""
    import torch

    ids, mask, labels = batch_of(rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    targets = labels[:, 1:]
    each = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return each.sum(1) / (targets >= 0).sum(1).clamp(min=1)


def train(model, optimizer, rows, options):
    """Take one step over all rows."""
    size = options["micro_batch"]
    ordered = sorted(rows, key=lambda row: len(row["ids"]))
    pieces = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    optimizer.zero_grad()
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        losses = losses_of(model, piece, options["dtype"])
        if options["mode"] == "plain":
            (losses.sum() / len(rows)).backward()
            continue
        if options["mode"] == "hooks":
            losses.sum().backward()
        else:
            losses.sum().backward(retain_graph=True)
            weights = model.get_clipping_coef()
            optimizer.zero_grad()
            model.disable_hooks()
            (losses * weights).sum().backward()
            model.enable_hooks()
        optimizer.signal_skip_step(do_skip=not last)
        optimizer.step()
        optimizer.zero_grad()
    if options["mode"] == "plain":
        optimizer.step()


def build(model, options, batch):
    """Return the model and the optimizer of a mode."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    model.train()
    if options["mode"] == "plain":
        return model, optimizer
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

    how = {"noise_multiplier": options["noise"], "max_grad_norm": options["clip"], "expected_batch_size": batch}
    if options["mode"] == "hooks":
        wrapped = GradSampleModule(model, loss_reduction="sum")
        return wrapped, DPOptimizer(optimizer, loss_reduction="sum", **how)
    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=options["clip"], use_ghost_clipping=True
    )
    return wrapped, DPOptimizerFastGradientClipping(optimizer, loss_reduction="sum", **how)


def throughput(request, options):
    rows = read_rows(request)
    model, _ = load_model(request, dropout=0.0)
    model, optimizer = build(model, options, len(rows))
    train(model, optimizer, warm_up_rows(rows), options)
    clock = Clock()
    with clock.running():
        train(model, optimizer, rows, options)
    return {**counted(rows), "cpu_s": clock.cpu_s, "wall_s": clock.wall_s}


def main():
    warnings.simplefilter("ignore")
    request = read_request()
    options = {**DEFAULTS, **request["options"]}
    print_result({**throughput(request, options), "versions": versions("opacus")})


main()
