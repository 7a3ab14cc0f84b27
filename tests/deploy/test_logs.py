"""Log lines: JSON that programs can rely on, and words for what TLS has refused."""

import json
import logging
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer

from deploy.drills import SECONDS, knock
from deploy.pki import made_by, of
from deploy.processes import free_ports
from deploy.test_drills_keys import line
from tierfed.deploy.authority import Authority
from tierfed.deploy.grpc_transport import Grpc, Keys
from tierfed.deploy.household import Household
from tierfed.deploy.identity import channel_options
from tierfed.deploy.logs import event, logged
from tierfed.deploy.secure import secured
from tierfed.deployment import DeploySettings
from tierfed.errors import InputError

LOG = logging.getLogger("tierfed.test")
SETTINGS = DeploySettings()


def entries(text: str) -> list[dict[str, Any]]:
    """All lines, each of which has to be a JSON object."""
    found = [json.loads(one) for one in text.splitlines()]
    for entry in found:
        assert {"time", "level", "node", "round", "event", "where", "message"} <= entry.keys()
    return found


def test_every_line_is_json(capfd: pytest.CaptureFixture[str]) -> None:
    with logged("json", "fog-0") as log:
        LOG.info("has begun")
        log.round = lambda: 4
        LOG.warning("two\nlines of %s", "ü", extra=event("refused"))
        LOG.info("of a device", extra=event("joined", node="ann", round=7))
        try:
            raise ValueError("what a bug says")
        except ValueError:
            LOG.exception("it failed")
        os.write(2, b"of a library\n\nand half a line")
        os.write(2, b" later\n")
    text = capfd.readouterr().err
    got = entries(text)
    keys = ("level", "node", "round", "event", "message")
    assert {tuple(e[k] for k in keys) for e in got} == {
        ("info", "fog-0", None, "note", "has begun"),
        ("warning", "fog-0", 4, "refused", "two\nlines of ü"),
        ("info", "ann", 7, "joined", "of a device"),
        ("error", "fog-0", 4, "note", "it failed"),
        ("info", "fog-0", 4, "stderr", "of a library"),
        ("info", "fog-0", 4, "stderr", "and half a line later"),
    }
    (failed,) = (e for e in got if "traceback" in e)
    assert failed["traceback"].endswith("ValueError: what a bug says")


def test_bad_input_is_a_line_too(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, logged("json", "cloud"):
        raise InputError("got 1, wanted 2;\ntake 2")
    assert ended.value.exit_code == 2
    (entry,) = entries(capfd.readouterr().err)
    assert (entry["level"], entry["event"], entry["message"]) == ("error", "error", "got 1, wanted 2; take 2")
    with pytest.raises(InputError), logged("text", "cloud"):
        raise InputError("as it is")
    assert capfd.readouterr().err == ""


def test_lines_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    with logged("text", "fog-0"):
        LOG.info("has begun")
        os.write(2, b"of a library\n")
    os.write(2, b"after it\n")
    LOG.info("nobody listens")
    *before, after = capfd.readouterr().err.splitlines()
    begun, library = sorted(before)  # a line of ours begins with the year
    assert begun.endswith(" info fog-0: has begun")
    assert (library, after) == ("of a library", "after it")


def test_what_tls_refuses(
    authority: Authority, other: Authority, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The parent has a line of its own for each, and the child is told what can be known."""
    port, ann = free_ports(1), of(authority, "ann")
    thief, address = of(other, "ann"), f"127.0.0.1:{port}"
    nothing = Keys(server=None, channel=grpc.ssl_channel_credentials(ann.ca), options=channel_options(ann), who=None)  # type: ignore[arg-type]
    cases = [
        (line(SETTINGS, replace(thief, ca=ann.ca), channel_options(ann)), "wrong CA: its certificate is not signed by"),
        (line(SETTINGS, made_by(authority, tmp_path, days_ago=301)), "expired: its certificate has ended"),
        (line(SETTINGS, made_by(authority, tmp_path, days_ago=-2)), "not valid yet: its certificate begins later"),
        (Grpc(SETTINGS, nothing), "no certificate: it has shown none"),
        (Grpc(SETTINGS), "no TLS: it speaks without"),
    ]
    network = secured(SETTINGS, authority.node_folder("fog-0"), "fog-0")
    house = Household(SETTINGS, lambda peer, hello: 0, str, network.gate)
    with logged("json", "fog-0"):
        listener = network.transport.listen(address, house)
        told = [knock(transport, address, b"x") for transport, _ in cases]
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert plain.recv(1) == b""
        wrong = line(SETTINGS, thief)
        told.append(knock(wrong, address, b"x"))  # this child does not believe the parent
        end, text = time.monotonic() + SECONDS, ""
        while text.count("refused a connection") < len(cases) + 2:
            assert time.monotonic() < end, text
            text += capfd.readouterr().err
            time.sleep(0.01)
        listener.close()
        for transport in (*(transport for transport, _ in cases), wrong, network.transport):
            transport.close()
    said = [e["message"] for e in entries(text) if e["event"] == "refused"]
    for _, why in cases:
        assert any(one.startswith(f"refused a connection: {why}") for one in said), (why, said)
    assert sum("no TLS" in one for one in said) == 2
    assert [one.heard for one in told] == [[]] * len(told)
    assert all("before TLS was agreed upon: it may not believe the certificate" in one.why for one in told[:4])
    assert told[-1].why.startswith("unavailable: wrong CA: its certificate is not signed by the CA of this node")
    assert house.present() == set()
