"""What stands where weights should is called what it is; damage ends in a message; nothing but tensors is read."""

from __future__ import annotations

import gzip
import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from mutations import damaged
from roboflamingo.weights.files import WeightsError, read_tensors
from roboflamingo.weights.key_names import assign

COUNT = 200


def tensors():
    random = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(12, 10, generator=random) for i in range(4)}


def equal(held):
    wanted = tensors()
    return held.keys() == wanted.keys() and all(torch.equal(held[name], wanted[name]) for name in wanted)


def safetensors(path):
    save_file(tensors(), path)


def archive(path):
    torch.save({"model_state_dict": tensors(), "epoch": 3}, path)


def old_format(path):
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [safetensors, archive, old_format])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights"])
def test_a_file_is_known_by_its_content_not_by_its_name(tmp_path, write, name):
    write(tmp_path / name)
    assert equal(read_tensors(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (bytes(4096), "holds zeros only"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"\n <html>", "web page"),
        (b'{"error": "Repository not found"}', "JSON text"),
        (b"GGUF\x03\0\0\0", "GGUF.*safetensors"),
        (gzip.compress(b"weights", mtime=0), "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"no weights at all", "not a whole safetensors file"),
        (b"PK\x03\x04 and no more", "not a whole PyTorch file"),
        ((1 << 60).to_bytes(8, "little") + b"{", "not a whole safetensors file"),
        (b"\xff" * 64, "not a whole safetensors file"),
    ],
)
def test_other_things_are_called_what_they_are(tmp_path, content, said):
    for name in ("model.safetensors", "checkpoint.pt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"(?s){name}.*{said}"):
            read_tensors(tmp_path / name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_with_the_way_out(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "ViT-L-14.pt"))
    with pytest.raises(WeightsError, match=r"ViT-L-14\.pt is a TorchScript archive.*torch\.jit\.load"):
        read_tensors(tmp_path / "ViT-L-14.pt")


def test_an_archive_of_other_things_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        file.writestr("model.safetensors", b"weights")
    with pytest.raises(WeightsError, match="zip archive and no weights; unpack it"):
        read_tensors(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_what_is_no_state_dict_is_named(tmp_path):
    for held in ([1, 2], {"epoch": 3}, {1: torch.zeros(1)}, torch.zeros(2), {}):
        torch.save(held, tmp_path / "model.pt")
        with pytest.raises(WeightsError, match="holds no state dict"):
            read_tensors(tmp_path / "model.pt")
    torch.save({"a": torch.zeros(2, 2).to_sparse()}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="a is no plain tensor"):
        read_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ('{"weight_map": {"a": "part-2.safetensors"}}', r"names part-2\.safetensors, which .* lacks"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "is no file beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "is no file beside it"),
        ('{"weight_map": {"a": 3}}', "is no file beside it"),
        ('{"weight_map": {"a": ["x"]}}', "no weight_map of names"),
        ('{"weight_map": ["a"]}', "no weight_map of names"),
        ("[]", "no weight_map of names"),
        ('{"weight_map"', "damaged"),
    ],
)
def test_a_bad_index_is_named(tmp_path, index, said):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match=rf"(?s)model\.safetensors\.index\.json.*{said}"):
        read_tensors(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor pytorch_model\.bin.*it holds model\.gguf"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("write", [safetensors, archive, old_format])
def test_damage_never_ends_in_a_traceback(tmp_path, write):
    path = tmp_path / "weights.pt"
    write(path)
    silent = 0
    for content in damaged(path.read_bytes(), COUNT):
        path.write_bytes(content)
        try:
            silent += not equal(read_tensors(path))
        except WeightsError as error:
            assert str(path) in str(error)
    if write is archive:  # which has checksums
        assert silent == 0


def test_damage_of_an_index_never_ends_in_a_traceback(tmp_path):
    save_file(tensors(), tmp_path / "part-1.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors(), "part-1.safetensors")}).encode()
    for content in damaged(index, COUNT):
        (tmp_path / "model.safetensors.index.json").write_bytes(content)
        try:
            assert equal(read_tensors(tmp_path))
        except WeightsError as error:
            assert str(tmp_path) in str(error)


@pytest.mark.parametrize("meta", [False, True])
def test_numbers_that_are_none_and_quantised_weights_are_refused(meta):
    with torch.device("meta" if meta else "cpu"):
        module = torch.nn.Linear(3, 2)
    bias = torch.zeros(2)
    for bad in (float("nan"), float("inf")):
        weight = torch.zeros(2, 3)
        weight[1, 2] = bad
        with pytest.raises(WeightsError, match=r"file holds numbers that are not finite. in: weight"):
            assign(module, {"weight": weight, "bias": bias}, [], "file")
    with pytest.raises(WeightsError, match="file holds numbers that are not finite"):
        assign(module, {"weight": torch.full((2, 3), 1e39, dtype=torch.float64), "bias": bias}, [], "file")
    for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn):
        with pytest.raises(WeightsError, match=r"shape: weight is .*quantised"):
            assign(module, {"weight": torch.zeros(2, 3).to(dtype), "bias": bias}, [], "file")


def test_safetensors_that_begin_as_a_pickle_does_are_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    for length in range(300):  # the header's length comes first; of some lengths the first byte is a pickle's
        save_file(tensors(), path, {"note": "x" * length})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80 and equal(read_tensors(path))
