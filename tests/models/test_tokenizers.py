"""Tokenizers of every kind: loaded from a directory without network, exact on any text, the same after a copy."""

from __future__ import annotations

import json
import random
import shutil
import socket
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlesft.data.conversation import Conversation
from paddlesft.data.encoding import AS_WRITTEN, TextEncoder
from paddlesft.data.literal_text import parted
from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import load_template
from paddlesft.errors import ModelDirectoryError
from paddlesft.inference.streaming import TextStream
from paddlesft.models.directory import copy_tokenizer
from paddlesft.models.tokenizers import load_tokenizer
from tests import tiny_tokenizers

# kind -> class, begin-of-sequence, end-of-sequence, padding, tokens put around "Hi", a template that suits the kind
KINDS = {
    "gpt2": ("GPTTokenizer", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "{}", "alpaca"),
    "opt": ("GPTTokenizer", "</s>", "</s>", "<pad>", "</s>{}", "plain"),
    "glm_gpt2": ("GLMGPT2Tokenizer", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "[CLS]{}", "plain"),
    "bloom": ("BloomTokenizer", "<s>", "</s>", "<pad>", "{}", "alpaca"),
    "qwen2": ("Qwen2Tokenizer", None, "<|im_end|>", "<|endoftext|>", "{}", "chatml"),
    "llama3": (
        "Llama3Tokenizer", "<|begin_of_text|>", "<|end_of_text|>", "<|end_of_text|>", "<|begin_of_text|>{}", "llama3",
    ),
    "qwen": ("QWenTokenizer", None, "<|endoftext|>", "<|endoftext|>", "{}", "qwen"),
    "llama": ("LlamaTokenizer", "<s>", "</s>", "</s>", "<s>{}", "llama2"),
    "gemma": ("GemmaTokenizer", "<bos>", "<eos>", "<pad>", "<bos>{}", "plain"),
    "chatglm": ("ChatGLMTokenizer", "<sop>", "<eop>", "<pad>", "{}[gMASK]<sop>", "plain"),
    "chatglm_v2": ("ChatGLMv2Tokenizer", None, "</s>", "<unk>", "[gMASK]sop{}", "chatglm2"),
    "glm_chinese": ("GLMChineseTokenizer", None, "<|endoftext|>", "<|endoftext|>", "[CLS]{}", "plain"),
    "tokenizer_json": ("PretrainedTokenizerFast", "<|im_start|>", "<|im_end|>", "<|im_end|>", "{}", "tokenizer"),
}  # fmt: skip
LOSSLESS = [kind for kind in KINDS if kind != "glm_chinese"]  # has no bytes to fall back to, and no line breaks
TEXTS = [
    "Hello there",
    "你好，世界！今天\u3000怎么样？",
    "🙂👩\u200d👩\u200d👧 é ß العربية",
    "def f(x):\n\treturn  x ** 2\n\n\n    # end\n",
    "people, sop and eop: 12345 3.14 </sp> <n",
    "x",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a tokenizer asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def directory_of(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind -> directory with its tokenizer files."""
    json_kind = partial(tiny_tokenizers.tokenizer_json, smollm2=smollm2, tokenizer_class="Qwen2Tokenizer")
    makers = {**tiny_tokenizers.KINDS, "tokenizer_json": json_kind}

    def write(kind: str) -> Path:
        directory = tmp_path_factory.mktemp(kind)
        makers[kind](directory)
        return directory

    return cache(write)


@pytest.fixture(scope="module")
def encoder_of(directory_of: Callable[[str], Path]) -> Callable[[str], TextEncoder]:
    return cache(lambda kind: TextEncoder(load_tokenizer(directory_of(kind))))


def streamed(tokenizer: Any, ids: list[int]) -> str:
    stream = TextStream(tokenizer)
    return "".join([*(stream.push(i) for i in ids), stream.finish()])


def facts(tokenizer: Any) -> dict[str, Any]:
    """What has to be the same in two loaded copies of a tokenizer."""
    encoder = TextEncoder(tokenizer)
    return {
        "class": type(tokenizer),
        "ids": [tokenizer(text)["input_ids"] for text in TEXTS],
        "size": len(tokenizer),
        "special": encoder.special_ids,
        "ends": (encoder.bos_token_id, encoder.eos_token_id, encoder.pad_token_id),
        "sides": (tokenizer.padding_side, tokenizer.model_input_names),
    }


# --- what is loaded -----------------------------------------------------------------------------------------------


def test_every_kind_of_the_fixtures_is_tested() -> None:
    assert set(KINDS) == {*tiny_tokenizers.KINDS, "tokenizer_json"}


@pytest.mark.parametrize("kind", KINDS)
def test_class_and_special_tokens(kind: str, directory_of: Any) -> None:
    tokenizer = load_tokenizer(directory_of(kind))
    name, begin, end, padding, around, _ = KINDS[kind]
    encoder = TextEncoder(tokenizer)
    assert type(tokenizer).__name__ == name
    ids = {text: None if text is None else tokenizer.convert_tokens_to_ids(text) for text in (begin, end, padding)}
    assert None not in [ids[end], ids[padding]]
    assert (encoder.bos_token_id, encoder.eos_token_id) == (ids[begin], ids[end])
    assert encoder.pad_token_id == tokenizer.pad_token_id == ids[padding]
    assert encoder.eos_text == end
    # what the tokenizer puts around a text, the end-of-sequence of GLM left out
    before, _, behind = around.partition("{}")
    tokens = tokenizer.convert_ids_to_tokens
    special = {index: text for text, index in encoder.special_ids.items()}
    inner = tokenizer("Hi", add_special_tokens=False)["input_ids"]
    told = encoder.encode_with_special_tokens("Hi")
    start = next(i for i in range(len(told)) if told[i : i + len(inner)] == inner)
    assert "".join(special[i] for i in told[:start]) == before, tokens(told)
    assert "".join(special[i] for i in told[start + len(inner) :]) == behind, tokens(told)


@pytest.mark.parametrize("kind", KINDS)
def test_no_message_about_tokens_that_a_class_does_without(kind: str, directory_of: Any, capfd: Any) -> None:
    Renderer(load_tokenizer(directory_of(kind)), load_template(load_tokenizer(directory_of(kind)), KINDS[kind][-1]))
    assert "not set yet" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "kind, text, ids",
    [
        ("gpt2", "Hello world", [15496, 995]),
        ("gpt2", "你好", [19526, 254, 25001, 121]),
        ("qwen", "Hello world", [9707, 1879]),
        ("qwen", "你好<|im_end|>", [108386, 151645]),
    ],
)
def test_published_vocabularies_give_the_published_ids(kind: str, text: str, ids: list[int], tmp_path: Path) -> None:
    tiny_tokenizers.KINDS[kind](tmp_path, vocabulary=None)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer(text)["input_ids"] == ids
    assert len(tokenizer) == {"gpt2": 50257, "qwen": 151851}[kind]
    assert streamed(tokenizer, TextEncoder(tokenizer).encode(TEXTS[1])) == TEXTS[1]


@pytest.mark.parametrize("kind", ["llama", "gemma", "chatglm_v2"])
def test_sentencepiece_itself_gives_the_same_ids(kind: str, directory_of: Any, encoder_of: Any) -> None:
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(directory_of(kind) / "tokenizer.model"))
    for text in TEXTS:
        assert encoder_of(kind).encode(text) == reference.encode(text)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "glm_gpt2", "bloom"])
def test_another_implementation_of_byte_level_bpe_gives_the_same_ids(
    kind: str, directory_of: Any, encoder_of: Any
) -> None:
    from tokenizers import ByteLevelBPETokenizer

    files = (str(directory_of(kind) / name) for name in ("vocab.json", "merges.txt"))
    reference = ByteLevelBPETokenizer(*files)
    for text in TEXTS:
        assert encoder_of(kind).encode(text) == reference.encode(text).ids


# --- texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
def test_texts_come_back_whole_and_streamed(kind: str, encoder_of: Any) -> None:
    encoder = encoder_of(kind)
    for text in TEXTS:
        for ids in (encoder.encode(text), encoder.encode_behind(text)):
            assert encoder.tokenizer.decode(ids, skip_special_tokens=True, **AS_WRITTEN) == text
            assert streamed(encoder.tokenizer, ids) == text


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=40)
@given(data=st.data())
def test_pieces_decode_to_the_text_they_make_together(kind: str, encoder_of: Any, data: Any) -> None:
    letters = st.text(alphabet=st.sampled_from("aHe1 \n\té你好🙂<|>/[s]."), max_size=12)
    first, second, third = data.draw(st.tuples(letters, letters, letters))
    encoder = encoder_of(kind)
    special = encoder.special_text
    pieces = [parted("Q:" + first, special), parted(second, special), parted(third, special)]
    ids = [*encoder.encode(pieces[0]), *encoder.encode_behind(pieces[1]), *encoder.encode_behind(pieces[2])]
    assert streamed(encoder.tokenizer, ids) == "Q:" + first + second + third


def test_qwen_composes_accents_before_it_encodes(encoder_of: Any) -> None:
    encoder = encoder_of("qwen")
    decomposed = unicodedata.normalize("NFD", "é")
    assert streamed(encoder.tokenizer, encoder.encode(decomposed)) == "é"


def test_glm_chinese_keeps_neither_line_breaks_nor_unknown_characters(encoder_of: Any) -> None:
    encoder = encoder_of("glm_chinese")
    assert streamed(encoder.tokenizer, encoder.encode("你好，Hello")) == "你好，Hello"
    ids = encoder.encode("Hello\n🙂")
    assert encoder.tokenizer.unk_token_id in ids
    assert streamed(encoder.tokenizer, ids) == "Hello"


@pytest.mark.parametrize("kind", KINDS)
def test_random_ids_stream_to_what_they_decode_to(kind: str, encoder_of: Any) -> None:
    tokenizer, draw = encoder_of(kind).tokenizer, random.Random(1)
    for _ in range(30):
        ids = [draw.randrange(len(tokenizer)) for _ in range(25)]
        assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True, **AS_WRITTEN)


# --- special tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_of_a_template_are_found_and_those_of_a_message_stay_text(kind: str, encoder_of: Any) -> None:
    encoder = encoder_of(kind)
    told = [text for text in encoder.special_ids if not text.isalnum()]
    assert told
    for text in told[:12]:
        index = encoder.special_ids[text]
        assert encoder.encode(f"{text}") == [index]
        assert encoder.encode_behind(f"ab{text}\nab").count(index) == 1
        spelled = f"say {text} twice: {text}"
        ids = encoder.encode_behind(parted(spelled, encoder.special_text))
        if text != str(encoder.tokenizer.unk_token) or kind in LOSSLESS:
            assert index not in ids
        if kind in LOSSLESS:
            assert streamed(encoder.tokenizer, ids) == spelled


@pytest.mark.parametrize("kind", KINDS)
def test_rows_end_in_stop_tokens_and_begin_with_the_prompt(kind: str, directory_of: Any) -> None:
    tokenizer = load_tokenizer(directory_of(kind))
    renderer = Renderer(tokenizer, load_template(tokenizer, KINDS[kind][-1]))
    end = KINDS[kind][2]
    question = {"role": "user", "content": f"Hi 你好 {end}<|im_end|>[gMASK]"}
    reply = {"role": "assistant", "content": f"Hello there {end} Paris"}
    row = renderer.render(Conversation.of([question, reply]))
    prompt = renderer.render_prompt([question])
    assert row.input_ids[: len(prompt)] == prompt
    assert row.trained == [False] * len(prompt) + [True] * (len(row.input_ids) - len(prompt))
    written = row.input_ids[len(prompt) :]
    if renderer.reads_special_tokens:  # "plain": rows are marked up already, and the first stop token would stop
        assert written[-1] in renderer.stop_token_ids
    else:
        assert [i in renderer.stop_token_ids for i in written] == [False] * (len(written) - 1) + [True]
        assert streamed(tokenizer, written) == f"Hello there {end} Paris"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_behind_the_vocabulary_decode_to_nothing(kind: str, encoder_of: Any) -> None:
    encoder = encoder_of(kind)
    ids = encoder.encode("Hello")
    assert streamed(encoder.tokenizer, [*ids, len(encoder.tokenizer) + 40, *ids[-1:]]).startswith("Hello")
    assert encoder.tokenizer.decode([len(encoder.tokenizer) + 40], **AS_WRITTEN) == ""


# --- copies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_the_files_is_the_same_tokenizer(kind: str, directory_of: Any, tmp_path: Path) -> None:
    copy_tokenizer(directory_of(kind), tmp_path)
    assert facts(load_tokenizer(tmp_path)) == facts(load_tokenizer(directory_of(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same_when_its_origin_is_gone(kind: str, directory_of: Any, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(directory_of(kind), origin)
    tokenizer = load_tokenizer(origin)
    before = facts(tokenizer)
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    shutil.rmtree(origin)
    again = load_tokenizer(tmp_path / "saved")
    assert facts(again) == before
    again.save_pretrained(str(tmp_path / "twice"))
    assert facts(load_tokenizer(tmp_path / "twice")) == before


# --- directories as they are published ----------------------------------------------------------------------------


def renamed(source: Path, target: Path, tokenizer_class: str | None, **files: str) -> Path:
    """Copy tokenizer files; ``files`` maps a name's stem to the new name."""
    shutil.copytree(source, target)
    for old in list(target.iterdir()):
        if old.stem.replace(".", "_") in files:
            old.rename(target / files[old.stem.replace(".", "_")])
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if tokenizer_class is None:
        path.unlink()
    else:
        path.write_text(json.dumps({**config, "tokenizer_class": tokenizer_class}))
    return target


@pytest.mark.parametrize(
    "kind, tokenizer_class, files",
    [
        ("gpt2", "GPT2Tokenizer", {}),  # transformers' name of the same
        ("chatglm_v2", "ChatGLMTokenizer", {}),  # both ChatGLM generations use it
        ("chatglm", "ChatGLMTokenizer", {}),
        ("llama", "LlamaTokenizer", {"tokenizer": "sentencepiece.bpe.model"}),  # as paddlenlp saves it
        ("llama", "LlamaTokenizer", {"tokenizer": "spiece.model"}),
        ("qwen", None, {}),  # without a config the file tells
        ("glm_chinese", None, {}),
    ],
)
def test_names_of_published_directories(
    kind: str, tokenizer_class: str | None, files: dict[str, str], directory_of: Any, tmp_path: Path
) -> None:
    published = renamed(directory_of(kind), tmp_path / "published", tokenizer_class, **files)
    assert facts(load_tokenizer(published)) == facts(load_tokenizer(directory_of(kind)))


def test_a_class_that_paddlenlp_lacks_is_named(directory_of: Any, tmp_path: Path) -> None:
    published = renamed(directory_of("llama"), tmp_path / "published", "NewestTokenizer")
    with pytest.raises(ModelDirectoryError, match=r"no tokenizer class 'NewestTokenizer'.*tokenizer.json beside it"):
        load_tokenizer(published)


def test_a_pointer_in_place_of_a_sentencepiece_model(directory_of: Any, tmp_path: Path) -> None:
    shutil.copytree(directory_of("llama"), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelDirectoryError, match=r"SentencePiece cannot read its model file.*git-lfs pointer"):
        load_tokenizer(tmp_path / "model")


def test_damaged_ranks(directory_of: Any, tmp_path: Path) -> None:
    shutil.copytree(directory_of("qwen"), tmp_path / "model")
    (tmp_path / "model" / "qwen.tiktoken").write_text("IQ== 0\nnonsense\n")
    with pytest.raises(ModelDirectoryError, match=r"The tokenizer in .* cannot be loaded"):
        load_tokenizer(tmp_path / "model")


def test_a_directory_without_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"holds no tokenizer .*qwen.tiktoken.*tokenizer_name_or_path"):
        load_tokenizer(tmp_path)
