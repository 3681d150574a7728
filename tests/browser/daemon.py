"""The daemon behind the page: the real binary, a broker of its own, and photos that flow."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SET = ROOT / "models/sample"
PHOTOS = SET / "photos"

# No step takes this long unless it hangs, in seconds.
PATIENCE = 60

# What a label might do to a page that took it for more than text.
HOSTILE = "<img src=x onerror=\"document.title='taken over'\">"


def until(what, condition, patience=PATIENCE):
    """Waits until `condition` gives something true, and returns that."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {patience} s: {what}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port):
    with socket.socket() as visitor:
        return visitor.connect_ex(("127.0.0.1", port)) == 0


class Daemon:
    """vggd with the sample set, in which the palace has a hostile label; everything lies in `folder`."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, Path(folder)
        self.incoming = self.folder / "incoming"
        self.set = self.folder / "set"
        self.config = self.folder / "vggd.toml"
        self.port, self.broker_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.count = itertools.count()
        self.process = self.broker = None
        self.incoming.mkdir()
        self.set.mkdir()
        for path in SET.iterdir():
            (self.set / path.name).symlink_to(path)
        labels = self.set / "labels.txt"
        text = labels.read_text()
        labels.unlink()
        labels.write_text(text.replace("\npalace\n", f"\n{HOSTILE} palace\n"))
        assert HOSTILE in labels.read_text()
        self.config.write_text(
            f"""
[source]
directory = "{self.incoming}"
afterwards = "delete"
[model]
set = "{self.set}"
policy = "auto"
profile = "{self.folder}/profile.json"
profile_when = "start"
[state]
min_confidence = 0.4
[mqtt]
port = {self.broker_port}
topic = "vggd/kitchen"
[outbox]
directory = "{self.folder}/outbox"
[web]
listen = "127.0.0.1:{self.port}"
frame = true
"""
        )

    def __enter__(self):
        config = self.folder / "mosquitto.conf"
        config.write_text(f"listener {self.broker_port} 127.0.0.1\nallow_anonymous true\n")
        path = os.environ["PATH"] + ":/usr/sbin"
        broker = [shutil.which("mosquitto", path=path), "-c", config]
        self.broker = subprocess.Popen(broker, stderr=subprocess.DEVNULL)
        until("the broker listens", lambda: listens(self.broker_port))
        try:
            self.start()
            self.timed()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        self.broker.terminate()
        self.broker.wait()

    def start(self):
        with (self.folder / "log").open("a") as log:
            command = [self.binary, "run", "--config", self.config]
            self.process = subprocess.Popen(command, stderr=log)
        until("vggd listens", lambda: listens(self.port) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)

    def timed(self):
        """Waits until it is known how long each variant takes."""
        timed = lambda: all(variant["expected_ms"] for variant in self.status()["variants"])
        until("every variant is timed", timed, 5 * PATIENCE)

    def log(self):
        return (self.folder / "log").read_text()

    def status(self):
        with urllib.request.urlopen(f"{self.url}/api/v1/status") as answer:
            return json.load(answer)

    def put(self, name, word):
        request = urllib.request.Request(f"{self.url}/api/v1/{name}", word.encode(), method="PUT")
        urllib.request.urlopen(request).close()

    def reset(self):
        """Puts everything back to how it was at the start, and waits until there is nothing to do."""
        for name, word in [("variant", "auto"), ("budget", "0"), ("pause", "OFF")]:
            self.put(name, word)
        until("no photo is left", lambda: not any(self.incoming.glob("*.jpg")))
        self.done_comparing()

    def done_comparing(self):
        """Waits until no comparison is under way."""
        until("no comparison is under way", lambda: not self.status()["comparing"])

    def drop(self, name):
        """Puts a photo into the folder, as one that was not there before."""
        number = next(self.count)
        part = self.incoming / f".{number}"
        shutil.copy(PHOTOS / name, part)
        part.rename(self.incoming / f"{number:04}-{name}")

    def flow(self, *names, pause=0.25):
        """Drops photos for as long as the context lasts."""
        return Flow(self, names, pause)

    def compare(self, photo):
        """What the command line says of a photo: a card for each variant."""
        command = [self.binary, "compare", "--json", "--runs", "1", "--models", self.set, photo]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [json.loads(line) for line in output.splitlines()]

    def idle_bytes(self, seconds):
        """How much the stream of events says in this time, what it begins with left out."""
        with socket.create_connection(("127.0.0.1", self.port)) as stream:
            host = f"127.0.0.1:{self.port}"
            stream.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            start = received(stream, 2)
            assert start.startswith(b"HTTP/1.1 200") and b"event: status" in start, start
            return len(received(stream, seconds))


def received(stream, seconds):
    """What arrives within this time."""
    end, said = time.monotonic() + seconds, b""
    while (left := end - time.monotonic()) > 0:
        stream.settimeout(left)
        try:
            said += stream.recv(65536)
        except TimeoutError:
            break
    return said


class Flow:
    """Photos that flow into a daemon's folder."""

    def __init__(self, daemon, names, pause):
        self.daemon, self.pause = daemon, pause
        self.names = itertools.cycle(names or ["coffee.jpg", "lemurs.jpg", "cat.jpg"])
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.ended.wait(self.pause):
            self.daemon.drop(next(self.names))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def running(binary):
    """A daemon in a folder that goes when it does."""
    folder = tempfile.TemporaryDirectory(prefix="vggd-browser-")
    return Daemon(binary, folder.name), folder
