"""A folder of photographs, several at a time. The command `hvcompress encode DIR -r --output-dir OUT` does as much;
here Python decides what becomes of each file.

    python examples/many.py DIR OUT
"""

import sys
from pathlib import Path

import hvcompress


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
    before = after = 0
    for path, data in zip(paths, hvcompress.encode_batch(paths, quality=50), strict=True):
        size = path.stat().st_size
        if len(data) >= size:  # it was smaller already: keep the original
            data = path.read_bytes()
            (out / path.name).write_bytes(data)
        else:
            (out / (path.name + ".hvci")).write_bytes(data)  # a.jpg and a.png may both be there
        before, after = before + size, after + len(data)
        print(f"{path.name}: {size:,} -> {len(data):,} bytes")
    print(f"{len(paths)} files: {before:,} -> {after:,} bytes")


if __name__ == "__main__":
    main()
