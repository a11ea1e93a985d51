"""How fast a pull is beside `curl URL | tee FILE | sha256sum`, from the same server on loopback; interleaved, medians.

    python benchmarks/pull.py                  # 1 GB, five rounds; needs curl and three times that room in --folder
    python benchmarks/pull.py -r 3 --size 200M

The server hands files out by sendfile, so that it is not what is measured. `pull` is the whole command, start of Python
included; `fetch` is what it does between the hub's answer and the synced file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from liquidcli.amounts import parse_size

REPO, FILE, COMMIT = "someone/Big-GGUF", "Big.Q8_0.gguf", "1" * 40
_FETCH = (
    "import sys, time; from pathlib import Path; from huggingface_hub import HfApi\n"
    "from liquidcli.hub.download import Source, fetch\n"
    "begun = time.perf_counter()\n"
    "fetch(Path(sys.argv[2]), Source(sys.argv[1], 'x', int(sys.argv[3])))\n"
    "print(time.perf_counter() - begun)\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1GB", help="of the file (1GB)")
    parser.add_argument("-r", "--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / FILE
        sha256 = _write(path, parse_size(options.size))
        with _serve(path, sha256) as url:
            _report(path.stat().st_size, _measure(url, Path(name), path.stat().st_size, options.rounds))


def _write(path: Path, size_bytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for at in range(0, size_bytes, 1 << 20):
            piece = os.urandom(min(1 << 20, size_bytes - at))
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def _measure(url: str, folder: Path, size_bytes: int, rounds: int) -> dict[str, list[float]]:
    address, out = f"{url}/{REPO}/resolve/{COMMIT}/{FILE}", folder / "out"
    fetch = [sys.executable, "-c", _FETCH, address, str(out), str(size_bytes)]
    home = {"HF_HOME": str(folder / "hf"), "LIQUID_HOME": str(folder / "liquid"), "HF_ENDPOINT": url}
    seconds: dict[str, list[float]] = {"curl": [], "pull": [], "fetch": []}
    for _ in range(rounds):
        seconds["curl"].append(_timed(["sh", "-c", f"curl -s {address} | tee {out} | sha256sum > /dev/null"]))
        out.unlink()
        pull = [sys.executable, "-m", "liquidcli", "pull", REPO]
        seconds["pull"].append(_timed(pull, env={**os.environ, **home}))
        shutil.rmtree(folder / "hf")
        seconds["fetch"].append(float(subprocess.run(fetch, check=True, capture_output=True, text=True).stdout))
        out.unlink()
    return seconds


def _timed(command: list[str], env: dict[str, str] | None = None) -> float:
    begun = time.perf_counter()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def _report(size_bytes: int, seconds: dict[str, list[float]]) -> None:
    curl = statistics.median(seconds["curl"])
    for name, each in seconds.items():
        median = statistics.median(each)
        spread = f"{min(each):.2f} to {max(each):.2f} s"
        speed = f"{size_bytes / median / 1e6:6.0f} MB/s  {curl / median:.2f} x curl"
        print(f"{name:6} {median:6.2f} s  {speed}  ({spread})", flush=True)


@contextmanager
def _serve(path: Path, sha256: str) -> Iterator[str]:
    size_bytes = path.stat().st_size
    lfs = {"sha256": sha256, "size": size_bytes, "pointerSize": 134}
    sibling = {"rfilename": FILE, "size": size_bytes, "blobId": sha256[:40], "lfs": lfs}
    about = json.dumps({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": [sibling]}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            is_file = self.path.endswith(FILE)
            self.send_response(200 if is_file or REPO in self.path else 404)
            self.send_header("Content-Length", str(size_bytes if is_file else len(about)))
            self.end_headers()
            if not is_file:
                self.wfile.write(about)
                return
            with path.open("rb") as file:
                self.connection.sendfile(file)

    ThreadingHTTPServer.handle_error = lambda *_: None  # type: ignore[method-assign]  # who reads a header hangs up
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


if __name__ == "__main__":
    main()
