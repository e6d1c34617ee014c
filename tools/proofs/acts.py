"""What is proved, one function for each: it changes live sessions of real programs, and raises Disproved.

Each takes the world, whose address family is set, and a size: how much of it there is.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import dysco
from dysco.chains import Changing
from proofs import shell
from proofs.world import (
    GROW,
    MUST,
    NUMBERS,
    ONE_WAY,
    SERVE,
    SHRINK,
    SSH,
    WEB,
    Disproved,
    Download,
    World,
    until,
)

FINE: Final = ("ended", "not on this chain", "not established", "not found", "same devices")
"""Why changes in a crowd may fail: new sessions come with the policy's chain, old ones end, or are changed already."""
_MOST_ROUNDS: Final = 10


@dataclass(frozen=True)
class Act:
    """A proof. full, quick: its size. lossy: on links that lose one packet of a hundred."""

    about: str
    run: Callable[[World, int], str]
    full: int
    quick: int
    lossy: bool = False


def download(world: World, size: int) -> str:
    """A box is put in, another taken out, one replaced, in the middle of one download each."""
    server = world.script("d", "serve", "serve", "listen", SERVE, "--least", size)
    try:
        world.listening("d", SERVE)
        gone = {"insert": "", "remove": "b", "replace": "b"}
        for kind, wish in (("insert", ("c",)), ("remove", ("b",)), ("replace", ("b", "c"))):
            (server.directory / "stop").unlink(missing_ok=True)
            curl = Download(world, world.url(SERVE, "file"))
            try:
                until("nothing arrives", lambda curl=curl: curl.total > size // 10)  # type: ignore[misc]
                more = {"after": "b"} if kind == "insert" else {}
                world.must(SERVE, kind, *wish, **more)
                with ExitStack() as stack:
                    if gone[kind]:
                        stack.enter_context(world.silence(gone[kind]))
                    have = curl.total
                    until("nothing arrives any more", lambda curl=curl, have=have: curl.total > have)  # type: ignore[misc]
                    server.stop()
                    sent = server.line()
                    arrived = curl.sha256()
                if (arrived, curl.total) != (sent["sha256"], sent["sent"]):
                    raise Disproved(f"{kind}: {curl.total} of {sent['sent']} bytes arrived, or others")
            finally:
                curl.kill()
    finally:
        server.kill()
    return f"{size:,} bytes each"


@contextmanager
def many(world: World, size: int, where: str = "") -> Iterator[tuple[list[str], Callable[[], None]]]:
    """The command for so many short downloads, and what compares them; they can be made more than once.

    where: the place on the server, which says how long they last.
    """
    root = world.lab.directory / "d" / "www"
    wanted = {}
    for number in range(20):
        data = os.urandom(100_000 + 997 * number)
        (root / f"short{number}").write_bytes(data)
        wanted[number] = hashlib.sha256(data).hexdigest()
    arrived = world.lab.directory / "a" / "short"
    arrived.mkdir(exist_ok=True)
    config = arrived / "urls"
    config.write_text(
        "".join(
            f'url = "{world.url(WEB, f"{where}short{number % 20}")}"\noutput = "{arrived / str(number)}"\n'
            for number in range(size)
        )
    )
    argv = [
        "curl",
        "-sS",
        "-f",
        "-Z",
        "--parallel-max",
        str(min(200, size)),
        "-K",
        str(config),
    ]

    def check() -> None:
        for number in range(size):
            if hashlib.sha256((arrived / str(number)).read_bytes()).hexdigest() != wanted[number % 20]:
                raise Disproved(f"download {number} is not what was sent")
            (arrived / str(number)).unlink()

    yield argv, check


def crowd(world: World, size: int) -> str:
    """Many short downloads at the same time, while all sessions that there are get changed."""
    at_once, before, rounds = min(200, size), len(world.times), 0
    with many(world, size) as (argv, check):
        while len(world.times) - before < at_once // 20:  # downloads may be over before they are changed
            rounds += 1
            if rounds > _MOST_ROUNDS:
                raise Disproved(f"only {len(world.times) - before} changes were made meanwhile")
            _changed_all_the_time(world, world.lab.command("a", argv))
            check()
    for one in world.failed:
        if not any(word in one.reason for word in FINE):
            raise Disproved(f"{one.phase} by {one.by}: {one.reason}")
    world.failed.clear()
    return f"{size} downloads, {at_once} at once"


def _changed_all_the_time(world: World, argv: list[str]) -> None:
    """Run curl, and change the chains of whatever sessions there are until it ends."""
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    wishes = itertools.cycle(
        (("replace", "b", "c"), ("insert", "b"), ("remove", "c"), ("remove", "b"), ("insert", "b"))
    )
    try:
        world.established(WEB)
        while process.poll() is None:
            kind, *wish = next(wishes)
            try:
                world.change(f"dst port {WEB}", kind, *wish)
            except dysco.DyscoError as error:
                if "no session" not in str(error):
                    raise
        _, errors = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise Disproved(f"curl has ended with {process.returncode}: {errors}")


def idle(world: World, size: int) -> str:
    """An ssh session says something, is changed while it says nothing, and says something again."""
    shell.serve(world.lab, SSH)
    with shell.echo(world.lab, SSH, world.address("d")) as say:
        say("line 0")
        for number in range(1, size + 1):
            world.must(SSH, "insert", "c", after="b")
            say(f"line {number}")
            world.must(SSH, "remove", "b")
            world.must(SSH, "replace", "c", "b")
            with world.silence("c"):
                say(f"line {-number}")
    return f"{3 * size} changes, nothing said meanwhile"


@contextmanager
def one_sided(world: World, sender: str) -> Iterator[Callable[[], None]]:
    """A session on which only this side sends; gives what ends it, and compares what was sent and received."""
    server = world.script("d", "one-way", "send" if sender == "d" else "receive", "listen", ONE_WAY)
    world.listening("d", ONE_WAY)
    what = "receive" if sender == "d" else "send"
    client = world.script("a", "one-way", what, "connect", world.address("d"), ONE_WAY)
    source, sink = (server, client) if sender == "d" else (client, server)

    def end() -> None:
        source.stop()
        _same(source.line(), sink.line())

    try:
        world.established(ONE_WAY)
        yield end
    finally:
        client.kill()
        server.kill()


def one_way(world: World, size: int) -> str:
    """A session on which one side sends and the other says nothing, in both directions."""
    for sender in ("d", "a"):
        with one_sided(world, sender) as end:
            for _ in range(size):
                world.must(ONE_WAY, "insert", "c", after="b")
                world.must(ONE_WAY, "remove", "b")
                world.must(ONE_WAY, "replace", "c", "b")
            with world.silence("c"):
                end()
    return f"{6 * size} changes, both directions"


def thousand(world: World, size: int) -> str:
    """One session that sends all the time is changed again and again, on links that lose packets."""
    server = world.script("d", "thousand", "send", "listen", ONE_WAY)
    world.listening("d", ONE_WAY)
    client = world.script("a", "thousand", "receive", "connect", world.address("d"), ONE_WAY)

    async def changes() -> None:
        async with dysco.connect(world.lab.socket("a")) as agent:
            session = agent.session(f"dst port {ONE_WAY}")

            def wish(number: int) -> Changing:
                return (
                    session.insert("c", after="b"), session.remove("b"), session.replace("c", "b")
                )[number % 3]  # fmt: skip

            for number in range(size):
                steps = [one async for one in wish(number)]
                world.note(steps)
                if steps[-1].phase != "done":
                    raise Disproved(
                        f"change {number}: {steps[-1].phase} by {steps[-1].by}: {steps[-1].reason}"
                    )

    try:
        world.established(ONE_WAY)
        asyncio.run(changes())
        server.stop()
        sent = server.line()
        _same(sent, client.line())
    finally:
        client.kill()
        server.kill()
    return f"{size} changes, {sent['sent']:,} bytes, 1 % lost"


def deltas(world: World, size: int) -> str:
    """A box that has made the stream longer one way and shorter the other leaves in the middle of it."""
    for port, box, words in (
        (GROW, "s", ("sheep", "elephant", "cow", "")),
        (SHRINK, "t", ("sheep", "emu", "cow", "rhinoceros")),
    ):
        lines = _lines(world, port, box, size, words)
        if not all(0 < one["changed"] < one["lines"] for one in lines):
            raise Disproved(f"the box saw all or nothing: {lines}")
    return "Df > 0 > Db and Df < 0 < Db"


def renumbered(world: World, size: int) -> str:
    """A box that gives a session other numbers leaves; nobody has told anybody of that."""
    lines = _lines(world, NUMBERS, "r", size, ("sheep", "sheep", "cow", "cow"))
    return f"{sum(one['lines'] for one in lines):,} lines"


def mandatory(world: World, size: int) -> str:
    """A mandatory box can be replaced, and never removed."""
    server = world.script("d", "must", "send", "listen", MUST)
    world.listening("d", MUST)
    client = world.script("a", "must", "receive", "connect", world.address("d"), MUST)
    try:
        world.established(MUST)
        wishes: tuple[tuple[str, Any], ...] = (("remove", "m"), ("set_hops", []))
        for kind, wish in wishes:
            end = world.change(f"dst port {MUST}", kind, wish)[-1]
            if end.phase != "refused" or "mandatory" not in end.reason:
                raise Disproved(f"{kind}: {end.phase}: {end.reason}")
        world.failed.clear()
        world.must(MUST, "replace", "m", "c")
        with world.silence("m"):
            server.stop()
            _same(server.line(), client.line())
    finally:
        client.kill()
        server.kill()
    return "removing refused, replaced"


def _lines(world: World, port: int, box: str, size: int, words: tuple[str, ...]) -> list[dict[str, Any]]:
    """Talk in both directions through a box that leaves meanwhile."""
    name = f"lines{port}"
    changed = ("--changed", *words)
    server = world.script("d", name, "lines", "listen", port, *changed)
    world.listening("d", port)
    client = world.script("a", name, "lines", "connect", world.address("d"), port, *changed)

    def come_to(least: int) -> bool:
        """Whether both have got so many thousand lines."""
        found = [one.directory / "progress" for one in (client, server)]
        return all(one.exists() and one.stat().st_size >= least for one in found)

    for program in (client, server):
        (program.directory / "progress").unlink(missing_ok=True)
    try:
        until("no lines come", lambda: come_to(1))
        world.must(port, "remove", box)
        with world.silence(box):
            until("no lines come any more", lambda: come_to(1 + size))
            client.stop()
            server.stop()
            said = [client.line(), server.line()]
    finally:
        client.kill()
        server.kill()
    for got in said:
        if got["error"]:
            raise Disproved(got["error"])
    return said


def _same(sent: dict[str, object], received: dict[str, object]) -> None:
    """Raise Disproved unless what was received is what was sent."""
    if sent["sha256"] != received["sha256"]:
        raise Disproved(f"{received['received']} bytes of {sent['sent']} arrived, or others")


def median_ms(times: list[float]) -> float:
    """The median of times in seconds, in milliseconds."""
    return statistics.median(times) * 1000 if times else 0.0


ACTS = {
    "download": Act("curl of a gigabyte", download, 1_000_000_000, 20_000_000),
    "crowd": Act("200 short downloads at once", crowd, 1000, 60),
    "idle": Act("an idle ssh session", idle, 10, 1),
    "one-way": Act("a session that sends one way only", one_way, 10, 1),
    "deltas": Act("a stream box that has grown and shrunk it leaves", deltas, 20, 1),
    "renumbered": Act("a box that randomises numbers leaves", renumbered, 20, 1),
    "mandatory": Act("a mandatory box", mandatory, 1, 1),
    "thousand": Act("1,000 changes under 1 % loss", thousand, 1000, 15, lossy=True),
}
