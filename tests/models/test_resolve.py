"""Names become local directories: directories, the embedded model, and four hubs served on 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from paddlesft.errors import EnvironmentProblem, ModelDirectoryError
from paddlesft.models.download import HubError
from paddlesft.models.resolve import find_model, resolve_model, split_hub
from tests.models.loopback_hub import LoopbackHub

HUBS = ("huggingface", "modelscope", "aistudio", "bos")
NAME = "acme/tiny"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it lies on a hub: real safetensors of torch layout, next to files that nobody needs here."""
    import numpy as np
    from safetensors.numpy import save_file

    directory = tmp_path_factory.mktemp("published")
    random = np.random.default_rng(0)
    h, heads, kv, inner, vocab = 16, 4, 2, 24, 4000
    shapes = {"model.embed_tokens.weight": (vocab, h), "model.norm.weight": (h,), "lm_head.weight": (vocab, h)}
    layer = "model.layers.0."
    shapes |= {f"{layer}{n}.weight": (h,) for n in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {f"{layer}self_attn.{n}_proj.weight": (h, h) for n in "qo"}
    shapes |= {f"{layer}self_attn.{n}_proj.weight": (h * kv // heads, h) for n in "kv"}
    shapes |= {f"{layer}mlp.{n}_proj.weight": (inner, h) for n in ("gate", "up")}
    shapes |= {f"{layer}mlp.down_proj.weight": (h, inner)}
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 4000, "hidden_size": 16,'
        ' "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,'
        ' "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "tie_word_embeddings": false, "torch_dtype": "float32"}'
    )
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (directory / "pytorch_model.bin").write_bytes(b"the same weights once more")
    (directory / "README.md").write_text("a model card")
    return directory


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    server = LoopbackHub({NAME: published})
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "AISTUDIO_ENDPOINT", "PPNLP_ENDPOINT"):
        monkeypatch.setenv(variable, server.url)
    monkeypatch.setenv("PADDLESFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    unset = (
        "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "MODELSCOPE_CACHE", "PPNLP_HOME",
        "AISTUDIO_ACCESS_TOKEN", "AISTUDIO_HUB_CACHE", "PADDLESFT_HUB", "PADDLESFT_OFFLINE", "from_modelscope",
    )  # fmt: skip
    for variable in unset:
        monkeypatch.delenv(variable, raising=False)
    yield server
    server.close()


@pytest.mark.parametrize("source", HUBS)
def test_download_brings_what_a_model_directory_needs(source: str, hub: LoopbackHub, published: Path) -> None:
    found = find_model(NAME, hub=source)
    names = {path.name for path in found.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer_config.json"}
    for name in names:
        assert (found / name).read_bytes() == (published / name).read_bytes()
    assert not list(found.parent.rglob("*.part")) and not list(found.parent.glob("*.partial"))


def test_the_result_is_converted_and_loads(hub: LoopbackHub) -> None:
    from paddlesft.models import load_model

    assert resolve_model(NAME).name.startswith("acme-tiny-")
    directory = resolve_model(f"bos:{NAME}")
    assert (directory / "paddlesft.json").is_file()
    assert load_model(directory).config.num_key_value_heads == 2


@pytest.mark.parametrize("source", HUBS)
def test_second_time_nothing_is_downloaded(source: str, hub: LoopbackHub) -> None:
    first = find_model(NAME, hub=source)
    before = hub.fetched("model.safetensors")
    assert find_model(NAME, hub=source) == first
    assert hub.fetched("model.safetensors") == before == 1


@pytest.mark.parametrize("source", HUBS)
def test_offline_uses_the_cache_and_says_what_is_not_in_it(
    source: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_model(NAME, hub=source)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert find_model(NAME, hub=source) == first
    with pytest.raises(HubError, match=r"acme/other from .* is not on this machine, and the network is switched off"):
        find_model("acme/other", hub=source)
    assert len(hub.requests) == asked


@pytest.mark.parametrize("source", HUBS)
def test_unknown_model_names_the_hub_and_the_other_hubs(source: str, hub: LoopbackHub) -> None:
    with pytest.raises(HubError, match=rf"{hub.url}\) has no model 'acme/typo'.*(?s:.*)modelscope:NAME"):
        find_model("acme/typo", hub=source)


@pytest.mark.parametrize(
    ("source", "variable"),
    [("huggingface", "HF_TOKEN"), ("modelscope", "MODELSCOPE_API_TOKEN"), ("aistudio", "AISTUDIO_ACCESS_TOKEN")],
)
def test_private_models_need_the_token(
    source: str, variable: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "secret-token"
    with pytest.raises(HubError, match=variable):
        find_model(NAME, hub=source)
    monkeypatch.setenv(variable, "secret-token")
    assert (find_model(NAME, hub=source) / "model.safetensors").is_file()


@pytest.mark.parametrize("source", HUBS[1:])
def test_broken_connection_goes_on_where_it_stopped(source: str, hub: LoopbackHub, published: Path) -> None:
    hub.cut["model.safetensors"] = 200_000
    found = find_model(NAME, hub=source)
    assert (found / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()
    ranges = [given for method, path, given in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=196608-"]  # whole blocks are kept


@pytest.mark.parametrize("source", HUBS)
def test_interrupted_download_is_never_taken_for_a_model(
    source: str, hub: LoopbackHub, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program dies while the weights come; the next start completes the download."""
    from paddlesft.models import download

    monkeypatch.setattr(download, "ATTEMPTS", 1)
    real, failing = LoopbackHub.send_file, {"on": True}

    def send_file(self: LoopbackHub, request: object, path: Path, body: bool) -> None:
        if failing["on"] and body and path.name == "model.safetensors":
            self.cut[path.name] = 200_000 if "Range" not in request.headers else 0
        real(self, request, path, body)

    monkeypatch.setattr(LoopbackHub, "send_file", send_file)
    with pytest.raises(HubError, match=r"(?s)What has come is kept; the same command goes on from there"):
        find_model(NAME, hub=source)
    failing["on"] = False
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=r"interrupted|not on this machine"):
        find_model(NAME, hub=source)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = find_model(NAME, hub=source)
    assert (found / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()
    ranges = [given for method, path, given in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges[0] is None
    if source != "huggingface":  # its library keeps blocks of 10 MB
        assert ranges[-1] == "bytes=196608-"


def test_damaged_download_is_thrown_away(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ModelScope announces checksums: other bytes of the same length are refused."""
    real = LoopbackHub.reply

    def reply(self: LoopbackHub, request: object, status: int, content: bytes, *rest: object, **more: object) -> None:
        if "model.safetensors" in request.path:
            content = bytes(len(content))
        real(self, request, status, content, *rest, **more)

    monkeypatch.setattr(LoopbackHub, "reply", reply)
    with pytest.raises(HubError, match=r"model.safetensors of acme/tiny is damaged \(size or checksum\), 3 times"):
        find_model(NAME, hub="modelscope")
    assert not (tmp_path / "home" / "hub" / "modelscope" / NAME).exists()


@pytest.mark.parametrize("source", HUBS)
def test_unreachable_hub_says_what_to_set(source: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "AISTUDIO_ENDPOINT", "PPNLP_ENDPOINT"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"cannot be reached at http://127.0.0.1:9.*_ENDPOINT"):
        find_model("acme/never-seen", hub=source)


@pytest.mark.parametrize("source", HUBS)
def test_model_without_readable_weights(source: str, hub: LoopbackHub, tmp_path: Path, published: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (bare / name).write_bytes((published / name).read_bytes())
    hub.models["acme/bare"] = bare
    with pytest.raises(HubError, match=r"acme/bare from .* has no weights .*convert that to safetensors first"):
        find_model("acme/bare", hub=source)


def test_library_caches_are_used(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    assert find_model(f"modelscope:{NAME}") == tmp_path / "ms" / "models" / NAME
    monkeypatch.setenv("PPNLP_HOME", str(tmp_path / "ppnlp"))
    (tmp_path / "ppnlp" / "models" / NAME).mkdir(parents=True)  # begun by another tool
    assert find_model(f"bos:{NAME}") == tmp_path / "home" / "hub" / "bos" / NAME
    assert not list((tmp_path / "ppnlp" / "models" / NAME).iterdir())


def test_which_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PADDLESFT_HUB", raising=False)
    monkeypatch.delenv("from_modelscope", raising=False)
    assert split_hub("a/b") == ("huggingface", "a/b")
    monkeypatch.setenv("from_modelscope", "False")
    assert split_hub("a/b") == ("huggingface", "a/b")
    monkeypatch.setenv("from_modelscope", "True")
    assert split_hub("a/b") == ("modelscope", "a/b")
    monkeypatch.setenv("PADDLESFT_HUB", "bos")
    assert split_hub("a/b") == ("bos", "a/b")
    assert split_hub("a/b", "aistudio") == ("aistudio", "a/b")
    assert split_hub("hf:a/b", "aistudio") == ("huggingface", "a/b")
    monkeypatch.setenv("PADDLESFT_HUB", "github")
    with pytest.raises(ModelDirectoryError, match="PADDLESFT_HUB is 'github'; allowed: huggingface, modelscope"):
        split_hub("a/b")


def test_local_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "smol").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model("models/smol") == Path("models/smol")
    with pytest.raises(ModelDirectoryError, match=r"no model directory './models/smoll'.*Did you mean models/smol\?"):
        find_model("./models/smoll")
    with pytest.raises(ModelDirectoryError, match="A model is a directory, a hub name such as org/name, or embedded:"):
        find_model("smoll")
    with pytest.raises(ModelDirectoryError, match=r"no embedded model 'llama'. Allowed: embedded:smollm2"):
        find_model("embedded:llama")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        ModelDirectoryError, match=r"is a file; a model is a directory. Run: paddlesft import-gguf a.gguf"
    ):
        find_model("a.gguf")


def test_modelscope_without_address_says_what_to_set(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    monkeypatch.setitem(__import__("sys").modules, "modelscope", None)
    with pytest.raises(EnvironmentProblem, match="Set MODELSCOPE_ENDPOINT to it, or run: pip install modelscope"):
        find_model(NAME, hub="modelscope")
