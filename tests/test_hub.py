"""Published weights in the Hugging Face cache: found, checked, or asked for by name."""

from __future__ import annotations

import hashlib

import pytest

from roboflamingo.cli.weights import main


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
    main(["get", "mpt-1b", "--cache", str(hub)])
    said = " ".join(capsys.readouterr().out.split())
    assert "language model mosaicml/mpt-1b-redpajama-200b: 0.00 GB, licence apache-2.0, hashes right" in said
    assert str(next(hub.glob("models--openflamingo*/snapshots/*"))) in said


def test_a_broken_download_is_noticed_and_removed(hub, capsys):
    path = next(hub.glob("models--openflamingo*/snapshots/*/checkpoint.pt"))
    path.resolve().write_bytes(b"y" * 1000)
    with pytest.raises(SystemExit):
        main(["get", "mpt-1b", "--cache", str(hub)])
    assert "checkpoint.pt is not what the hub has" in capsys.readouterr().err
    assert not path.exists()


def test_without_weights_and_network_it_says_which_files_to_bring(hub, capsys):
    with pytest.raises(SystemExit):
        main(["get", "rpj-3b", "--cache", str(hub)])
    said = capsys.readouterr().err
    assert "RedPajama-INCITE-Base-3B-v1 is not in the cache" in said and "*.safetensors" in said
