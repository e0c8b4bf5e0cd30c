"""Reading requests: JSON, and what is in it. Everything that is wrong is said at once, by name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from flask import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paddlesft.serving.errors import ApiError

MOST_PROBLEMS = 10  # that one error names
MOST_STOP_STRINGS = 16


class _NoNumber(ValueError):
    """NaN or Infinity, which JSON does not have."""


def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request's body.

    Raises:
        ApiError: 400 or 415, the body is none.
    """
    if request.mimetype != "application/json":
        found = repr(request.mimetype[:60]) if request.mimetype else "none"
        raise ApiError(
            415, f"Content-Type: found {found}; send application/json.", code="unsupported_content_type"
        )
    try:
        content = json.loads(request.get_data(cache=False).decode("utf-8"), parse_constant=_no_number)
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise _bad_json(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    except UnicodeEncodeError:
        raise _bad_json("half of a surrogate pair stands alone") from None
    except UnicodeDecodeError:
        raise _bad_json("it is not UTF-8") from None
    except _NoNumber as error:
        raise _bad_json(f"{error} is no number of JSON") from None
    except (ValueError, RecursionError):
        raise _bad_json("a number is too long, or it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ApiError(400, f"The body has to be a JSON object; found {_kind(content)}.", code="invalid_json")
    return content


def _no_number(text: str) -> float:
    raise _NoNumber(text)


def _bad_json(reason: str) -> ApiError:
    return ApiError(400, f"The body is not valid JSON: {reason}.", code="invalid_json")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


class GenerationParameters(BaseModel):
    """What both of OpenAI's interfaces take. Parameters without effect are named in ``NO_EFFECT``.

    Attributes:
        UNSUPPORTED: known parameters that are not built: the value that means "off", and why others are refused.
        NO_EFFECT: known parameters that change nothing here.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1)
    repetition_penalty: float | None = Field(None, gt=0, le=10, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces."""
        return bool(self.stream)

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> GenerationParameters:
        """Read a request's object.

        Raises:
            ApiError: 400, names everything that is wrong.
        """
        given = {name: value for name, value in content.items() if name not in cls.NO_EFFECT}
        refused = []
        for name, (off, why) in cls.UNSUPPORTED.items():
            if name in given:
                value = given.pop(name)
                if value is not None and value != off:
                    refused.append((name, f"{name} is not supported: {why}."))
        try:
            asked = cls.model_validate(given)
        except ValidationError as error:
            raise validation_error(error, cls, refused) from None
        if asked.stream_options is not None and not asked.stream:
            refused.append(("stream_options", "stream_options only goes with stream: true."))
        if isinstance(asked.stop, list) and len(asked.stop) > MOST_STOP_STRINGS:
            refused.append(("stop", f"stop has {len(asked.stop)} texts; at most {MOST_STOP_STRINGS} are taken."))
        if asked.stop == "" or (isinstance(asked.stop, list) and "" in asked.stop):
            refused.append(("stop", "stop holds an empty text; leave it out instead."))
        refused += asked.problems()
        if refused:
            raise _refusal(refused, "unsupported_parameter" if refused[0][0] in cls.UNSUPPORTED else "invalid_value")
        return asked

    def problems(self) -> list[tuple[str, str]]:
        """Return what else is wrong, as pairs of parameter and sentence."""
        return []


class StreamOptions(BaseModel):
    """What a stream holds besides the reply."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None


GenerationParameters.model_rebuild()


def validation_error(
    error: ValidationError, model: type[BaseModel], others: list[tuple[str, str]] | None = None
) -> ApiError:
    """Return what pydantic found as an answer.

    Args:
        error: what it raised.
        model: what it read.
        others: problems found besides, as pairs of parameter and sentence.
    """
    problems = list(others or [])
    known = [name for name in model.model_fields]
    for one in error.errors(include_url=False):
        where = [part for part in one["loc"] if isinstance(part, int) or not _is_branch(part)]
        name = _path(where) or "body"
        if one["type"] == "extra_forbidden" and len(where) == 1:
            near = difflib.get_close_matches(str(where[0]), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            problems.append((name, f"{name} is not known.{hint}"))
        else:
            found = "" if one["type"] == "missing" else f" (found {_shown(one['input'])})"
            problems.append((name, f"{name}: {one['msg']}{found}."))
    first = error.errors(include_url=False)[0]["type"]
    return _refusal(problems, {"extra_forbidden": "unknown_parameter", "missing": "missing_parameter"}.get(first))


def _refusal(problems: list[tuple[str, str]], code: str | None) -> ApiError:
    shown = list(dict.fromkeys(text for _, text in problems))
    rest = len(shown) - MOST_PROBLEMS
    text = " ".join(shown[:MOST_PROBLEMS]) + (f" And {rest} more." if rest > 0 else "")
    return ApiError(400, text, param=problems[0][0], code=code or "invalid_value")


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's path names the type it tried, not a key of the request."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part or part[:1].isupper())


def _path(where: list[Any]) -> str:
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text[:120]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
