"""Published weights in the Hugging Face cache: found, checked, or asked for by name."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from published import publish
from roboflamingo.cli.main import main
from roboflamingo.weights.files import WeightsError
from roboflamingo.weights.hub import CHECKPOINT, CLIP, LANGUAGE_FILES, snapshot
from roboflamingo.weights.making import make_policy


def hub_layout(cache, name, files):
    """A repository in the layout of the Hugging Face cache: blobs by their hashes, and links to them."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = folder / "snapshots" / ("a" * 40), folder / "blobs"
    for path in (snapshot, blobs, folder / "refs"):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    for file, content in files.items():
        large = not file.endswith((".md", ".json"))
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content)
        digest = (hashlib.sha256(content) if large else git).hexdigest()
        (blobs / digest).write_bytes(content)
        (snapshot / file).symlink_to(blobs / digest)
    return snapshot


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache with all that mpt-1b needs, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    card = b"---\nlicense: apache-2.0\n---\n# A model\n"
    weights = {"model.safetensors": b"weights", "config.json": b"{}", "README.md": card}
    hub_layout(tmp_path, "mosaicml/mpt-1b-redpajama-200b", weights)
    hub_layout(tmp_path, "timm/vit_large_patch14_clip_224.openai", {"open_clip_model.safetensors": b"clip"})
    hub_layout(tmp_path, "openflamingo/OpenFlamingo-3B-vitl-mpt1b", {"checkpoint.pt": b"x" * 1000, "README.md": b"# x"})
    return tmp_path


def test_weights_are_found_and_described(hub, capsys):
    main(["weights", "get", "mpt-1b", "--cache", str(hub)])
    said = " ".join(capsys.readouterr().out.split())
    assert "language model mosaicml/mpt-1b-redpajama-200b: 0.00 GB, licence apache-2.0, hashes right" in said
    assert str(next(hub.glob("models--openflamingo*/snapshots/*"))) in said
    assert f"export HF_HUB_CACHE={hub}" in said


def test_a_broken_download_is_noticed_and_removed(hub, capsys):
    path = next(hub.glob("models--openflamingo*/snapshots/*/checkpoint.pt"))
    path.resolve().write_bytes(b"y" * 1000)
    with pytest.raises(SystemExit):
        main(["weights", "get", "mpt-1b", "--cache", str(hub)])
    assert "checkpoint.pt is not what the hub has" in capsys.readouterr().err
    assert not path.exists()


def test_without_weights_and_network_it_says_which_files_to_bring(hub, capsys):
    with pytest.raises(SystemExit):
        main(["weights", "get", "rpj-3b", "--cache", str(hub)])
    said = capsys.readouterr().err
    assert "RedPajama-INCITE-Base-3B-v1 is not in the cache" in said and "model*.safetensors" in said


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: one repository with the same model in two formats."""

    files: ClassVar = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"the same weights",
        "modeling.py": b"code",
        "onnx/model.onnx": b"another format",
    }

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/someone/model/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            self.answer(json.dumps(entries).encode(), "application/json")
        elif path.startswith("/api/models/someone/model"):
            siblings = [{"rfilename": name} for name in self.files]
            facts = {"id": "someone/model", "sha": "a" * 40, "siblings": siblings, "tags": [], "downloads": 0}
            self.answer(json.dumps(facts).encode(), "application/json")
        elif path.startswith(f"/someone/model/resolve/{'a' * 40}/") and path.split("/", 5)[5] in self.files:
            self.answer(self.files[path.split("/", 5)[5]], "application/octet-stream")
        else:
            self.send_error(404)

    def answer(self, content, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def served(monkeypatch):
    """The address of a hub on this machine, which the client asks."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("lacks", ["", "model.safetensors"])
def test_one_format_is_downloaded_and_found_again_offline(served, tmp_path, monkeypatch, lacks):
    monkeypatch.setattr(Hub, "files", {name: content for name, content in Hub.files.items() if name != lacks})
    folder = snapshot("someone/model", LANGUAGE_FILES, tmp_path)
    kept = "pytorch_model.bin" if lacks else "model.safetensors"
    assert {path.name for path in folder.iterdir()} == {"config.json", kept}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert snapshot("someone/model", LANGUAGE_FILES, tmp_path) == folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("small"), "mpt")


def from_sources(small, language, vision, checkpoint):
    """A policy from these sources, and one from the files themselves, which it should equal."""
    config = small.config()
    backbone = replace(
        config.backbone,
        language=replace(config.backbone.language, source=language),
        vision=replace(config.backbone.vision, source=vision),
        checkpoint=checkpoint,
    )
    return make_policy(replace(config, backbone=backbone)), make_policy(config)


def assert_equal(made, wanted):
    for name, tensor in wanted.backbone.named_parameters():
        if "perceiver_further" not in name and "wte" not in name:
            assert torch.equal(made.get_parameter(f"backbone.{name}"), tensor), name


def test_what_get_brought_into_another_cache_is_found_by_the_variable_that_it_names(small, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    language = {path.name: path.read_bytes() for path in small.language.iterdir()}
    clip = {"open_clip_model.safetensors": small.vision.read_bytes()}
    hub_layout(tmp_path, "someone/small", language)
    hub_layout(tmp_path, "timm/vit_large_patch14_clip_224.openai", clip)
    hub_layout(tmp_path, "someone/flamingo", {"checkpoint.pt": small.checkpoint.read_bytes()})
    sources = ("someone/small", "ViT-L-14/openai", "someone/flamingo")
    with pytest.raises(
        WeightsError, match=r"HF_HUB_OFFLINE is set.*weights get --cache FOLDER.*set HF_HUB_CACHE=FOLDER"
    ):
        from_sources(small, *sources)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # what the variable sets at the start
    assert_equal(*from_sources(small, *sources))


def test_folders_that_the_message_asks_for_are_taken(small, tmp_path):
    for folder, name, file in (("clip", CLIP, small.vision), ("flamingo", CHECKPOINT, small.checkpoint)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(file.read_bytes())
    assert_equal(*from_sources(small, str(small.language), str(tmp_path / "clip"), str(tmp_path / "flamingo")))
    (tmp_path / "clip" / CLIP).rename(tmp_path / "clip" / "other.pt")
    with pytest.raises(WeightsError, match=r"clip has no open_clip_model\.safetensors; it holds other\.pt"):
        from_sources(small, str(small.language), str(tmp_path / "clip"), str(tmp_path / "flamingo"))


@pytest.mark.parametrize(
    ("language", "vision", "said"),
    [
        ("/no/such/folder", None, r"/no/such/folder is neither a file or folder here nor a name on the hub"),
        (None, "/no/such.pt", r"vision.source '/no/such.pt' is neither a file nor a folder"),
        (None, "ViT-L-14/nobody", r"ViT-L-14/nobody"),
        ("file", None, r"is a file; give a GGUF file, or the folder"),
    ],
)
def test_a_source_that_is_nothing_is_named(small, tmp_path, language, vision, said):
    (tmp_path / "file").touch()
    language = str(tmp_path / "file") if language == "file" else language or str(small.language)
    with pytest.raises(WeightsError, match=said):
        from_sources(small, language, vision or str(small.vision), str(small.checkpoint))
