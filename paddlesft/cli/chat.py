"""paddlesft chat: talk to a model in the terminal.

    paddlesft chat --model_name_or_path DIR
    paddlesft chat --lora_path DIR --system_prompt "You are brief."

With a pipe as input each line is one message, and only the replies go to standard output:

    printf 'Hello\\nAnd again, shorter\\n' | paddlesft chat --model_name_or_path DIR
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.cli.verb_arguments import read_arguments, show_help, wants_help

if TYPE_CHECKING:
    from paddlesft.config.verbs import ChatConfig

COMMANDS = {
    "/help": "show this list",
    "/clear": "forget the conversation; the system message stays",
    "/undo": "take back the last message and its reply",
    "/retry": "ask the last message again",
    "/system TEXT": "set the system message; without TEXT show it",
    "/save FILE": "write the conversation as a row of a training file",
    "/exit": "leave (also /quit or Ctrl-D)",
}


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.verbs import ChatConfig

    if wants_help(argv):
        head = f"{__doc__}\ncommands in the conversation:\n{_command_list()}\n"
        return show_help(head, "chat", ChatConfig)
    return _chat(read_arguments("chat", ChatConfig, argv))


def _chat(config: ChatConfig) -> int:
    from paddlesft.inference.chat import ChatSession
    from paddlesft.inference.device import use_device
    from paddlesft.inference.loading import load_for_inference
    from paddlesft.inference.sampling import SamplingOptions

    options = SamplingOptions.from_config(config)
    use_device(config.device)
    loaded = load_for_inference(
        config.model_name_or_path,
        config.lora_path,
        config.prefix_path,
        config.dtype,
        config.chat_template,
        config.system_prompt,
        config.base_precision,
    )
    session = ChatSession(loaded, options, loaded.renderer.system_prompt, config.src_length, config.history)
    screen = _Screen(config.stream)
    adapter = f" with {loaded.adapter_kind} adapter {loaded.adapter.name}" if loaded.adapter else ""
    named = config.model_name_or_path
    base = loaded.directory if named in (None, str(loaded.adapter)) else named
    stored = f" ({loaded.base.said})" if loaded.base.said else ""
    screen.note(f"Talking to {base}{stored}{adapter}. /help shows the commands, Ctrl-C stops a reply.")
    while True:
        line = screen.read()
        if line is None or line in ("/exit", "/quit"):
            return 0
        if line.startswith("//"):
            _answer(session, screen, options, line[1:])
        elif line.startswith("/"):
            _command(session, screen, options, line)
        elif line:
            _answer(session, screen, options, line)


def _answer(session: Any, screen: _Screen, options: Any, text: str | None) -> None:
    """Ask ``text``, or the last message again when it is None, and show the reply while it comes."""
    with _CtrlC() as ctrl_c:
        asked = session.retry if text is None else lambda *call: session.ask(text, *call)
        reply = asked(screen.piece, ctrl_c.pressed)
    if reply is None:
        screen.note("There is no message to ask again.")
        return
    screen.end_of_reply(reply.text)
    if reply.dropped_rounds:
        screen.note(f"[the conversation is too long: its {reply.dropped_rounds} oldest rounds were left out]")
    if reply.cut_tokens:
        screen.note(
            f"[the message is too long: its first {reply.cut_tokens} tokens were left out; {reply.prompt_tokens} were "
            "read, by src_length and the model's context]"
        )
    whole = reply.num_tokens >= options.max_new_tokens  # else the model's context has ended
    end = f"max_new_tokens={options.max_new_tokens}" if whole else "the end of the model's context"
    ended = {"interrupted": ", stopped", "length": f", cut at {end}"}
    screen.note(
        f"[{reply.num_tokens} tokens, {reply.rate:.1f} tokens/s, first after {reply.first_seconds:.2f} s"
        f"{ended.get(reply.finish_reason, '')}]"
    )


def _command(session: Any, screen: _Screen, options: Any, line: str) -> None:
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if name == "/help":
        screen.note(_command_list() + "\n  //...           send a message that begins with /")
    elif name == "/clear":
        session.clear()
        screen.note("The conversation is empty.")
    elif name == "/undo":
        text = session.undo()
        screen.note("There is nothing to take back." if text is None else f"Taken back: {text}")
    elif name == "/retry":
        _answer(session, screen, options, None)
    elif name == "/system" and argument:
        session.system = argument
        screen.note("The system message is set; it counts from the next reply on.")
    elif name == "/system":
        screen.note(f"System message: {session.system or 'none (the template may bring one)'}")
    elif name == "/save":
        screen.note(_save(session, argument))
    else:
        screen.note(f"Unknown command {name}. /help shows the commands; begin with // to send a message like that.")


def _save(session: Any, name: str) -> str:
    path = Path(name).expanduser()
    if not name:
        return "Say where to: /save FILE"
    if not session.messages:
        return "There is nothing to save."
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(session.as_training_row(), ensure_ascii=False) + "\n")
    except FileExistsError:
        return f"{path} exists and was left as it is. Choose another name."
    except OSError as error:
        return f"Cannot write {path}: {error.strerror}."
    return f"Saved {len(session.messages)} messages to {path}"


def _command_list() -> str:
    return "\n".join(f"  {name:<15} {text}" for name, text in COMMANDS.items())


class _CtrlC:
    """While a reply is written, Ctrl-C stops the reply; pressed twice it interrupts the program."""

    def __init__(self) -> None:
        self._pressed = False

    def pressed(self) -> bool:
        """Whether it was pressed."""
        return self._pressed

    def __enter__(self) -> _CtrlC:
        def handle(number: int, frame: Any) -> None:
            if self._pressed:
                raise KeyboardInterrupt
            self._pressed = True

        self._before = signal.signal(signal.SIGINT, handle)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)


class _Screen:
    """A terminal, or a pair of pipes: replies go to standard output, everything else to standard error."""

    def __init__(self, stream: bool) -> None:
        self._stream = stream
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty()
        # Text in any language goes through, whatever the locale says.
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        if self._terminal:
            import readline  # noqa: F401  (editing and history of the input line)

    def read(self) -> str | None:
        """Return the next message without surrounding blanks, None at the end of the input."""
        if not self._terminal:
            line = sys.stdin.readline()
            return line.strip() if line else None
        while True:
            try:
                return input("\n> ").strip()
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print("\n(/exit or Ctrl-D leaves)")

    def piece(self, text: str) -> None:
        """Show a piece of the reply."""
        if self._stream:
            sys.stdout.write(text)
            sys.stdout.flush()

    def end_of_reply(self, text: str) -> None:
        """End the reply's line."""
        sys.stdout.write("\n" if self._stream else text + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Show something that is not part of a reply."""
        if self._terminal:
            print(f"\x1b[2m{text}\x1b[0m", flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
