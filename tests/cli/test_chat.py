"""``paddlesft chat`` in a pipe and on a terminal."""

from __future__ import annotations

import codecs
import io
import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddlesft.cli.main import main

REPO = Path(__file__).resolve().parents[2]
ENVIRON = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
SHORT = ["--max_new_tokens", "5", "--min_new_tokens", "5"]


@pytest.fixture
def talk(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Hold a conversation in this process: lines in, (replies, notes) out."""

    def run(*lines: str, options: tuple[str, ...] = tuple(SHORT)) -> tuple[list[str], str]:
        text = "".join(line + "\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii"))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        assert main(["chat", "--model_name_or_path", str(tiny_llama), *options]) == 0
        sys.stdout.seek(0)
        return sys.stdout.read().splitlines(), capsys.readouterr().err

    return run


def test_each_line_is_a_message_and_only_replies_go_to_standard_output(talk) -> None:
    replies, notes = talk("你好", "", "And now?")
    assert len(replies) == 2 and all(replies)
    assert "tiny-llama. /help shows the commands" in notes
    assert (
        len(re.findall(r"\[5 tokens, \d+\.\d tokens/s, first after \d+\.\d\d s, cut at max_new_tokens=5\]", notes)) == 2
    )
    whole, _ = talk("你好", "", "And now?", options=(*SHORT, "--stream", "false"))
    assert whole == replies


def test_a_reply_that_fills_the_context_says_so(talk) -> None:
    _, notes = talk("你好", options=("--max_new_tokens", "600", "--min_new_tokens", "600", "--stream", "false"))
    found = re.search(r"\[(\d+) tokens, .*, cut at the end of the model's context\]", notes)
    assert found and 200 <= int(found.group(1)) < 512  # the tiny model has 512 positions


def test_commands(talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    replies, notes = talk(
        "/undo", "/retry", "/save", f"/save {file}", "hello", "/retry", "/system Be kind.", "/system", "second",
        "/undo", f"/save {file}", f"/save {file}", f"/save {tmp_path}/none/x", "/nope", "//path", "/clear", "/help",
        "/exit", "never read",
    )  # fmt: skip
    assert len(replies) == 4  # hello, its retry, second, /path
    assert replies[0] != replies[1]
    for text in (
        "There is nothing to take back.", "There is no message to ask again.", "Say where to: /save FILE",
        "There is nothing to save.", "System message: Be kind.", "Taken back: second", f"Saved 2 messages to {file}",
        f"{file} exists and was left as it is.", f"Cannot write {tmp_path}/none/x: No such file or directory.",
        "Unknown command /nope.", "The conversation is empty.", "/undo           take back the last message",
    ):  # fmt: skip
        assert text in notes, text
    row = json.loads(file.read_text())
    assert row["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": replies[1]},
    ]


def test_long_conversations_say_what_was_left_out(talk) -> None:
    _, notes = talk(
        "first message", "second message", "third message", "word " * 90, options=(*SHORT, "--src_length", "60")
    )
    assert "oldest rounds were left out]" in notes
    assert "[the message is too long: its first " in notes


def test_wrong_arguments_and_help(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["chat", "--model_name_or_path", str(tmp_path / "none"), "--temprature", "1"]) == 2
    assert "temperature" in capsys.readouterr().err
    assert main(["chat", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "/system TEXT" in shown and "system_prompt" in shown


def test_the_page_names_every_command_and_its_options_exist() -> None:
    from paddlesft.cli.chat import COMMANDS
    from paddlesft.config import load_arguments
    from paddlesft.config.verbs import ChatConfig

    text = (REPO / "docs" / "chat.md").read_text(encoding="utf-8").replace("\\\n", " ")
    assert all(f"| `{command}` |" in text for command in COMMANDS)
    commands = re.findall(r"paddlesft chat (.+)$", text, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        load_arguments({"chat": ChatConfig}, overrides=shlex.split(command))


def test_a_pipe(tiny_llama: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paddlesft", "chat", "--model_name_or_path", str(tiny_llama), *SHORT],
        input="你好\nhello\n".encode(), env={**ENVIRON, "LC_ALL": "C"}, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout.decode().splitlines()) == 2


class Terminal:
    """The other side of a terminal that a program runs on."""

    def __init__(self, command: list[str]) -> None:
        self._end, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRON, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._unread = ""

    def wait_for(self, pattern: str, seconds: float = 90) -> str:
        """Read until the pattern shows; return everything from where the last call ended to the end of the pattern."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self._unread)):
            assert time.monotonic() < deadline, f"{pattern!r} did not show:\n{self._unread}"
            ready, _, _ = select.select([self._end], [], [], 0.2)
            if ready:
                try:
                    self._unread += self._decoder.decode(os.read(self._end, 4096))
                except OSError:
                    break
        assert found, self._unread
        text, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return text

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._end, text.encode())

    def interrupt_until(self, pattern: str, presses: int = 10) -> None:
        """Press Ctrl-C until the pattern shows: one that comes just before readline waits for keys goes unnoticed."""
        for press in range(presses):
            self.type("\x03")
            try:
                self.wait_for(pattern, seconds=10)
                return
            except AssertionError:
                if press == presses - 1:
                    raise


def test_a_terminal(tiny_llama: Path) -> None:
    terminal = Terminal(
        [sys.executable, "-m", "paddlesft", "chat", "--model_name_or_path", str(tiny_llama),
         "--max_new_tokens", "250", "--min_new_tokens", "250"]
    )  # fmt: skip
    try:
        terminal.wait_for(r"tiny-llama[\s\S]*\n> ")
        terminal.type("你好，世界\n")
        terminal.wait_for(r"你好，世界\r\n[\s\S]*\S")
        time.sleep(0.05)
        terminal.type("\x03")
        stopped = terminal.wait_for(r"tokens/s[^\]]*, stopped\]")
        assert int(re.search(r"\[(\d+) tokens", stopped).group(1)) < 250
        terminal.wait_for("> ")
        time.sleep(0.5)
        terminal.interrupt_until(r"\(/exit or Ctrl-D leaves\)[\s\S]*> ")
        terminal.type("/undo\n")
        terminal.wait_for("Taken back: 你好，世界[\\s\\S]*> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
