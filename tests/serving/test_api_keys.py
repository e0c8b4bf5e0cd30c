"""Keys: where they come from, what is refused, and what a request must send."""

from __future__ import annotations

import pytest

from paddlesft.errors import ConfigError
from paddlesft.serving.api_keys import check_key, read_keys
from paddlesft.serving.errors import ApiError


def test_keys_of_command_line_and_environment_come_together_once_each() -> None:
    assert read_keys(["a", " b "], "c, a,d") == ("a", "b", "c", "d")
    assert read_keys([], None) == read_keys([], "") == ()


@pytest.mark.parametrize(("given", "environment"), [([""], None), ([], "good,,other"), (["two words"], None)])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(given: list[str], environment: str | None) -> None:
    with pytest.raises(ConfigError, match="is empty or holds spaces or characters beyond ASCII") as caught:
        read_keys(given, environment)
    assert "two words" not in str(caught.value) and "good" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"api_key: key 2 of 2 is empty"):
        read_keys(["fine", "schlüssel"], None)


def test_every_key_is_accepted_in_a_bearer_header() -> None:
    for key in ("first", "second"):
        check_key(("first", "second"), f"Bearer {key}")
        check_key(("first", "second"), f"bearer  {key} ")
    check_key((), None)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, "No API key was sent"),
        ("", "No API key was sent"),
        ("Bearer", "No API key was sent"),
        ("Bearer wrong", "The API key is not known here"),
        ("Bearer first second", "The API key is not known here"),
        ("Basic first", "The API key is not known here"),
        ("first", "No API key was sent"),
        ("Bearer f\xfcrst", "The API key is not known here"),
    ],
)
def test_everything_else_is_refused_without_repeating_it(header: str | None, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_key(("first", "second"), header)
    error = caught.value
    assert error.status == 401 and error.headers == {"WWW-Authenticate": "Bearer"}
    assert error.message.startswith(said) and "wrong" not in error.message
    assert error.body()["error"]["code"] == "invalid_api_key"


def test_all_keys_are_compared_whether_one_fits_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr("paddlesft.serving.api_keys.hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    for header in ("Bearer first", "Bearer third", "Bearer x"):
        compared.clear()
        try:
            check_key(("first", "second", "third"), header)
        except ApiError:
            assert header == "Bearer x"
        assert compared == [(32, 32)] * 3
