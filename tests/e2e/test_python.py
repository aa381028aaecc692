"""The Python package: the same wire as the C library, against siltd and one that breaks down."""

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import lib

sys.path.insert(0, str(lib.ROOT / "clients/python"))
# One pool of descriptors holds one silt.proto: the mock shall use the package's.
import silt  # noqa: E402
import silt.silt_pb2  # noqa: E402

lib.wire = lambda: silt.silt_pb2
import texts  # noqa: E402
from mock import Cutter, Mock  # noqa: E402

EXAMPLES = lib.ROOT / "clients/python/examples"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def siltd(*args):
    return lib.Daemon(*lib.tiny(), args)


@contextlib.contextmanager
def refused(kind, text):
    try:
        yield
    except kind as error:
        assert text in str(error), error
        return
    raise AssertionError(f"no {kind.__name__}")


def settled(client, stream):
    def check():
        stat = client.stat(stream)
        return stat if stat.tokens_computed == stat.tokens_acked else None
    return lib.wait_until(f"{stream} is computed", check, 120)


def test_same_memory_as_from_c():
    data = texts.text(20_000)
    with siltd() as daemon, silt.Client(daemon.endpoint) as client:
        path = daemon.home / "text"
        path.write_bytes(data)
        lib.silt(daemon.endpoint, "feed", "c", path)
        assert client.open("py").created and not client.open("py").created
        with client.feed("py", "p") as feed:
            for piece in texts.cuts(data, seed=7):
                feed.write(piece)
            feed.end()
            feed.drain()
            assert feed.bytes_acked == len(data) and feed.unacked == 0
        stats = [settled(client, name) for name in ("c", "py")]
        assert stats[0].memory_hash == stats[1].memory_hash != "0" * 16
        assert stats[0].tokens_acked == stats[1].tokens_acked > 5000
        seen = lib.stat(daemon.endpoint, "py")
        for field in ("tokens_acked", "chunks", "segments_ring", "memory_hash", "hash_chunk",
                      "bytes_plan", "dmc_ratio_asked"):
            assert getattr(stats[1], field) == seen[field], field
        assert [s.stream for s in client.list()] == ["c", "py"]
        process = client.process()
        assert process.streams == 2 and process.bytes_plan >= process.bytes_resident > 0
        client.remove("c")
        assert [s.stream for s in client.list()] == ["py"]


def test_ask_streams_keeps_and_cancels():
    with siltd() as daemon, silt.Client(daemon.endpoint) as client:
        client.open("s")
        with client.feed("s", "p") as feed:
            feed.turn("system", "Be brief.")
            feed.write(texts.text(3000))
        answer = client.ask("s", "What?", wait=True, recall="none", tokens_max=24)
        pieces = list(answer)
        assert len(pieces) > 3 and answer.done.finish in ("length", "end")
        assert answer.done.position == client.stat("s").tokens_acked == answer.done.acked
        again = client.ask("s", "What?", wait=True, recall="none", tokens_max=24).text()
        assert again == "".join(pieces)
        before = client.stat("s").tokens_acked
        with client.ask("s", "Much?", tokens_max=1000, keep=True) as long:
            next(long)
        client.ask("s", "What?", tokens_max=1).text()
        assert client.stat("s").tokens_acked == before  # cancelled: not kept
        kept = client.ask("s", "Keep?", tokens_max=8, keep=True)
        kept.text()
        assert client.stat("s").tokens_acked > before + kept.done.answer_tokens


def test_top_p_0_is_the_likeliest_token():
    with siltd() as daemon, silt.Client(daemon.endpoint) as client:
        client.open("s")
        with client.feed("s", "p") as feed:
            feed.write(texts.text(2000))
        greedy, likeliest = (client.ask("s", "What?", wait=True, tokens_max=24,
                                        sampling=silt.Sampling(temperature, top_p)).text()
                             for temperature, top_p in ((0.0, 1.0), (5.0, 0.0)))
        assert greedy == likeliest


