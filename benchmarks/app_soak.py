"""The app under load: several concurrent clients, each with its own adapter weights; errors, times, memory.

    python -m benchmarks.app_soak --requests 200

starts the app in a separate process. Every client repeats the same request with its own weight, and all its answers
must equal the first one bit for bit. Memory is the server's resident set, read after a warm-up of each client.
With ``--train``, the app also trains a classifier on the built-in data.
"""

import argparse
import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from gradio_client import Client

ROOT = Path(__file__).parents[1]
ADAPTER = "handwriting-dit"


def start_app(output: Path) -> tuple[subprocess.Popen, str]:
    """Start the app on a free port; returns its process and address. Its output is in ``output``."""
    code = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"
    port = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "app", "--port", port, "--output_dir", str(output)]
    app = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    for line in app.stdout:
        if found := re.search(r"http://\S+", line):
            threading.Thread(target=app.stdout.read, daemon=True).start()
            return app, found[0]
    raise SystemExit("the app did not start")


def resident_mb(pid: int) -> float:
    """Resident memory of a process in megabytes (Linux)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


class User:
    """One client: draws with its own weight, and remembers its first result."""

    def __init__(self, address: str, number: int, folder: Path):
        self.client = Client(address, verbose=False, download_files=str(folder / str(number)))
        weight = 2 - 0.25 * (number % 17)  # from 2 down to -2
        self.client.predict(ADAPTER, True, weight, api_name="/set_adapter")
        self.first, self.times, self.errors = None, [], []

    def draw(self) -> None:
        start = time.perf_counter()
        try:
            answer = self.client.predict(["3"], steps=2, sampler="dpm++", api_name="/draw")
        except Exception as error:  # any failure counts as an error
            self.errors.append(str(error)[:200])
            return
        self.times.append(time.perf_counter() - start)
        files = [Path(file) for file in answer["adapted"]]
        mark = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        for file in files:
            file.unlink()
        self.first = self.first or mark
        if mark != self.first:
            self.errors.append("a picture differs from the first one of the same settings")


class Training:
    """A training in the app that is still running when everything else is done."""

    STEPS, KEY = 20_000, "soak"

    def __init__(self, address: str):
        self.client = Client(address, verbose=False)
        started = self.client.predict("Recognise the classes", steps=self.STEPS, key=self.KEY, api_name="/train")
        self.name = started["name"]

    def stop(self) -> tuple[dict, list[str]]:
        """Stop the training; returns its progress before that, and errors."""
        (found,) = self.client.predict(key=self.KEY, api_name="/trainings")
        if found["phase"] != "running":
            return found, [f"training {found['phase']}: {found['text']}"]
        self.client.predict(self.name, key=self.KEY, api_name="/stop_training")
        return found, []


def soak(users: list[User], requests: int, minutes: float, pid: int) -> list[float]:
    """Keep all users busy; returns the memory at each tenth of the requests or of the time."""
    lock, left, readings, start = threading.Lock(), [requests], [], time.monotonic()
    limit = start + 60 * minutes

    def work(user: User) -> None:
        while time.monotonic() < limit:
            with lock:
                if left[0] == 0:
                    return
                left[0] -= 1
                share = max(1 - left[0] / requests, (time.monotonic() - start) / (60 * minutes))
                if len(readings) < int(10 * share):
                    readings.append(resident_mb(pid))
            user.draw()

    threads = [threading.Thread(target=work, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return readings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10, help="stop after this time, even if requests are left")
    parser.add_argument("--quick", action="store_true", help="20 requests from 2 clients")
    parser.add_argument("--train", action="store_true", help="train in the app at the same time")
    args = parser.parse_args()
    clients, requests = (2, 20) if args.quick else (args.clients, args.requests)
    with tempfile.TemporaryDirectory() as folder:
        app, address = start_app(Path(folder) / "output")
        try:
            training = Training(address) if args.train else None
            users = [User(address, number, Path(folder)) for number in range(clients)]
            for user in users:
                user.draw()
                user.times.clear()
            before = resident_mb(app.pid)
            start = time.monotonic()
            readings = soak(users, requests, args.minutes, app.pid)
            seconds, after = time.monotonic() - start, resident_mb(app.pid)
            trained, errors = training.stop() if training else ({}, [])
        finally:
            app.terminate()
            app.wait(timeout=30)
    times = sorted(t for user in users for t in user.times)
    errors += [error for user in users for error in user.errors]
    distinct = len({user.first for user in users})
    p95 = statistics.quantiles(times, n=20)[-1]
    print(f"{len(times)} requests from {clients} clients in {seconds:.0f} s, {len(errors)} errors")
    print(f"all answers equal the client's first; {distinct} of {clients} clients got distinct images")
    print(f"time per request: median {statistics.median(times):.2f} s, 95th percentile {p95:.2f} s")
    print(
        f"server memory: {before:.0f} MB after warm-up, {after:.0f} MB after; "
        + " ".join(f"{r:.0f}" for r in readings)
    )
    if trained:
        print(f"training meanwhile: step {trained['step']} of {trained['steps']}, {trained['phase']}")
    for error in errors[:5]:
        print(f"error: {error}")
    sys.exit(bool(errors) or distinct < clients)


if __name__ == "__main__":
    main()
