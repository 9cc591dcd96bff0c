"""CARD.md of a model folder: what made it and what it scores, from the facts in its config.json."""

from __future__ import annotations


def card(config: dict, notes: str) -> str:
    """Markdown. config: of the model folder; notes: what only a person knows (sources of the data, limits)."""
    trained, rows = config["trained"], config["held_out"]
    layers = config["network"]["latents"]
    numbered = list(enumerate(layers, 1))
    annealing, planned = trained["of_these_annealing"], trained["annealing_planned"]
    origin = f" more, from {trained['continued_from']}," if trained.get("continued_from") else ""
    command = "    python -m hvcompress.training recipe.toml --data DIR --out RUN"
    trunk = f"{command} --steps {trained['steps'] - annealing}"
    if annealing:
        last = f"the last {annealing:,} of {trained['anneal_batch']} of {trained['anneal_patch']} px "
        photographs = f"{trained['photographs']:,} photographs, {trained['anneal_photographs']:,} in those last steps"
        branch = f"{command} --anneal {planned}"
        if annealing < planned:
            last += f"while the learning rate was falling to zero, which it would have reached in {planned:,}"
            branch += f"  # stopped after {annealing}"
        else:
            last += "while the learning rate fell to zero"
        if trained["one_recipe"]:
            recipe, commands = "Made by the `recipe.toml` here:", [trunk, branch]
        else:
            recipe = "The `recipe.toml` here made the last steps; those before had another, or one that was not kept:"
            commands = [branch]
    else:
        last, photographs = "the learning rate never lowered", f"{trained['photographs']:,} photographs"
        recipe, commands = "Made by the `recipe.toml` here:", [trunk]
    if trained.get("drawn_share"):
        photographs += f", {100 * trained['drawn_share']:.0f} % of the crops drawn instead (`training/drawings.py`)"
    lines = [
        f"# {config['name']}",
        "",
        f"{config['parameters'] / 1e6:.2f} M parameters; fingerprint `{config['fingerprint']}`.",
        "",
        f"Trained for {trained['steps']:,} steps{origin} of {trained['batch']} crops of {trained['patch']} px, {last}, "
        f"from {photographs}; {trained['hours']:.2f} hours of computing, exported {trained['date']}. {recipe}",
        "",
        *commands,
        "",
        "## Layers, coarse to fine",
        "",
        "| layer | stride | channels |",
        "|---|---|---|",
        *(f"| {n} | {latent['stride']} | {latent['channels']} |" for n, latent in numbered),
        "",
        f"## On {config['held_out_pictures']} held-out photographs",
        "",
        "Estimated rate of quantized latents (Gaussian tables), 256 px centre crops of the photographs "
        "at 0.6 of their size. The grid's cost is the change of bits + lambda x squared error by moving the decoder "
        "to integers, as a share of the rate.",
        "",
        "| quality | bpp | PSNR [dB] | "
        + " | ".join(f"layer {n}" for n in range(1, len(layers) + 1))
        + " | grid's cost |",
        "|---" * (len(layers) + 4) + "|",
    ]
    for row in rows:
        rates = [f"{row[f'bpp_{n}']:.4f}" for n, _ in numbered]
        cells = [str(row["quality"]), f"{row['bpp']:.3f}", f"{row['psnr']:.2f}", *rates]
        lines.append("| " + " | ".join(cells) + f" | {100 * row['grid_cost']:+.2f} % |")
    return "\n".join(lines) + "\n\n" + notes.strip() + "\n"
