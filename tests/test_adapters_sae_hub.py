"""SAEs from the hub: a small server on the loopback interface plays it, huggingface_hub itself does the rest."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import tests.sae_families as f
from darkmatter.adapters import load_any_sae
from darkmatter.errors import FileFormatError, InputError

constants = pytest.importorskip("huggingface_hub.constants", reason="needs the `models` extra (huggingface_hub)")
file_download = pytest.importorskip("huggingface_hub.file_download")
pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore")]

COMMIT = "a" * 40
KNOWN = {"main", "v1", COMMIT}
REPO = "google/gemma-scope-9b-pt-res"
FOLDER = "layer_20/width_16k/average_l0_57"


class Server(ThreadingHTTPServer):
    """A hub with one repository, which may be gated or move on while it is read, and a log of what was asked for."""

    root: Path
    gated: bool = False
    served: int = 0
    moves_after: int = 1000
    log: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.log.append(path)
        api, name = path.startswith("api/models/"), path.removeprefix("api/models/")
        if not name.startswith(REPO):
            self.send(404, {"X-Error-Code": "RepoNotFound"})
        elif api and "/tree/" in name:
            self.tree(name.split("/tree/")[1])
        elif api:
            known = (name.partition("/revision/")[2] or "main") in KNOWN
            info = json.dumps({"id": REPO, "modelId": REPO, "sha": COMMIT, "tags": [], "siblings": []})
            self.send(200, {}, info) if known else self.send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self.file(name.split("/resolve/")[1].partition("/")[2], body=body)

    def tree(self, place: str) -> None:
        inside = place.removeprefix(COMMIT).strip("/")
        folder = self.server.root / inside
        if not folder.is_dir():
            return self.send(404, {"X-Error-Code": "EntryNotFound"})
        entries = [
            {"type": "file", "oid": "0" * 40, "size": p.stat().st_size, "path": f"{inside}/{p.name}".strip("/")}
            if p.is_file()
            else {"type": "directory", "oid": "0" * 40, "path": f"{inside}/{p.name}".strip("/")}
            for p in folder.iterdir()
        ]
        return self.send(200, {}, json.dumps(entries))

    def file(self, inside: str, *, body: bool) -> None:
        if self.server.gated:
            return self.send(403, {"X-Error-Code": "GatedRepo"})
        if not (self.server.root / inside).is_file():
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        data = (self.server.root / inside).read_bytes()
        self.server.served += 1
        commit = COMMIT if self.server.served <= self.server.moves_after else "b" * 40
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
        return self.send(200, headers, data, body=body)

    def send(self, code: int, headers: dict[str, str], data: str | bytes = b"", *, body: bool = True) -> None:
        content = data.encode() if isinstance(data, str) else data
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server(("127.0.0.1", 0), Handler)
    served.root, served.log = tmp_path / "served", []
    served.root.mkdir()
    address = f"http://127.0.0.1:{served.server_address[1]}"
    for name, value in (
        ("ENDPOINT", address),
        ("HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),
    ):
        monkeypatch.setattr(constants, name, value, raising=False)
        if hasattr(file_download, name):  # older versions copy the constants
            monkeypatch.setattr(file_download, name, value)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


def refused(place: str, words: str, **options: Any) -> None:
    with pytest.raises((InputError, FileFormatError), match=words) as caught:
        load_any_sae(place, **options)
    assert "\n" not in str(caught.value)


def test_only_what_is_needed_is_fetched(server: Server) -> None:
    forward = f.gemmascope(server.root / FOLDER)
    f.gemmascope(server.root / "layer_20" / "width_32k" / "average_l0_57")
    (server.root / FOLDER / "README.md").write_text("not needed")
    loaded = load_any_sae(f"{REPO}/{FOLDER}", dtype="float64")
    x = f.tokens()
    assert np.abs(loaded(x).numpy() - forward(f.doubles(x))).max() < 1e-12
    assert (loaded.family, loaded.revision, loaded.site, loaded.l0) == ("gemmascope", COMMIT, "resid_post:20", 57)
    assert (loaded.location, loaded.model) == (f"{REPO}/{FOLDER}", "gemma-2-9b")
    fetched = {path.split("/resolve/main/")[1] for path in server.log if "/resolve/" in path}
    assert fetched == {f"{FOLDER}/params.npz"}


@pytest.mark.parametrize("by", ["@", "option", "file"])
def test_a_revision_and_a_file_can_be_named(server: Server, by: str) -> None:
    f.dictionary_learning(server.root / "run" / "trainer_0", "BatchTopKSAE")
    f.gemmascope(server.root / "run" / "trainer_0")
    place = f"{REPO}/run/trainer_0"
    if by == "@":
        loaded = load_any_sae(place + "/ae.pt@v1")
    elif by == "option":
        loaded = load_any_sae(place, revision="v1", family="dictionary_learning")
    else:
        loaded = load_any_sae(place + "/ae.pt")
    assert (loaded.family, loaded.site, loaded.revision) == ("dictionary_learning", "resid_post:8", COMMIT)
    assert any("/revision/v1" in path for path in server.log) is (by != "file")


def test_families_with_a_configuration(server: Server) -> None:
    f.sparsify(server.root / "layers.10")
    f.saelens(server.root / "blocks.3.hook_resid_pre", "jumprelu", "expected_average_only_in")
    assert load_any_sae(f"{REPO}/layers.10").site == "resid_post:10"
    loaded = load_any_sae(f"{REPO}/blocks.3.hook_resid_pre")
    assert loaded.normalisation is not None and "0.4 · x" in loaded.normalisation  # from activation_scaler.json


def test_shards_are_fetched_by_their_index(server: Server) -> None:
    folder = server.root / "sae"
    forward = f.saelens(folder)
    weights = load_file(folder / "sae_weights.safetensors")
    (folder / "sae_weights.safetensors").unlink()
    save_file({"W_enc": weights.pop("W_enc")}, folder / "1.safetensors")
    save_file(weights, folder / "2.safetensors")
    index = folder / "sae_weights.safetensors.index.json"
    shards = {"W_enc": "1.safetensors", **dict.fromkeys(weights, "2.safetensors")}
    index.write_text(json.dumps({"weight_map": shards}))
    x = f.tokens()
    loaded = load_any_sae(f"{REPO}/sae", dtype="float64")
    assert np.abs(loaded(x).numpy() - forward(f.doubles(x))).max() < 1e-12
    shards["W_enc"] = "../../1.safetensors"
    index.write_text(json.dumps({"weight_map": shards}))
    constants.HF_HUB_CACHE += "-2"
    refused(f"{REPO}/sae", "expected a plain .safetensors file name in the same folder")
    assert not any(".." in path for path in server.log)


def test_offline_only_the_cache_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    f.gemmascope(server.root / FOLDER)
    f.sparsify(server.root / "layers.10")
    for place in (FOLDER, "layers.10"):
        load_any_sae(f"{REPO}/{place}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.log.clear()
    assert load_any_sae(f"{REPO}/{FOLDER}").revision == COMMIT  # the same command as before
    assert load_any_sae(f"{REPO}/{FOLDER}", revision=COMMIT).revision == COMMIT
    assert load_any_sae(f"{REPO}/{FOLDER}/params.npz@{COMMIT}").family == "gemmascope"
    assert load_any_sae(f"{REPO}/layers.10").site == "resid_post:10"
    refused(f"{REPO}/layers.11", "not in the hub's cache, and HF_HUB_OFFLINE is set: download it once")
    assert server.log == []


def test_what_the_hub_refuses_is_one_line(server: Server) -> None:
    f.gemmascope(server.root / FOLDER)
    refused("google/nothing/layer_20", "the repository does not exist or is private: check owner/name")
    refused(f"{REPO}/{FOLDER}", "the revision does not exist: check branch", revision="v9")
    refused(f"{REPO}/layer_99", "no such folder or file: check the path")
    refused(f"{REPO}/{FOLDER}/other.npz", "no such folder or file: check the path")
    refused(f"{REPO}/layer_20", r"no SAE of a known family \(found: width_16k\)")
    server.gated = True
    refused(f"{REPO}/{FOLDER}", "it is gated: accept its terms on the hub, then run `hf auth login`")


def test_files_of_two_commits_are_not_mixed(server: Server) -> None:
    f.sparsify(server.root / "layers.10")
    server.moves_after = 2
    refused(f"{REPO}/layers.10", "changed on the hub while it was read: run the command again")


def test_no_network_is_one_line(server: Server) -> None:
    server.shutdown()
    server.server_close()
    refused(f"{REPO}/{FOLDER}", "is no local path and cannot be read from the hub: .*check the network")


@pytest.mark.parametrize(
    "place", ["owner/name/../../etc", "owner/name//x", "own er/name", "-owner/name", "owner/na:me", "../owner/name"]
)
def test_places_that_are_no_hub_id(place: str, server: Server) -> None:
    refused(place, "neither a local path nor a hub id|does not exist")
    assert server.log == []


def test_a_revision_is_named_once(server: Server) -> None:
    refused(f"{REPO}/x@v1", "names a revision and revision is 'v2', expected one of the two", revision="v2")
    assert server.log == []


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(f"{REPO}/{FOLDER}", r"is no local path, and huggingface_hub cannot be imported .*pip install 'darkmatter\[")
