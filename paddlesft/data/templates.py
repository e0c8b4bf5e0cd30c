"""Which chat template a run uses: the tokenizer's own, a built-in one, a jinja file or PaddleNLP's chat_template.json.

A ``ChatTemplate`` turns messages into text. How that text becomes tokens, and which of them are trained, is the
renderer's affair (``rendering.py``).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from paddlesft.data.jinja_sandbox import TemplateRefusal, compile_template
from paddlesft.errors import DataError

BUILTIN_DIRECTORY = Path(__file__).parent / "builtin_templates"

# name -> (file, whether the tokenizer's own special tokens are put before the text as for a plain text)
BUILTIN: dict[str, tuple[str, bool]] = {
    "plain": ("plain", True),
    "alpaca": ("alpaca", True),
    "chatml": ("chatml", False),
    "qwen": ("qwen", False),
    "llama2": ("llama2", False),
    "llama3": ("llama3", False),
    "chatglm": ("chatglm", True),
    "chatglm2": ("chatglm2", True),
    "chatglm3": ("chatglm3", True),
    "glm": ("glm", False),
}
# first line of a saved template that the tokenizer's own special tokens go before, and of saved "plain"
SPECIAL_TOKENS_MARK = "{#- the tokenizer adds its special tokens -#}\n"
PLAIN_MARK = "{#- the tokenizer adds its special tokens; source and target are encoded apart -#}\n"
# names other tools use for the same templates
BUILTIN_ALIASES = {
    "default": "plain", "empty": "plain", "vanilla": "plain", "none": "plain",
    "qwen2": "qwen", "qwen2.5": "qwen", "llama-2": "llama2", "llama-3": "llama3",
}  # fmt: skip


@dataclass
class ChatTemplate:
    """A template and where it came from.

    Attributes:
        name: "tokenizer", a built-in's name, or the file's path.
        source: the template's text (jinja, or the JSON of a chat_template.json).
        special_tokens: bos_token, eos_token, … as the template may use them.
        adds_special_tokens: whether the tokenizer's own prefix (BOS) goes before the text.
        paddle: the parsed chat_template.json, when it is one.
        pieces_apart: whether a reply is encoded as if nothing stood before it, as PaddleNLP encodes ``tgt``.
    """

    name: str
    source: str
    special_tokens: dict[str, str] = field(default_factory=dict)
    adds_special_tokens: bool = False
    paddle: dict[str, Any] | None = None
    pieces_apart: bool = False

    @property
    def stop_tokens(self) -> list[str]:
        """Texts of the special tokens that end a turn (the renderer finds their ids and adds end-of-sequence)."""
        probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\u2047reply"}]
        try:
            tail = self.render(probe).rpartition("\u2047reply")[2]
        except TemplateRefusal:
            return []
        known = (str(token) for token in self.special_tokens.values() if isinstance(token, str))
        return list(dict.fromkeys(token for token in [*known, *self.extra_special_tokens] if token and token in tail))

    @property
    def extra_special_tokens(self) -> list[str]:
        """The tokenizer's further special tokens."""
        extra = self.special_tokens.get("additional_special_tokens", [])
        return [str(token) for token in extra] if isinstance(extra, list) else []

    @property
    def fingerprint(self) -> str:
        """sha256 of the template's text and of how it is applied."""
        told = json.dumps(
            [self.source, self.special_tokens, self.adds_special_tokens, self.pieces_apart], default=str, sort_keys=True
        )
        return hashlib.sha256(told.encode()).hexdigest()

    def mentions(self, name: str) -> bool:
        """Whether the template reads a variable or field of this name."""
        return self.paddle is None and name in self.source

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return the text for ``messages``.

        Args:
            messages: role/content dicts.
            tools: tool descriptions for templates that take them.
            add_generation_prompt: end with what stands before the next reply.

        Raises:
            TemplateRefusal: the template does not take this conversation, with its own words.
        """
        try:
            if self.paddle is not None:
                return _render_paddle(self.paddle, messages, self.special_tokens)
            return compile_template(self.source).render(
                messages=messages,
                tools=tools or None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except TemplateRefusal:
            raise
        except (jinja2.TemplateError, TypeError, LookupError, AttributeError, ValueError, ArithmeticError,
                RecursionError) as error:  # fmt: skip
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error


def load_template(
    tokenizer: Any, spec: str | None = None, model_dir: str | Path | None = None, default: str = "plain"
) -> ChatTemplate:
    """Find the template to use.

    Args:
        tokenizer: a PaddleNLP tokenizer.
        spec: None for the tokenizer's own (``default`` when it has none), "tokenizer" to insist on it, the name of a
            built-in, the path of a ``.jinja`` file or of a ``chat_template.json``, or of a directory that has one.
        model_dir: where to look for the tokenizer's own template; the directory it was loaded from when None.
        default: name of a built-in template.

    Raises:
        DataError: no such template, or one that cannot be read.
    """
    special = _special_tokens(tokenizer)
    if spec in (None, "", "tokenizer", "auto"):
        own = _own_template(tokenizer, model_dir, special)
        if own is not None:
            return own
        if spec == "tokenizer":
            raise DataError(
                "chat_template: the tokenizer has no template of its own (looked in "
                f"{_directory(tokenizer, model_dir)}). Name a built-in one: {', '.join(BUILTIN)}; or give a .jinja "
                "file or a chat_template.json."
            )
        return builtin_template(default, special)
    if spec in BUILTIN or spec in BUILTIN_ALIASES:
        return builtin_template(spec, special)
    path = Path(spec).expanduser()
    if path.is_dir():
        found = [path / name for name in ("chat_template.json", "chat_template.jinja") if (path / name).is_file()]
        if not found:
            raise DataError(f"chat_template: {path} has neither chat_template.json nor chat_template.jinja.")
        path = found[0]
    if path.is_file():
        return template_from_file(path, special)
    near = difflib.get_close_matches(spec, [*BUILTIN, *BUILTIN_ALIASES], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"chat_template: found {spec!r}, which is neither a file nor a built-in template.{hint} Allowed: "
        f"{', '.join(BUILTIN)}; a .jinja file; a chat_template.json; or leave it out for the tokenizer's own."
    )


def save_template(template: ChatTemplate, directory: str | Path) -> Path:
    """Write a template into a model or adapter directory, so that whatever loads the directory uses it.

    Args:
        template: as used in training.
        directory: the directory being written; its tokenizer files stay as they are.

    Returns:
        The file: ``chat_template.json`` for PaddleNLP's kind, else ``chat_template.jinja``.
    """
    directory = Path(directory)
    if template.paddle is not None:
        path, text = directory / "chat_template.json", template.source
    else:
        mark = SPECIAL_TOKENS_MARK if template.adds_special_tokens else ""
        mark = PLAIN_MARK if template.pieces_apart else mark
        path, text = directory / "chat_template.jinja", mark + template.source
    path.write_text(text, encoding="utf-8")
    return path


def builtin_template(name: str, special_tokens: dict[str, Any]) -> ChatTemplate:
    """Return a built-in template for a tokenizer with these special tokens."""
    name = BUILTIN_ALIASES.get(name, name)
    file, adds_special_tokens = BUILTIN[name]
    source = (BUILTIN_DIRECTORY / f"{file}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(name, source, special_tokens, adds_special_tokens, pieces_apart=name == "plain")


def template_from_file(path: Path, special_tokens: dict[str, Any]) -> ChatTemplate:
    """Read a ``.jinja`` file, PaddleNLP's ``chat_template.json``, or Hugging Face's file of that name.

    Raises:
        DataError: the file is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"chat_template: {path} is not UTF-8 text. Save it as UTF-8.") from error
    if path.suffix != ".json":
        return _jinja(str(path), text, special_tokens)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}. A .jinja file may be given instead.") from error
    if isinstance(content, dict) and isinstance(content.get("chat_template"), str):
        return _jinja(str(path), content["chat_template"], special_tokens)
    return paddle_template(str(path), content, special_tokens)