def test_answers_left_behind_are_let_go():
    with siltd() as daemon, silt.Client(daemon.endpoint) as client:
        client.open("s")
        for _ in range(3):
            for _ in client.ask("s", "What?", tokens_max=4):
                break
        gc.collect()
        assert not client._client._link._waiting


def test_errors_are_named():
    with siltd() as daemon, silt.Client(daemon.endpoint) as client:
        with refused(silt.NotFound, "no stream"):
            client.stat("none")
        with refused(silt.Invalid, "not a stream"):
            client.open("../etc")
        client.open("s", dmc=4)
        with refused(silt.Exists, "s"):
            client.open("s", dmc=2)
        with refused(silt.Invalid, "recall"):
            client.ask("s", "what", recall="all")
        with refused(silt.TooLarge, "message"):
            with client.feed("s", "p") as feed:
                feed.turn("user", b"x" * (1 << 20))
        with client.feed("s", "p"), refused(silt.Exists, "already"):
            client.feed("s", "p")
        with refused(silt.Invalid, "U+0000"):
            client.ask("s", "what\0of the rest")
    with refused(silt.Unreachable, "no siltd answers"):
        silt.Client(f"ipc://{daemon.home}/none", connect_timeout=0.3).process()
    with refused(silt.Invalid, "looks like"):
        silt.Client("nonsense").process()
    with refused(silt.Invalid, "1 to 65535"):
        silt.Client("tcp://127.0.0.1:99999").process()


def test_a_stream_comes_back_to_its_place():
    """Whoever wants it waits for that while another goes, and is not sent away; not for ever."""
    with siltd("--streams-max", "1") as daemon, silt.Client(daemon.endpoint) as client:
        for turn in range(2):
            for stream in ("a", "b"):
                client.open(stream)
                with client.feed(stream, "p") as feed:
                    feed.write(texts.text(600, seed=turn))
        assert client.ask("a", "Hm?", tokens_max=2, wait=True).text() is not None
        assert client.pin("b", 0, 20).pins and not client.pins("a").pins
        assert client.forget("b", 30, 40) == client.stat("b").tokens_acked
    mock = Mock()
    with silt.Client(mock.endpoint) as client:
        client.open("s")
        mock.busy = 2
        assert client.ask("s", "Where?").text() == "It was Köln."
        mock.busy = 1 << 30
        start = time.monotonic()
        with refused(silt.Busy, "later"):
            client.ask("s", "Where?").text()
        assert 4 < time.monotonic() - start < 20 * lib.SLOW


