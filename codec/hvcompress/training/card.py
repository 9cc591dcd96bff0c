"""CARD.md of a model folder: what made it and what it scores, from the facts in its config.json."""

from __future__ import annotations


def card(config: dict, notes: str) -> str:
    """Markdown. config: of the model folder; notes: what only a person knows (sources of the data, limits)."""
    trained, rows = config["trained"], config["held_out"]
    layers = config["network"]["latents"]
    numbered = list(enumerate(layers, 1))
    origin = f" more, from {trained['continued_from']}," if trained.get("continued_from") else ""
    lines = [
        f"# {config['name']}",
        "",
        f"{config['parameters'] / 1e6:.2f} M parameters; fingerprint `{config['fingerprint']}`.",
        "",
        f"Trained for {trained['steps']:,} steps{origin} of {trained['batch']} crops of {trained['patch']} px, the "
        f"last {trained['of_these_annealing']:,} of {trained['anneal_batch']} of {trained['anneal_patch']} px while "
        f"the learning rate fell to zero, from {trained['photographs']:,} photographs; {trained['hours']:.2f} hours of "
        f"computing, finished {trained['date']}. Made by the `recipe.toml` here:",
        "",
        f"    python -m hvcompress.training recipe.toml --data DIR --out RUN "
        f"--steps {trained['steps'] - trained['of_these_annealing']}",
        f"    python -m hvcompress.training recipe.toml --data DIR --out RUN --anneal {trained['of_these_annealing']}",
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
