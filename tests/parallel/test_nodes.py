"""The machines of a run are read from the variables that torchrun's and Paddle's users set."""

from __future__ import annotations

import socket

import pytest

from paddlesft.errors import EnvironmentProblem
from paddlesft.parallel.nodes import Nodes, read_nodes

WELL = {"NNODES": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environ",
    [
        WELL,
        {**WELL, "RANK": "0", "NODE_RANK": "1"},  # torchrun's own name for a machine's number comes first
        {"PADDLE_NNODES": "2", "PADDLE_RANK": "1", "PADDLE_MASTER": "127.0.0.1:29500"},
        {**WELL, "MASTER_ADDR": "localhost"},
    ],
)
def test_both_kinds_of_names_are_taken(environ: dict[str, str]) -> None:
    nodes = read_nodes(environ)
    assert nodes == Nodes(2, 1, "127.0.0.1", 29500, "127.0.0.1")
    arguments = "--nnodes 2 --rank 1 --master 127.0.0.1:29500 --host 127.0.0.1"
    assert nodes.launcher_arguments() == arguments.split()


def test_a_machine_with_several_networks_names_its_address() -> None:
    assert read_nodes({**WELL, "POD_IP": "127.0.0.5"}).own_address == "127.0.0.5"


@pytest.mark.parametrize("environ", [{}, {"NNODES": "1"}, {"RANK": "0"}, {"NNODES": "1", "MASTER_ADDR": "10.0.0.1"}])
def test_a_machine_alone_needs_nothing(environ: dict[str, str]) -> None:
    assert read_nodes(environ) is None


def test_everything_that_is_missing_or_wrong_comes_at_once() -> None:
    with pytest.raises(EnvironmentProblem) as error:
        read_nodes({"NNODES": "2"})
    text = str(error.value)
    assert "RANK (or NODE_RANK) is not set: the number of this machine, 0 to 1" in text
    assert "MASTER_ADDR is not set: name or address of the machine with RANK 0" in text
    assert "MASTER_PORT is not set: a free port there" in text
    assert "NNODES=2 RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 paddlesft train CONFIG" in text
    with pytest.raises(EnvironmentProblem) as error:
        read_nodes({"NNODES": "2", "RANK": "2", "MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "70000"})
    text = str(error.value)
    assert "RANK: found '2'; allowed: 0 to 1" in text and "MASTER_PORT: found '70000'; allowed: 1 to 65535" in text
    assert "MASTER_ADDR: 'no.such.host.invalid' cannot be found from this machine" in text
    with pytest.raises(EnvironmentProblem, match=r"NNODES: found '2:4'; allowed: a whole number from 1"):
        read_nodes({**WELL, "NNODES": "2:4"})
    with pytest.raises(EnvironmentProblem, match="NNODES, the number of machines, is not set, but RANK is 1\n"):
        read_nodes({"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    with pytest.raises(EnvironmentProblem, match="is not set, but WORLD_SIZE is 2\n"):
        read_nodes({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})


def test_the_processes_of_another_launcher_are_not_runs_of_their_own() -> None:
    with pytest.raises(EnvironmentProblem, match="LOCAL_RANK is 0 and WORLD_SIZE is 2: torchrun, or something like it"):
        read_nodes({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"})
    assert read_nodes({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}) is None


def test_a_name_that_only_this_machine_understands_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: found)
    with pytest.raises(EnvironmentProblem, match=r"'node0' stands for 127\.0\.1\.1 on this machine \(see /etc/hosts\)"):
        read_nodes({**WELL, "MASTER_ADDR": "node0"})
