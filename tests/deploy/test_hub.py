"""From and to a hub: a server in this process that speaks as much of a hub's language as huggingface_hub asks for."""

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy import compact, hub
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun, open_run
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.deploy.policy import PolicyBackbone
from rgb2pc_lib.deploy.share import model_card, push, share
from rgb2pc_lib.errors import InputError

sys.path.insert(0, str(PROJECT / "tools"))
import share as tool  # noqa: E402

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)


class Hub:
    """Repositories as commits: the files of each, by name. What is asked is noted."""

    def __init__(self):
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}  # repository -> (commit, files), oldest first
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.taken = "good"  # the token
        self.large: dict[str, bytes] = {}  # files that go another way, by what is in them

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes] | None:
        commits = self.commits.get(repository, [])
        return next((files for commit, files in commits[::-1] if revision in ("main", commit)), None)

    def add(self, repository: str, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(repr((repository, len(self.commits[repository]))).encode()).hexdigest()
        self.commits[repository].append((commit, files))
        return commit


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, value=None, status=200, body=None, **headers):
            body = json.dumps(value).encode() if body is None else body
            self.send_response(status)
            for name, text in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            if found := re.fullmatch(r"/api/models/(\w+/[\w-]+)(?:/(revision|tree)/([\w.]+))?", path):
                repository, what, revision = found.groups()
                return self.about(repository, what, revision or "main")
            if not (found := re.fullmatch(r"/(\w+/[\w-]+)/resolve/(\w+)/(.+)", path)):
                return self.answer({"error": "Not found"}, 404)
            repository, revision, name = found.groups()
            body = hub.files(repository, revision)[name]
            self.answer(body=body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=revision)

        def about(self, repository, what, revision):
            if repository not in hub.commits:
                return self.answer({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
            files = hub.files(repository, revision)
            if files is None:
                return self.answer({"error": "Revision not found"}, 404, X_Error_Code="RevisionNotFound")
            if what == "tree":
                rows = {name: (len(body), hashlib.sha1(body).hexdigest()) for name, body in files.items()}
                return self.answer([{"type": "file", "path": n, "size": s, "oid": o} for n, (s, o) in rows.items()])
            commits = [c for c, _ in hub.commits[repository] if revision in ("main", c)]
            siblings = [{"rfilename": name} for name in files]
            known = {"id": repository, "private": repository in hub.private, "siblings": siblings}
            self.answer(known | {"sha": commits[-1]})

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.large[hashlib.sha256(body).hexdigest()] = body
            self.answer()

        def do_POST(self):
            hub.asked.append(f"POST {self.path}")
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != f"Bearer {hub.taken}":
                return self.answer({"error": "Invalid credentials"}, 401)
            if self.path == "/api/repos/create":
                wanted = json.loads(sent)
                repository = f"{wanted['organization']}/{wanted['name']}"
                there = repository in hub.commits
                if not there:
                    hub.commits[repository] = []
                    hub.add(repository, {".gitattributes": b"*"})
                    hub.private |= {repository} if wanted.get("visibility") == "private" else set()
                return self.answer({"url": f"{constants.ENDPOINT}/{repository}"}, 409 if there else 200)
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if self.path.endswith("/info/lfs/objects/batch"):
                upload = {"upload": {"href": f"{constants.ENDPOINT}/large/"}}
                objects = [o | {"actions": upload} for o in json.loads(sent)["objects"]]
                return self.answer({"objects": objects, "transfer": "basic"})
            repository = re.match(r"/api/models/(\w+/[\w-]+)/", self.path)[1]
            if "/preupload/" in self.path:
                files = [
                    {"path": f["path"], "uploadMode": "lfs" if "safetensors" in f["path"] else "regular"}
                    for f in json.loads(sent)["files"]
                ]
                return self.answer({"files": [f | {"shouldIgnore": False} for f in files]})
            changed = dict(hub.files(repository))
            for line in map(json.loads, sent.splitlines()):
                key, value = line["key"], line["value"]
                if key == "file":
                    changed[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    changed[value["path"]] = hub.large[value["oid"]]
                elif key == "deletedFile":
                    del changed[value["path"]]
            commit = hub.add(repository, changed)
            self.answer({"commitUrl": f"{constants.ENDPOINT}/{repository}/commit/{commit}", "commitOid": commit})

    return Handler


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub of its own, which huggingface_hub takes for the one of HF_ENDPOINT; its cache is empty."""
    there = Hub()
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(there))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    there.stop = lambda: (http.shutdown(), http.server_close())
    address = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)  # these two are what HF_ENDPOINT sets when it is imported
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", there.taken)
    monkeypatch.chdir(tmp_path)
    yield there
    there.stop()


def made(folder, seed=None, **summary):
    """A finished compact student's folder; without a seed its weights are none."""
    folder.mkdir()
    run = CompactRun(folder)
    if seed is None:
        run.file("model.safetensors").write_bytes(b"none")
    else:
        run.save_compact(Compact("resnet18", 32, 8, seed=seed), "resnet18")
    run.file("config.json").write_text(CompactConfig(run=str(folder / "fused"), size=32).to_json())
    found = {"n_train": 70, "n_more": 0, "n_held_out": 24, "held-out": {"R@1": 0.125}}
    run.file("summary.json").write_text(json.dumps(found | summary))
    return run


def test_a_run_goes_to_a_hub_and_comes_back_equal(server, tmp_path, capsys):
    run = made(tmp_path / "run", seed=5)
    run.file("model.onnx").write_text("x")
    assert tool.main([str(run.folder), "--push", "somebody/opener"]) == 0
    first = capsys.readouterr().out.split("/commit/")[1].strip()
    assert server.files("somebody/opener").keys() == {
        ".gitattributes", "README.md", "config.json", "model.onnx", "model.safetensors", "summary.json",
    }  # fmt: skip
    card = server.files("somebody/opener")["README.md"].decode()
    assert 'Embedder.from_run("somebody/opener")' in card and "this/folder" not in card
    assert str(tmp_path).encode() not in b"".join(server.files("somebody/opener").values())

    embedder = Embedder.from_run("somebody/opener", device="cpu")
    assert embedder.name == "somebody/opener"
    expected = Embedder.from_run(run, device="cpu")(IMAGES)
    assert np.array_equal(embedder(IMAGES), expected)
    names = {path.name for path in open_run("somebody/opener").folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "summary.json"}  # no code, and no more than is needed

    other = made(tmp_path / "other", seed=6)  # a second upload: the ONNX file of the first would be another network's
    push(share(other, tmp_path / "shared"), "somebody/opener")
    assert "model.onnx" not in server.files("somebody/opener") and ".gitattributes" in server.files("somebody/opener")
    now = Embedder.from_run("somebody/opener", device="cpu")(IMAGES)
    assert np.array_equal(now, Embedder.from_run(other, device="cpu")(IMAGES)) and not np.array_equal(now, expected)
    then = Embedder.from_run("somebody/opener", device="cpu", revision=first)(IMAGES)
    assert np.array_equal(then, expected)

    server.stop()  # what was fetched stays
    assert np.array_equal(Embedder.from_run("somebody/opener", device="cpu")(IMAGES), now)
    server.asked.clear()
    eyes = PolicyBackbone.from_run("somebody/opener", offline=True)
    assert eyes.embed_dim == 8 and not server.asked
    with pytest.raises(
        InputError, match="somebody/opener: no folder here, .* offline, and never fetched into this cac"
    ):
        PolicyBackbone.from_run("somebody/opener", offline=True, cache=tmp_path / "elsewhere")


def test_another_cache_is_filled_where_it_is_named(server, tmp_path):
    push(share(made(tmp_path / "run"), tmp_path / "shared"), "somebody/opener", private=True)
    assert "somebody/opener" in server.private
    found = open_run("somebody/opener", cache=tmp_path / "mine")
    assert found.folder.is_relative_to(tmp_path / "mine") and not (tmp_path / "hub_cache").exists()


def test_a_folder_here_always_wins(server, tmp_path, monkeypatch):
    push(share(made(tmp_path / "run"), tmp_path / "shared"), "somebody/opener")
    (tmp_path / "somebody").mkdir()
    mine = made(tmp_path / "somebody" / "opener", seed=9)
    server.asked.clear()
    assert open_run("somebody/opener").folder.resolve() == mine.folder
    with pytest.raises(InputError, match="somebody/frist: holds no run"):  # a slip beside what is here
        Embedder.from_run("somebody/frist")
    for name in ("nowhere", "/no/where", "a/b/c", str(tmp_path / "nowhere")):
        with pytest.raises(InputError, match="holds no run .no config.json."):
            Embedder.from_run(name)
    with pytest.raises(InputError, match="tools/frist: holds no run"):  # beside what is in the project
        Embedder.from_run("tools/frist")
    monkeypatch.setattr(compact, "PROJECT", tmp_path)
    monkeypatch.setattr(hub, "PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path / "somebody")  # as notebooks run in a folder of the project
    assert open_run("somebody/opener").folder == mine.folder
    assert Embedder.from_run("somebody/opener", device="cpu").name == "opener"
    assert not server.asked
    with pytest.raises(InputError, match="leave the revision out"):
        Embedder.from_run("somebody/opener", revision="v1")


def test_what_a_hub_does_not_give_is_told(server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nobody/none: no folder here, .* none of that name, .*hf auth login"):
        Embedder.from_run("nobody/none")
    server.commits["somebody/data"] = []
    server.add("somebody/data", {"README.md": b"", "weights.bin": b""})
    with pytest.raises(InputError, match="holds no finished run under this name .no config.json, summ"):
        Embedder.from_run("somebody/data")
    with pytest.raises(InputError, match="somebody/data at v9: .* no such revision"):
        Embedder.from_run("somebody/data", revision="v9")
    assert not [line for line in server.asked if "/resolve/" in line]
    server.stop()
    with pytest.raises(InputError, match="other/run: .* the hub did not answer .* check network and HF_ENDPOINT"):
        Embedder.from_run("other/run")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="other/run: .* offline, and never fetched"):
        Embedder.from_run("other/run")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'rgb2pc\[hub\]'"):
        Embedder.from_run("other/run")


def test_a_refused_upload_is_told(server, tmp_path, capsys, monkeypatch):
    run = made(tmp_path / "run")
    server.commits["somebody/public"] = []
    server.add("somebody/public", {})
    assert tool.main([str(run.folder), "--push", "somebody/public", "--private"]) == 2
    assert "is public there already" in capsys.readouterr().err and server.files("somebody/public") == {}
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert tool.main([str(run.folder), "--push", "somebody/new"]) == 2
    assert re.search("somebody/new: not uploaded: .*hf auth login", capsys.readouterr().err)
    for wrong in (["--push", "opener"], [], [str(tmp_path / "out"), "--private"]):
        assert tool.main([str(run.folder), *wrong]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[1] for line in said] == ["expected", "expected", "--private:"]
    run.file("notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"expected what tools/share.py writes, not so: notes.txt"):
        push(run.folder, "somebody/new")


def test_a_card_that_somebody_added_to_is_kept(server, tmp_path):
    shared = share(made(tmp_path / "run"), tmp_path / "shared")
    card = shared / "README.md"
    card.write_text(card.read_text().replace("license: other", "license: mit") + "\nWritten by hand.\n")
    assert tool.main([str(shared), "--push", "somebody/opener"]) == 0
    there = server.files("somebody/opener")["README.md"].decode()
    assert "license: mit" in there and there.endswith("Written by hand.\n") and 'from_run("somebody/opener")' in there


def test_the_card_passes_licences_on_and_says_what_it_does_not_know(tmp_path):
    known = {"licences": {"efficientnet": "Apache-2.0", "vggt": "", "mine": ""}}
    card = model_card(made(tmp_path / "run", **known))
    assert "- Expert efficientnet: Apache-2.0, as its features say." in card
    assert "- Expert vggt: CC BY-NC 4.0, not for commercial use, if it had its usual weights" in card
    assert "- Expert mine: not known to this card" in card and "- Teacher and recordings: not known" in card
    assert card.startswith("---\nlibrary_name: rgb2pc\nlicense: other\n")
    assert "- Experts behind it: not known to this card" in model_card(made(tmp_path / "older"))


def test_the_names_of_repositories():
    assert [hub.is_repository(n) for n in ("a/b", "a-b/c.d_e", "a", "a/b/c", "/a/b", "a/", "~/b", "../b")] == [
        True, True, False, False, False, False, False, False,
    ]  # fmt: skip
    assert huggingface_hub.__version__  # the package that is asked
