"""The log's line of a request, and whose ids are taken."""

from __future__ import annotations

import json

import pytest

from paddlesft.serving.request_log import RequestRecord, request_id


@pytest.mark.parametrize("offered", ["a", "7f3c-9", "trace:1.2_3", "x" * 64])
def test_a_sane_id_of_the_client_is_kept(offered: str) -> None:
    assert request_id(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 65, "a b", "a\nb", "é", "<script>"])
def test_any_other_is_replaced(offered: str | None) -> None:
    made = request_id(offered)
    assert made.startswith("req-") and len(made) == 36 and made != request_id(offered)


def test_the_line_is_one_json_object_whatever_the_request_holds() -> None:
    record = RequestRecord("id-1", "POST", "/v1/\x1b[31m\n" + "é" * 500, "127.0.0.1", 200)
    record.add(generated_tokens=3)
    record.add(generated_tokens=4)
    record.note(model="m\r\nX: y", reply="r" * 20_000)
    line = record.line()
    assert line.isascii() and line.isprintable()
    told = json.loads(line)
    assert told["id"] == "id-1" and told["status"] == 200 and told["generated_tokens"] == 7
    assert len(told["path"]) == 200 and len(told["reply"]) == 10_000 and told["model"] == "m\r\nX: y"
