"""The machines of a run, as their environment variables name them.

torchrun and LLaMA-Factory users set NNODES, MASTER_ADDR, MASTER_PORT and RANK (or NODE_RANK); Paddle has names of its
own for the same things. Either are taken.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from paddlesft.errors import EnvironmentProblem

COUNT = ("NNODES", "PADDLE_NNODES")
RANK = ("NODE_RANK", "RANK", "PADDLE_RANK")
ADDRESS = "MASTER_ADDR"
PORT = "MASTER_PORT"
MASTER = "PADDLE_MASTER"
TORCH_WORLD = "WORLD_SIZE"  # processes under torchrun, machines under some cluster managers
OWN = "POD_IP"  # paddle's name; for machines with several networks
EXAMPLE = "NNODES=2 RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 paddlesft train CONFIG"


@dataclass(frozen=True)
class Nodes:
    """Several machines that train together.

    Attributes:
        count: how many.
        rank: the number of this one, from 0; number 0 is the master.
        address: the master's, as digits.
        port: the master's, the same on all machines.
        own_address: this machine's, where the others reach it.
    """

    count: int
    rank: int
    address: str
    port: int
    own_address: str

    def launcher_arguments(self) -> list[str]:
        """Return what paddle's launcher has to be told."""
        return [
            "--nnodes", str(self.count), "--rank", str(self.rank), "--master", f"{self.address}:{self.port}",
            "--host", self.own_address,
        ]  # fmt: skip


def read_nodes(environ: Mapping[str, str] | None = None) -> Nodes | None:
    """Read which machines train together.

    Args:
        environ: the environment variables; those of this process when None.

    Returns:
        The machines, or None when this one trains alone.

    Raises:
        EnvironmentProblem: a variable is missing or wrong; all of them in one message.
    """
    environ = os.environ if environ is None else environ
    _refuse_foreign_rank(environ)
    name, value = _given(environ, COUNT)
    problems: list[str] = []
    count = _number(name, value, 1, None, problems) if value else 1
    rank_name, rank_value = _given(environ, RANK)
    if not value:
        hints = ((rank_name, rank_value, ("", "0")), (TORCH_WORLD, environ.get(TORCH_WORLD, ""), ("", "1")))
        told = [f"{other} is {found}" for other, found, alone in hints if found not in alone]
        if told:
            problems.append(f"NNODES, the number of machines, is not set, but {' and '.join(told)}")
    if not problems and count == 1:
        return None
    rank = 0
    if rank_value:
        rank = _number(rank_name, rank_value, 0, None if problems else count - 1, problems)
    else:
        problems.append(f"RANK (or NODE_RANK) is not set: the number of this machine, 0 to {max(count - 1, 1)}")
    master, given = environ.get(MASTER, ""), {ADDRESS: environ.get(ADDRESS, ""), PORT: environ.get(PORT, "")}
    if master and not any(given.values()):
        host, _, text = master.rpartition(":")
        given = {ADDRESS: host, PORT: text}
    for key, what in ((ADDRESS, "name or address of the machine with RANK 0"), (PORT, "a free port there")):
        if not given[key]:
            problems.append(f"{key} is not set: {what}, the same on every machine")
    port = _number(PORT, given[PORT], 1, 65535, problems) if given[PORT] else 0
    address = _resolve(given[ADDRESS], rank, problems) if given[ADDRESS] else ""
    if problems:
        raise EnvironmentProblem(
            "The machines of this run are not described completely:\n  - " + "\n  - ".join(problems) + "\n"
            f"Set all of NNODES, RANK, MASTER_ADDR and MASTER_PORT on every machine, for example: {EXAMPLE}. "
            "A run on this machine alone needs none of them: unset NNODES."
        )
    return Nodes(count, rank, address, port, environ.get(OWN) or _own_address(address, port))


def _refuse_foreign_rank(environ: Mapping[str, str]) -> None:
    """Refuse to run once in each process of another launcher: each would be a run of its own."""
    if environ.get("LOCAL_RANK") and environ.get(TORCH_WORLD, "1") != "1":
        raise EnvironmentProblem(
            f"LOCAL_RANK is {environ['LOCAL_RANK']} and {TORCH_WORLD} is {environ[TORCH_WORLD]}: torchrun, or "
            "something like it, has started this process. paddlesft train starts the processes itself: call it once on "
            "each machine, without torchrun, or unset these variables."
        )


def _given(environ: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    return next(((name, environ[name]) for name in names if environ.get(name)), (names[0], ""))


def _number(name: str, text: str, least: int, most: int | None, problems: list[str]) -> int:
    allowed = f"{least} to {most}" if most is not None else f"a whole number from {least}"
    if text.strip().isdigit() and int(text) >= least and (most is None or int(text) <= most):
        return int(text)
    problems.append(f"{name}: found {text!r}; allowed: {allowed}")
    return least


def _resolve(host: str, rank: int, problems: list[str]) -> str:
    """Return the address of a host in digits; paddle's launcher wants IPv4 and no names."""
    try:
        address = socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]
    except OSError:
        problems.append(f"{ADDRESS}: {host!r} cannot be found from this machine as an IPv4 address or name")
        return ""
    literal = host == "localhost" or host.startswith("127.")
    if ipaddress.ip_address(address).is_loopback and not literal:
        problems.append(
            f"{ADDRESS}: {host!r} stands for {address} on this machine (see /etc/hosts), where no other machine can "
            "reach it; give the address in the network instead"
        )
    return address


def _own_address(master: str, port: int) -> str:
    """Return the address of this machine on the way to the master."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:  # nothing is sent
        try:
            way.connect((master, port))
        except OSError:
            return master
        return way.getsockname()[0]