def paddle_template(name: str, content: Any, special_tokens: dict[str, Any]) -> ChatTemplate:
    """Check and wrap PaddleNLP's ``{"system", "conversation": [user, reply], "query"}``.

    Raises:
        DataError: another shape.
    """
    allowed = '{"system": "…", "conversation": ["… {{user}} …", "{{bot}} …"], "query": "… {{query}} …"}'
    found = sorted(content) if isinstance(content, dict) else type(content).__name__
    fits = (
        isinstance(content, dict)
        and isinstance(content.get("query"), str)
        and isinstance(content.get("conversation"), list)
        and len(content["conversation"]) == 2
        and all(isinstance(part, str) for part in content["conversation"])
        and isinstance(content.get("system"), str | None)
    )
    if not fits:
        raise DataError(f"{name}: found {found}; allowed: {allowed}, or a jinja template.")
    user, reply = content["conversation"]
    parts = {"system": content.get("system") or "", "query": content["query"], "conversation[0]": user}
    for key, part in {**parts, "conversation[1]": reply}.items():
        _check_syntax(f"{name}, {key}", part)
    return ChatTemplate(name, json.dumps(content, ensure_ascii=False), special_tokens, False, content)


def _jinja(name: str, source: str, special_tokens: dict[str, Any]) -> ChatTemplate:
    _check_syntax(name, source)
    apart, marked = source.startswith(PLAIN_MARK), source.startswith((SPECIAL_TOKENS_MARK, PLAIN_MARK))
    text = source.removeprefix(PLAIN_MARK).removeprefix(SPECIAL_TOKENS_MARK)
    return ChatTemplate(name, text, special_tokens, marked, pieces_apart=apart)


