"""Find the pictures that are most like one of them, by what their coarse latents say. No pixel is computed.

python examples/similar.py photo.hvci album/*.hvci
"""

import sys
from pathlib import Path

import numpy as np

import hvcompress


def description(path: str) -> np.ndarray:
    """Mean and spread of every channel of the three coarsest layers: whatever the picture's size, as many numbers."""
    layers = hvcompress.latents(Path(path).read_bytes(), layers=3)
    return np.concatenate([f(layer.reshape(len(layer), -1), axis=1) for layer in layers for f in (np.mean, np.std)])


def main() -> None:
    wanted, *others = sys.argv[1:]
    names = [name for name in others if name != wanted]
    table = np.stack([description(name) for name in [wanted, *names]])
    table = (table - table.mean(0)) / (table.std(0) + 1e-6)  # all numbers count alike
    distances = np.linalg.norm(table[1:] - table[0], axis=1) / np.sqrt(table.shape[1])
    for distance, name in sorted(zip(distances, names, strict=True))[:10]:
        print(f"{distance:.3f}  {name}")


if __name__ == "__main__":
    main()
