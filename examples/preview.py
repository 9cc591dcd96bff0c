"""What can be seen of a picture while its file is still on its way: previews from the first bytes.

python examples/preview.py photo.png        # writes photo.preview-BYTES.png for each new preview
"""

import sys
from pathlib import Path

import hvcompress


def main() -> None:
    path = Path(sys.argv[1])
    data = hvcompress.encode(path, quality=50)
    last = b""
    for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0):
        arrived = data[: round(share * len(data))]
        try:
            preview = hvcompress.decode(arrived, partial=True)
        except hvcompress.FormatError as error:  # not even the coarsest layer is there
            print(f"{len(arrived):>9,} bytes: {error}")
            continue
        if preview.tobytes() == last:
            continue  # no further layer has arrived
        last = preview.tobytes()
        out = path.with_name(f"{path.stem}.preview-{len(arrived)}.png")
        preview.save(out)
        print(f"{len(arrived):>9,} bytes: {out}")


if __name__ == "__main__":
    main()
