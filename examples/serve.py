"""Show a folder of .hvci files to any browser: pictures are decoded as they are asked for.

python examples/serve.py DIR [PORT]        # then open http://localhost:8000
"""

import html
import io
import sys
import urllib.parse
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hvcompress


@lru_cache(64)
def webp(path: Path, changed: int) -> bytes:
    """A file's picture as WebP, kept for the next who asks. changed: when the file was, so that a new one counts."""
    buffer = io.BytesIO()
    image = hvcompress.decode(path.read_bytes())
    image.thumbnail((16383, 16383))  # WebP's limit
    image.save(buffer, "WEBP", quality=95)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    folder = Path()

    def do_GET(self) -> None:
        name = urllib.parse.unquote(self.path.lstrip("/"))
        files = {path.name: path for path in sorted(self.folder.glob("*.hvci"))}
        if not name:
            pictures = "".join(
                f'<img loading=lazy src="{urllib.parse.quote(n)}" title="{html.escape(n)}">' for n in files
            )
            self.answer(200, "text/html", f"<!doctype html><title>hvcompress</title>{pictures}".encode())
        elif name not in files:  # only files of the folder itself, whatever the path says
            self.answer(404, "text/plain", b"no such picture")
        else:
            try:
                self.answer(200, "image/webp", webp(files[name], files[name].stat().st_mtime_ns))
            except hvcompress.HvcompressError as error:
                self.answer(500, "text/plain", str(error).encode())

    def answer(self, code: int, kind: str, data: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000
    with ThreadingHTTPServer(("localhost", port), Handler) as server:
        print(f"http://localhost:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
