"""References: folders, the Hub (a small server that answers like it), base+adapter."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import materialise, open_checkpoint
from modelglue.errors import CheckpointNotFound

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPENER = Path(__file__).with_name("open_references.py")


def test_a_folder_is_found_relative_to_the_root(llamas: list[Path]) -> None:
    checkpoint = open_checkpoint("base", root=llamas[0].parent)
    assert checkpoint.path == llamas[0]
    assert (checkpoint.name, checkpoint.ref) == ("base", "base")


def test_an_absolute_path_does_not_heed_the_root(llamas: list[Path], tmp_path: Path) -> None:
    assert open_checkpoint(str(llamas[0]), root=tmp_path).path == llamas[0]
    assert open_checkpoint(llamas[0]).path == llamas[0]


def test_a_path_that_ends_in_a_dot_has_the_folders_name(
    llamas: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llamas[0])
    assert open_checkpoint(".").name == "base"


def test_a_folder_with_a_plus_in_its_name_is_a_folder(llamas: list[Path], tmp_path: Path) -> None:
    shutil.copytree(llamas[0], tmp_path / "a+b")
    assert open_checkpoint("a+b", root=tmp_path).name == "a+b"


def test_a_plain_checkpoint_is_materialised_as_itself(llamas: list[Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(llamas[0])
    assert materialise(checkpoint, tmp_path / "out") == llamas[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "reference",
    [
        "models/matth",  # has the shape of a name on the Hub, but the folder "models" is here
        "./math",
        "../nowhere/math",
        "/nowhere/math",
        "~/nowhere/math",
        "math",
        "a/b/c",
        "models/",
        "models\\math",
        "org/name@",
        "",
    ],
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    (tmp_path / "models/math").mkdir(parents=True)

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("modelglue.checkpoint.source.fetch", asked)
    with pytest.raises(CheckpointNotFound):
        open_checkpoint(reference, root=tmp_path)


def test_a_typo_in_a_path_names_the_nearest_folder(tmp_path: Path) -> None:
    (tmp_path / "models/math").mkdir(parents=True)
    with pytest.raises(CheckpointNotFound, match=r'did you mean ".*models/math"'):
        open_checkpoint("models/matth", root=tmp_path)
    with pytest.raises(CheckpointNotFound, match=r'did you mean ".*models"'):
        open_checkpoint("./modles/math", root=tmp_path)


class Hub:
    """Answers like the Hugging Face Hub for the folders in `root`, one an `org/name`."""

    def __init__(self, root: Path) -> None:
        self.root, self.fetched = root, list[str]()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.answer_api("/".join(parts[2:4]), parts[4:], body=body)
        elif len(parts) > 4 and parts[2] == "resolve":
            name = "/".join(parts[4:])
            data = (self.hub.root / parts[0] / parts[1] / name).read_bytes()
            if body:
                self.hub.fetched.append(name)
            self.send(200, data, body=body)
        else:
            self.send(404, b"", body=body, code="EntryNotFound")

    def answer_api(self, name: str, rest: list[str], *, body: bool) -> None:
        folder = self.hub.root / name
        revision = rest[1] if len(rest) > 1 else "main"
        if name == "org/gated":
            self.send(403, b"", body=body, code="GatedRepo")
        elif not folder.is_dir():
            self.send(401, b"", body=body, code="RepoNotFound")
        elif revision not in ("main", COMMIT):
            self.send(404, b"", body=body, code="RevisionNotFound")
        else:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [str(path.relative_to(folder)) for path in files]
            if rest[:1] == ["tree"]:
                answer: Any = [
                    {
                        "type": "file",
                        "path": name,
                        "size": path.stat().st_size,
                        "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                    }
                    for name, path in zip(names, files, strict=True)
                ]
            else:
                siblings = [{"rfilename": name} for name in names]
                answer = {"id": name, "sha": COMMIT, "siblings": siblings}
            self.send(200, json.dumps(answer).encode(), body=body)

    def send(self, status: int, data: bytes, *, body: bool, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    sizes = {"num_hidden_layers": 1, "vocab_size": 264}
    both = make_model(root / "org/both", max_shard_size="40KB", **sizes)
    (both / "pytorch_model.bin").write_bytes(b"the same once more")
    (both / "original.pth").write_bytes(b"and again")
    (both / "chat_template.jinja").write_text("{{ messages }}")
    old = make_model(root / "org/old", **sizes)
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    (root / "org/empty").mkdir()
    (root / "org/empty/config.json").write_text("{}")
    server = Hub(root)
    yield server
    server.close()


def open_references(
    *references: str, url: str, home: Path, offline: bool = False
) -> list[dict[str, Any]]:
    """In a process of its own: the client reads its environment when it is imported."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, str(OPENER), *references],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_of_the_hub_is_fetched_and_then_found_offline(hub: Hub, tmp_path: Path) -> None:
    hub.fetched.clear()
    (found,) = open_references("org/both@main", url=hub.url, home=tmp_path)
    expected = Checkpoint.open(hub.root / "org/both")
    assert found == {
        "name": "both",
        "ref": f"org/both@{COMMIT}",
        "fingerprint": expected.fingerprint(),
        "files": sorted(
            path.name
            for path in (hub.root / "org/both").iterdir()
            if path.suffix not in (".bin", ".pth")
        ),
    }
    assert "pytorch_model.bin" not in hub.fetched
    hub.fetched.clear()
    offline = open_references(
        "org/both@main", f"org/both@{COMMIT}", url=hub.url, home=tmp_path, offline=True
    )
    assert offline == [found, found]
    assert hub.fetched == []


def test_bin_weights_are_fetched_where_there_is_nothing_better(hub: Hub, tmp_path: Path) -> None:
    (found,) = open_references("org/old", url=hub.url, home=tmp_path)
    assert "pytorch_model.bin" in found["files"]


def test_what_the_hub_refuses_is_said_in_words(hub: Hub, tmp_path: Path) -> None:
    references = {
        "org/nothing": "neither a folder here nor a model on the Hub",
        "org/gated": "hf auth login",
        "org/both@v9": "has no revision 'v9'",
        "org/empty": "there are no weights",
        "org/bad--name": "could not be fetched from the Hub",
    }
    found = open_references(*references, url=hub.url, home=tmp_path)
    for answer, (reference, words) in zip(found, references.items(), strict=True):
        assert answer["error"] == "CheckpointNotFound"
        assert words in answer["message"], answer
        assert (
            reference.partition("@")[0].split("/")[1] in answer["message"]
            or "snapshots" in (answer["message"])
        )


def test_a_hub_that_cannot_be_reached_is_an_error_in_words(tmp_path: Path) -> None:
    (found,) = open_references("org/both", url="http://127.0.0.1:9", home=tmp_path)
    assert found["error"] == "CheckpointNotFound"
    assert "org/both" in found["message"]
    (found,) = open_references("org/both", url="http://127.0.0.1:9", home=tmp_path, offline=True)
    assert "HF_HUB_OFFLINE forbids" in found["message"]