def _check_syntax(name: str, source: str) -> None:
    try:
        compile_template(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"{name}:{error.lineno}: this is no jinja template: {str(error.message).rstrip('.')}."
        ) from error


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    return {name: value for name, value in tokenizer.special_tokens_map.items() if value is not None}


def _directory(tokenizer: Any, model_dir: str | Path | None) -> Path | None:
    place = model_dir or getattr(tokenizer, "name_or_path", None) or tokenizer.init_kwargs.get("name_or_path")
    return Path(place) if place and Path(place).is_dir() else None


def _own_template(tokenizer: Any, model_dir: str | Path | None, special: dict[str, Any]) -> ChatTemplate | None:
    directory = _directory(tokenizer, model_dir)
    if directory is not None:
        # PaddleNLP lets chat_template.json win over the tokenizer's config; a .jinja file is the newer home of the same
        for file in ("chat_template.json", "chat_template.jinja"):
            if (directory / file).is_file():
                template = template_from_file(directory / file, special)
                template.name = "tokenizer"
                return template
        if (directory / "tokenizer_config.json").is_file():
            config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
            source = _default_of(config.get("chat_template"))
            if source:
                return _jinja("tokenizer", source, special)
    held = getattr(tokenizer, "chat_template", None)
    if hasattr(held, "conversation"):  # PaddleNLP's own class for chat_template.json
        content = {"system": held.system, "conversation": held.conversation, "query": held.query}
        return paddle_template("tokenizer", content, special)
    source = _default_of(tokenizer.init_kwargs.get("chat_template") or (held if isinstance(held, str) else None))
    return _jinja("tokenizer", source, special) if source else None


def _default_of(value: Any) -> str | None:
    """Some tokenizers carry several named templates; the one named "default" is for conversations."""
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None


def _render_paddle(content: dict[str, Any], messages: list[dict[str, Any]], special: dict[str, Any]) -> str:
    """Text of a chat_template.json for messages; it ends where the reply begins when the last message is the user's."""
    system = None
    if messages and messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    roles = [message["role"] for message in messages]
    if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
        raise TemplateRefusal(
            f"a chat_template.json knows user and assistant turns in alternation; found {', '.join(roles)}"
        )
    rounds = [messages[i : i + 2] for i in range(0, len(messages), 2)]
    context: dict[str, Any] = {**special, "is_training": False, "length": len(rounds)}
    if system is not None:
        context["system"] = system
    text = compile_template(content["system"]).render(**context) if content.get("system") else ""
    for index, turn in enumerate(rounds):
        user = turn[0]["content"]
        place = {**context, "index": index, "is_first": index == 0, "is_last": index == len(rounds) - 1}
        if index == len(rounds) - 1:
            # the newest question in the form it has when the model is asked, in training too
            text += compile_template(content["query"]).render(query=user, user=user, **place)
        else:
            text += compile_template(content["conversation"][0]).render(user=user, bot=turn[1]["content"], **place)
        if len(turn) == 2:
            text += compile_template(content["conversation"][1]).render(user=user, bot=turn[1]["content"], **place)
    return text
