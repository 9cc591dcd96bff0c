"""What files and people rely on has not changed by accident: `released.json` says it, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from hvcompress import container
from hvcompress.model import DEFAULT_MODEL, WEIGHTS, fingerprint_of, read_folder

HERE = Path(__file__).parent
RELEASED = json.loads((HERE / "released.json").read_text())
MODELS = sorted(path.parent for path in (HERE.parent / "models").glob("*/config.json"))


def test_magic_and_version():
    assert container.MAGIC.hex() == RELEASED["magic"] and RELEASED["version"] == container.VERSION
    made = container.pack(container.Container(container.Header(1, 1, False, 0, (0,), b"abcd", b"hash"), (b"",)))
    for data in (made, *(path.read_bytes() for path in (HERE / "golden").glob("*.hvci"))):
        assert data[:4].hex() == RELEASED["magic"] + f"{RELEASED['version']:02x}"


def test_the_models_that_ship():
    assert {path.name for path in MODELS} == set(RELEASED["models"])
    assert DEFAULT_MODEL in RELEASED["models"]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_fingerprint(path):
    """Computed from the weights with the present rules, not only read."""
    folder = read_folder(path)
    assert (folder.name, folder.fingerprint) == (path.name, RELEASED["models"][path.name])
    assert fingerprint_of(load_file(path / WEIGHTS), folder.config["network"]) == folder.fingerprint