def test_feed_through_cuts_and_little_credit():
    data = texts.text(200_000)
    mock = Mock(credit=9000)
    links = []
    with silt.Client(mock.endpoint, on_link=links.append) as client:
        client.open("s")
        mock.busy = 2
        for feeds, when in ((5, "before"), (25, "after"), (60, "after")):
            mock.die_at = feeds, when
            feed_part(client, mock, data[:len(data) * feeds // 60])
        assert mock.text("s") == data and mock.unacked_max <= 9000, mock.unacked_max
        assert links and not all(links) and links[-1]


def feed_part(client, mock, data):
    """Feeds what is missing up to data, while a thread brings the siltd back whenever it dies."""
    over = threading.Event()

    def revive():
        while not over.wait(0.05):
            if not mock.thread.is_alive():
                mock.die_at = None
                mock.start()

    thread = threading.Thread(target=revive)
    thread.start()
    try:
        with client.feed("s", "p") as feed:
            rest = data[feed.bytes_acked:]
            for at in range(0, len(rest), 1500):
                feed.write(rest[at:at + 1500])
    finally:
        over.set()
        thread.join()


def test_who_cuts_every_connection_has_pauses():
    """As many as where nobody listens: they had been a thousand a second."""
    cutter = Cutter()
    with silt.Client(cutter.endpoint) as client, refused(silt.Unreachable, "no siltd answers"):
        client.process()
    assert 2 <= cutter.taken < 20, cutter.taken


def test_feed_survives_kill():
    data = texts.text(60_000)
    with siltd() as daemon, silt.Client(daemon.endpoint) as client:
        client.open("s")
        with client.feed("s", "p") as feed:
            for number, at in enumerate(range(0, len(data), 600)):
                feed.write(data[at:at + 600])
                if number in (20, 60):
                    daemon.kill()
                    daemon.start(ready=False)
        stat = settled(client, "s")
        assert stat.bytes_text == len(data)
        with siltd() as other, silt.Client(other.endpoint) as calm:
            calm.open("s")
            with calm.feed("s", "p") as feed:
                feed.write(data)
            assert settled(calm, "s").memory_hash == stat.memory_hash


def test_one_feed_a_producer():
    """Two would give their messages the same numbers, and siltd take the first of each alone."""
    async def two(endpoint):
        async with silt.AsyncClient(endpoint) as client:
            await client.open("s")
            first, second = await asyncio.gather(
                *(client.feed("s", "p") for _ in range(2)), return_exceptions=True)
            assert isinstance(second, silt.Exists), second
            await first.close()
            later = await client.feed("s", "p")
            await first.close()
            with refused(silt.Exists, "already"):
                await client.feed("s", "p")
            await later.close()

    with siltd() as daemon:
        asyncio.run(two(daemon.endpoint))


def test_close_ends_what_waits():
    nowhere = f"ipc://{lib.folder()}/none"
    client, ended = silt.Client(nowhere, connect_timeout=600.0), []

    def wait():
        try:
            client.process()
        except silt.Lost as error:
            ended.append(error)

    async def waits():
        client = silt.AsyncClient(nowhere, connect_timeout=600.0)
        waiting = asyncio.ensure_future(client.process())
        await asyncio.sleep(0.3)
        await client.close()
        with refused(silt.Lost, "closed"):
            await asyncio.wait_for(waiting, 5 * lib.SLOW)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.3)
    client.close()
    thread.join(5 * lib.SLOW)
    assert ended and "closed" in str(ended[0]), ended
    asyncio.run(waits())


def test_async_many_at_once():
    async def one(client, name, data):
        await client.open(name)
        async with await client.feed(name, "p") as feed:
            for piece in texts.cuts(data, seed=len(name)):
                await feed.write(piece)
        answer = await client.ask(name, "What?", wait=True, tokens_max=6)
        return await answer.text(), answer.done.position

    async def all_of(endpoint):
        async with silt.AsyncClient(endpoint) as client:
            done = await asyncio.gather(*(one(client, f"s{i}", texts.text(3000, seed=i))
                                          for i in range(4)))
            names = [stat.stream async for stat in client.list()]
        return done, names

    with siltd("--forks-max", "4") as daemon:
        done, names = asyncio.run(all_of(daemon.endpoint))
        assert names == ["s0", "s1", "s2", "s3"] and all(position > 0 for _, position in done)


def example(name, daemon, *args, stdin):
    env = dict(os.environ, PYTHONPATH=str(EXAMPLES.parent))
    done = subprocess.run([sys.executable, EXAMPLES / name, "-c", daemon.endpoint, *args],
                          input=stdin, env=env, capture_output=True, timeout=120 * lib.SLOW,
                          check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace")


def test_examples():
    with siltd() as daemon:
        said = b"Ada: the pump failed at nine\nBo: who fixed it?\n?What failed?\n"
        assert "tokens)" in example("live_transcript.py", daemon, "talk", stdin=said)
        assert lib.stat(daemon.endpoint, "talk")["tokens_acked"] > 20
        example("agent_loop.py", daemon, "agent", "How full is /?", stdin=b"")
        before = lib.stat(daemon.endpoint, "agent")["tokens_acked"]
        example("agent_loop.py", daemon, "agent", "And now?", stdin=b"")
        assert lib.stat(daemon.endpoint, "agent")["tokens_acked"] > before > 20


def test_follow():
    """A file that is fed late, grows, rotates and is emptied, siltd killed in between; then again
    by another client, which goes on."""
    mock = Mock()
    path, want = mock.home / "log", b""

    async def run():
        async with silt.AsyncClient(mock.endpoint, reconnect_timeout=60) as client:
            await client.open("s")
            async for _ in client.follow("s", path, poll=0.05):
                if mock.text("s").endswith(b"end\n"):
                    return

    def write(text):
        nonlocal want
        with open(path, "ab") as file:
            file.write(text)
        want += text
        lib.wait_until("it arrives", lambda: "s" in mock.streams and mock.text("s") == want)

    for turn in range(2):
        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        write(b"first line %d\n" % turn)
        write(b"half a ")
        mock.kill()
        os.rename(path, f"{path}.{turn}")
        with open(path, "ab") as file:
            file.write(b"rotated %d\n" % turn)
        want += b"rotated %d\n" % turn
        mock.start()
        write(b"and more\n")
        os.truncate(path, 0)
        time.sleep(0.3)
        write(b"emptied %d\n" % turn)
        write(b"end\n")
        thread.join(20 * lib.SLOW)
        assert not thread.is_alive()
    with silt.Client(mock.endpoint) as client:  # the same to be called
        for acked in client.follow("other", path) if client.open("other") else ():
            assert acked == path.stat().st_size and mock.text("other") == path.read_bytes()
            break


def test_what_ends_a_feed_is_said():
    """While nothing more is written, too; and what on_link raises does not end the connection."""
    links = []

    def on_link(up):
        links.append(up)
        raise ValueError("of the caller")

    mock = Mock()
    path = mock.home / "file"
    path.write_bytes(b"The first line.\n")
    with silt.Client(mock.endpoint, on_link=on_link) as client:
        client.open("s")
        following = client.follow("s", path, poll=0.05)
        assert next(following) == 16
        mock.kill()
        lib.wait_until("it is told", lambda: links)
        mock.start()
        mock.full = True
        with open(path, "ab") as file:
            file.write(b"The last line.\n")
        thread = threading.Thread(target=lambda: links.append(ends(following)), daemon=True)
        thread.start()
        thread.join(20 * lib.SLOW)
        assert links[-1] == "NoSpace", links
    mock.kill()


def ends(items):
    try:
        for _ in items:
            pass
    except silt.Error as error:
        return type(error).__name__
    return "no error"


def test_follow_reads_what_was_rotated_away():
    """What was written between the end and the rotation is not left behind, nor what a name had
    between two looks: as `silt feed --follow`."""
    mock = Mock()
    path, days = mock.home / "log", time.strftime("log-%Y%m%d")

    async def run(end):
        async with silt.AsyncClient(mock.endpoint) as client:
            await client.open("s")
            async for _ in client.follow("s", path, poll=0.05):
                if mock.text("s").endswith(end):
                    return

    def follow(end):
        asyncio.run(asyncio.wait_for(run(end), 20 * lib.SLOW))

    path.write_bytes(b"one\n")
    follow(b"one\n")
    with open(path, "ab") as file:
        file.write(b"two\n")
    os.rename(path, mock.home / days)                       # twice, by number and day
    os.utime(mock.home / days, (1.5e9, 1.5e9))
    path.write_bytes(b"three\n")
    os.rename(path, f"{path}.1")
    path.write_bytes(b"four\n")
    (mock.home / "log.3").write_bytes(b"of before anybody read this name\n")
    os.utime(mock.home / "log.3", (1e9, 1e9))
    (mock.home / "log.old").write_bytes(b"of another making\n")
    (mock.home / "log.4").write_bytes(b"\x1f\x8b packed\n")
    follow(b"four\n")
    assert mock.text("s") == b"one\ntwo\nthree\nfour\n", mock.text("s")

    thread = threading.Thread(target=follow, args=(b"seven\n",))
    thread.start()
    with open(path, "ab") as file:
        file.write(b"five\n")
    lib.wait_until("it is followed", lambda: mock.text("s").endswith(b"five\n"))
    os.rename(f"{path}.1", f"{path}.2")
    os.rename(path, f"{path}.1")
    path.write_bytes(b"six\n")                              # and gone before anybody looks
    os.rename(f"{path}.2", f"{path}.5")
    os.rename(f"{path}.1", f"{path}.2")
    os.rename(path, f"{path}.1")
    path.write_bytes(b"seven\n")
    thread.join(20 * lib.SLOW)
    assert not thread.is_alive()
    assert mock.text("s") == b"one\ntwo\nthree\nfour\nfive\nsix\nseven\n", mock.text("s")


def test_pins_as_from_c():
    """What one client pins, the other lists; waiting and not; a list says how much alone."""
    async def unpin(endpoint):
        async with silt.AsyncClient(endpoint) as client:
            before = await client.pins("s")
            return before, await client.pin("s", 60, 70), await client.unpin("s", 0, 1)

    with siltd("--pin-tokens-max", "64") as daemon, silt.Client(daemon.endpoint) as client:
        client.open("s")
        with client.feed("s", "p") as feed:
            feed.write(texts.text(9000))
        settled(client, "s")
        assert client.pins("s") == silt.Pins(64, ())
        done = client.pin("s", 0, 20)
        assert done == client.pins("s") and [(p.start, p.end) for p in done.pins] == [(0, 20)]
        lib.silt(daemon.endpoint, "pin", "s", "--from", "30", "--to", "50")
        listed = lib.json.loads(lib.silt(daemon.endpoint, "pins", "s", "--json").out)
        both = client.pins("s")
        assert listed["tokens_max"] == both.tokens_max == 64 and listed["pins"] == [
            {"from": p.start, "to": p.end, "held": p.held} for p in both.pins], listed
        seen = client.stat("s")
        assert seen.pins == both.pins and (seen.pin_tokens, seen.pin_tokens_max) == (40, 64)
        assert lib.stat(daemon.endpoint, "s")["pin_tokens"] == 40
        listed, = client.list()
        assert listed.pin_tokens == 40 and not listed.pins
        with refused(silt.NoSpace, "no room"):
            client.pin("s", 60, 90)
        with refused(silt.Invalid, "no range"):
            client.pin("s", 7, 7)
        before, more, after = asyncio.run(unpin(daemon.endpoint))
        assert before == both and len(more.pins) == 3
        assert [(p.start, p.end) for p in after.pins] == [(30, 50), (60, 70)] == \
            [(p.start, p.end) for p in client.pins("s").pins]
        with refused(silt.NotFound, "pinned"):
            client.unpin("s", 0, 20)


def test_keys_as_from_c():
    """Allowed from Python, a client of C gets in, and one of Python; denied, neither does."""
    listen = f"tcp://127.0.0.1:{free_port()}"
    with siltd("--listen", listen) as daemon, silt.Client(daemon.endpoint) as client:
        file = daemon.home / "key"
        public = lib.silt(daemon.endpoint, "key", "new", file).out.decode().strip()
        keys = client.keys()
        assert keys.listen == listen and not keys.grants and len(keys.server_key) == 40
        assert lib.silt(daemon.endpoint, "key", "server").out.decode().strip() == keys.server_key
        client.open("mine")
        client.open("other")
        client.key_allow(public, "mine", name="ops")
        assert client.keys().grants == (silt.Grant(public, "ops", "mine"),)
        assert b"ops" in lib.silt(daemon.endpoint, "key", "list").out
        remote = ("--server-key", keys.server_key, "--client-key", file)
        assert b"mine" in lib.silt(listen, *remote, "ls").out
        with silt.Client(listen, server_key=keys.server_key, client_key=str(file)) as far:
            assert [stat.stream for stat in far.list()] == ["mine"]
            with refused(silt.Denied, "local"):
                far.keys()
            client.key_allow(public, None)
            assert [stat.stream for stat in far.list()] == ["mine", "other"]
        client.key_deny(public)
        assert not client.keys().grants
        assert b"does not take this client's key" in lib.silt(listen, *remote, "ls", code=1).err
        with refused(silt.Invalid, "no public key"):
            client.key_allow("short", None)


class OfTwo(Mock):
    """A siltd with a GPU, one line of whose plan is of a kind that no client knows."""

    def on_stat(self, who, request):
        pb = silt.silt_pb2
        tiers = [pb.Tier(name="streams", bytes_plan=50, bytes_used=20),
                 pb.Tier(name="GPU: streams", bytes_plan=400, bytes_used=300, on_device=True),
                 pb.Tier(name="what comes", bytes_plan=7, bytes_used=7, on_device=True)]
        reply = pb.StatReply(process=pb.ProcessStat(version="mock", bytes_plan=50, bytes_used=20,
                                                    tiers=tiers))
        self.send(who, pb.Reply(id=request.id, stat=reply))


def test_memory_of_a_device_is_apart():
    """By its field, for both clients: names are for people."""
    mock = OfTwo()
    with silt.Client(mock.endpoint) as client:
        assert [tier.on_device for tier in client.process().tiers] == [False, True, True]
    lines = [line.split() for line in lib.silt(mock.endpoint, "stat").text().splitlines()]
    assert ["total", "20", "B", "50", "B", "50"] in lines, lines
    assert ["total", "of", "the", "GPU", "307", "B", "407", "B", "407"] in lines, lines


def test_watch():
    mock = Mock()
    with silt.Client(mock.endpoint) as client:
        client.open("s")
        seen = []
        for stat in client.watch("s", 0.05):
            seen.append(stat.tokens_acked)
            if len(seen) == 3:
                break
            with client.feed("s", "p") as feed:
                feed.write("more ")
        assert seen == sorted(set(seen)), seen
        left = client.watch("s", 0.05)
        next(left)
    left.close()  # as Python does when it ends, and names what that raises


def test_a_long_text_is_cut_once():
    """64 MiB in one write: what is left of it was copied with every piece, eleven seconds of it."""
    held = []

    async def write():
        feed = silt.AsyncFeed(None, "s", "p")
        feed._epoch, feed.credit_bytes = 1, 1 << 30
        feed._hold = lambda items, payload, time_us: held.append(payload)
        await feed.write(bytes(64 << 20))

    begin = time.process_time()
    asyncio.run(write())
    assert sum(held) == 64 << 20 and time.process_time() - begin < 3


def test_types():
    """mypy --strict over the package and its examples."""
    if not shutil.which("mypy"):
        raise lib.Skip("no mypy: apt-get install mypy")
    done = subprocess.run(["mypy", "--strict", "--cache-dir", lib.folder(), "silt", "examples"],
                          cwd=lib.ROOT / "clients/python", capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


def test_installs():
    """By pip into a place of its own, with what Debian has to build it; then it is used there."""
    home = lib.folder()
    source = home / "source"
    shutil.copytree(lib.ROOT / "clients/python", source)
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
                           "--no-build-isolation", "--disable-pip-version-check", "--no-index",
                           "--target", home / "site", source], capture_output=True, check=False)
    if done.returncode and b"No module named" in done.stderr + done.stdout:
        raise lib.Skip("pip builds nothing here: apt-get install python3-pip python3-setuptools")
    assert done.returncode == 0, done.stderr.decode()
    assert (home / "site/silt/py.typed").exists() and (home / "site/silt/silt_pb2.pyi").exists()
    with siltd() as daemon:
        code = ("import silt; c = silt.Client(); c.open('s')\nwith c.feed('s', 'p') as f: "
                "f.write('x ' * 99)\nprint(silt.__file__, c.stat('s').tokens_acked); c.close()")
        env = {**os.environ, "PYTHONPATH": str(home / "site"), "SILT_ENDPOINT": daemon.endpoint}
        out = subprocess.run([sys.executable, "-c", code], cwd=home, env=env, check=True,
                             timeout=60 * lib.SLOW, stdout=subprocess.PIPE).stdout
        assert str(home).encode() in out and int(out.split()[-1]) > 50, out


if __name__ == "__main__":
    lib.main(globals())
