"""Tokens to text: nothing uncertain is given out, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddlesft.inference.streaming import TextStream


class Bytes:
    """A tokenizer with one token for each byte; 256 is a special token."""

    def decode(self, ids: list[int], skip_special_tokens: bool, **spaces: bool) -> str:
        assert skip_special_tokens and not any(spaces.values())
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def run(text: str | bytes, **options: object) -> tuple[list[str], TextStream]:
    data = text.encode() if isinstance(text, str) else text
    stream = TextStream(Bytes(), **options)
    pieces = [stream.push(byte) for byte in data]
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text
    return pieces, stream


def test_incomplete_characters_are_held_back() -> None:
    pieces, _ = run("aé你😀b")
    assert pieces == ["a", "", "é", "", "", "你", "", "", "", "😀", "b", ""]


def test_bytes_that_are_no_utf8_come_out_as_replacement_characters() -> None:
    pieces, stream = run(b"a\xff\xfeb\xe4\xbd")
    assert stream.text == "a\ufffd\ufffdb\ufffd"
    assert pieces[-1] == "\ufffd"


def test_broken_bytes_without_end_are_given_out_and_not_decoded_again_and_again() -> None:
    class Counting(Bytes):
        longest = 0

        def decode(self, ids: list[int], skip_special_tokens: bool, **spaces: bool) -> str:
            self.longest = max(self.longest, len(ids))
            return super().decode(ids, skip_special_tokens, **spaces)

    draw = np.random.default_rng(0)
    for data in (
        b"\xff" * 300,
        b"\xf0\x9f\x98" * 100,
        draw.choice([0x80, 0xE4, 0xF0, 0x9F], 2000).tolist(),
        [256] * 300,
    ):
        tokenizer = Counting()
        stream = TextStream(tokenizer)
        pieces = [stream.push(token) for token in data]
        assert data[0] == 256 or any(pieces)
        pieces.append(stream.finish())
        assert "".join(pieces) == stream.text == Bytes().decode(list(data), True)
        assert data[0] == 256 or tokenizer.longest < 40


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    pieces, stream = run("one\n\nUser: two", stop=["\nUser:"])
    assert stream.text == "one\n"
    assert stream.stopped_by == "\nUser:"
    assert pieces == ["o", "n", "e", "", "\n", *[""] * 10]


def test_a_false_beginning_of_a_stop_string_is_given_out_later() -> None:
    pieces, stream = run("a</b></s", stop=["</s>"])
    assert stream.text == "a</b></s"
    assert pieces == ["a", "", "", "</b", ">", "", "", "", "</s"]
    assert stream.stopped_by is None


def test_of_several_stop_strings_the_first_in_the_text_counts() -> None:
    stream = TextStream(Bytes(), stop=["b", "abc", "bc"])
    for byte in b"xabc":
        stream.push(byte)
    assert (stream.text, stream.stopped_by) == ("xa", "b")


def test_stop_strings_do_not_count_until_they_may() -> None:
    stream = TextStream(Bytes(), stop=["."])
    pieces = [stream.push(byte, may_stop=i >= 3) for i, byte in enumerate(b"a.b.c")]
    assert pieces == ["a", ".", "b", "", ""]
    assert stream.text == "a.b"


def test_special_tokens_leave_no_text() -> None:
    stream = TextStream(Bytes())
    assert [stream.push(i) for i in (65, 256, 66)] == ["A", "", "B"]


@pytest.mark.parametrize("kind", ["random", "text"])
def test_pieces_of_a_real_tokenizer_join_to_the_whole_text(smollm2: Path, kind: str) -> None:
    from paddlesft.models import load_tokenizer

    tokenizer = load_tokenizer(smollm2)
    if kind == "random":  # mostly broken UTF-8
        ids = np.random.default_rng(0).integers(0, 49152, size=400).tolist()
    else:
        text = "Déjà vu – 你好，世界！ 😀👩‍👩‍👧 def f(x):\n\treturn  x ** 2\n\n  多语言 العربية"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    pieces.append(stream.finish())
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if kind == "text":
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) == text
