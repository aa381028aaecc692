"""Pins: kept within their plan, seen by stream and questions, the same after a crash, a restart and
a rest on the disk; gone when let go or forgotten."""

import json
import signal
import subprocess

import lib
import raw
import texts

pb = raw.pb
CHUNK = 256


def daemon(*args, **more):
    return lib.Daemon(*lib.tiny(), args, **more)


def pins(wire, stream, verb=pb.Pins.LIST, first=0, last=0):
    reply = wire.call(pins=pb.Pins(stream=stream, verb=verb, **{"from": first, "to": last}))
    return [(getattr(pin, "from"), pin.to, pin.held) for pin in reply.pins]


def fed(wire, stream, name, data):
    wire.feed_all(stream, name, [data])
    return wire.settled(stream)



def test_pinned_and_let_go():
    with daemon() as siltd:
        wire = raw.Raw(siltd.endpoint)
        for stream in ("pinned", "plain"):
            wire.open(stream)
            fed(wire, stream, "p", texts.text(9000))
        assert pins(wire, "pinned") == []
        assert pins(wire, "pinned", pb.Pins.PIN, 0, 60) == [(0, 60, False)]
        assert pins(wire, "pinned", pb.Pins.PIN, 300, 330) == [(0, 60, False), (300, 330, False)]
        # A question sees them at once, the stream from its next chunk on.
        told = [wire.ask(stream, "What?", recall=pb.Ask.NONE, tokens_max=24)[0]
                for stream in ("pinned", "plain")]
        assert told[0] != told[1]
        same = [wire.stat(stream).memory_hash for stream in ("pinned", "plain")]
        assert same[0] == same[1]
        after = [fed(wire, stream, "q", texts.text(4000, seed=2)) for stream in ("pinned", "plain")]
        assert after[0].memory_hash != after[1].memory_hash
        assert pins(wire, "pinned") == [(0, 60, True), (300, 330, True)]
        tier = {t.name: t for t in wire.stat("pinned").tiers}["pins"]
        assert 0 < tier.bytes_used < tier.bytes_plan
        assert tier.bytes_used * 128 == tier.bytes_plan * 90
        shown = lib.stat(siltd.endpoint, "pinned")
        assert [(p["from"], p["to"]) for p in shown["pins"]] == [(0, 60), (300, 330)]
        assert shown["pin_tokens_max"] == 128
        assert pins(wire, "pinned", pb.Pins.UNPIN, 10, 12) == [(300, 330, True)]
        fed(wire, "pinned", "r", texts.text(4000, seed=3))
        tier = {t.name: t for t in wire.stat("pinned").tiers}["pins"]
        assert tier.bytes_used * 128 == tier.bytes_plan * 30


def test_pinned_and_let_go_again_and_again():
    """Nothing is read meanwhile: what never came to be seen is not in the way at the next start."""
    with daemon() as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        fed(wire, "s", "p", texts.text(4000))
        for _ in range(70):
            pins(wire, "s", pb.Pins.PIN, 0, 60)
            pins(wire, "s", pb.Pins.UNPIN, 0, 60)
        pins(wire, "s", pb.Pins.PIN, 0, 60)
        siltd.kill()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        assert pins(wire, "s") == [(0, 60, False)]
        stat = fed(wire, "s", "q", texts.text(4000, seed=2))
        assert not stat.stopped and pins(wire, "s") == [(0, 60, True)]


def test_a_question_sees_the_same_after_a_restart():
    """Also before the stream itself sees them, in whichever order they came."""
    with daemon() as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        fed(wire, "s", "p", texts.text(9000))
        for first in (500, 300, 400, 0, 200, 100):
            pins(wire, "s", pb.Pins.PIN, first, first + 20)
        def told():
            return wire.ask("s", "What?", recall=pb.Ask.NONE, tokens_max=64)[0]

        before = told()
        siltd.kill()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        wire.settled("s")
        assert told() == before


def test_refusals():
    with daemon() as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        tokens = fed(wire, "s", "p", texts.text(6000)).tokens_acked
        space, invalid = pb.Error.NO_SPACE, pb.Error.INVALID
        raw.refused(space, "pin-tokens-max", pins, wire, "s", pb.Pins.PIN, 0, 129)
        raw.refused(space, "not in the stream", pins, wire, "s", pb.Pins.PIN, 0, tokens + 1)
        raw.refused(invalid, "before to", pins, wire, "s", pb.Pins.PIN, 5, 5)
        pins(wire, "s", pb.Pins.PIN, 0, 100)
        raw.refused(space, "already", pins, wire, "s", pb.Pins.PIN, 99, 101)
        raw.refused(space, "pin-tokens-max", pins, wire, "s", pb.Pins.PIN, 200, 229)
        pins(wire, "s", pb.Pins.PIN, 200, 228)
        raw.refused(pb.Error.NOT_FOUND, "nothing", pins, wire, "s", pb.Pins.UNPIN, 100, 200)
        raw.refused(pb.Error.NOT_FOUND, "no stream", pins, wire, "none")
    with daemon("--pin-tokens-max", "0") as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        fed(wire, "s", "p", texts.text(3000))
        raw.refused(space, "--pin-tokens-max", pins, wire, "s", pb.Pins.PIN, 0, 10)
        assert pins(wire, "s") == []


def test_more_pins_than_a_later_start_has_room_for():
    """The stream stops where they are met, and whoever waits for it, or for its place, is told."""
    with daemon("--streams-max", "1") as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        fed(wire, "s", "p", texts.text(3000))
        pins(wire, "s", pb.Pins.PIN, 0, 100)
        fed(wire, "s", "p2", texts.text(3000))
        assert not wire.stat("s").stopped
        siltd.stop()
        command = siltd.command
        siltd.command = [*command, "--pin-tokens-max", "50"]
        siltd.start()
        said = lib.silt(siltd.endpoint, "feed", "s", "--wait", stdin=b"More.", code=1, seconds=30)
        assert "is not computed: see siltd's log" in said.text(), said.text()
        assert "start siltd with as many as before" in siltd.log_text()
        assert raw.Raw(siltd.endpoint).stat("s").stopped
        other = lib.spawn(lib.SILT, "-c", siltd.endpoint, "feed", "other", __file__,
                          stderr=subprocess.PIPE)
        lib.Listener(other.stderr).wait(b"waiting: all 1 places for live streams are at work")
        other.send_signal(signal.SIGINT)
        assert lib.ends(other) == 130
        siltd.stop()
        siltd.command = command
        siltd.start()
        lib.silt(siltd.endpoint, "feed", "s", "--wait", stdin=b"Still more.")


def story(wire, crash):
    """Pins and text in a fixed order; crash() may end siltd between any two steps."""
    wire = crash(wire)
    fed(wire, "s", "a", texts.text(6000, seed=1))
    wire = crash(wire)
    pins(wire, "s", pb.Pins.PIN, 40, 100)
    wire = crash(wire)
    fed(wire, "s", "b", texts.text(5000, seed=2))
    pins(wire, "s", pb.Pins.PIN, 600, 640)
    wire = crash(wire)
    fed(wire, "s", "c", texts.text(5000, seed=3))
    wire = crash(wire)
    pins(wire, "s", pb.Pins.UNPIN, 40, 41)
    fed(wire, "s", "d", texts.text(5000, seed=4))
    wire = crash(wire)
    return wire.settled("s").memory_hash, pins(wire, "s")


def test_same_after_crash_restart_and_rest():
    results = []
    for how in ("none", "kill", "stop", "no checkpoints", "park"):
        with daemon("--streams-max", "1") as siltd:
            wire = raw.Raw(siltd.endpoint)
            wire.open("s")

            def crash(wire, how=how, siltd=siltd):
                if how == "none":
                    return wire
                if how == "park":
                    # There is one place.
                    lib.wait_until("the other is there", lambda: comes_back(wire, "other"))
                    lib.wait_until("it is back", lambda: comes_back(wire))
                    return wire
                wire.close()
                siltd.kill() if how != "stop" else siltd.stop()
                if how == "no checkpoints":
                    for path in (siltd.data / "checkpoints").rglob("*"):
                        path.is_file() and path.unlink()
                siltd.start()
                wire = raw.Raw(siltd.endpoint)
                lib.wait_until("it is awake", lambda: comes_back(wire))
                wire.settled("s")
                return wire

            results.append((how, story(wire, crash)))
    assert all(result == results[0][1] for _, result in results), results
    assert results[0][1][1] == [(600, 640, True)]


def comes_back(wire, stream="s"):
    try:
        wire.open(stream)
        return True
    except raw.Refused as error:
        assert error.code == pb.Error.BUSY, error
        return False


def test_a_siltd_with_less_room_for_pins_says_so():
    with daemon() as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        fed(wire, "s", "a", texts.text(6000))
        pins(wire, "s", pb.Pins.PIN, 100, 164)
        before = fed(wire, "s", "b", texts.text(6000, seed=2)).memory_hash
        command = siltd.command
        for most, says in (("32", "its pins hold more tokens than --pin-tokens-max"),
                           ("0", "keeps no room for the 1 pinned ranges of stream 1")):
            siltd.stop()
            siltd.command = [*command, "--pin-tokens-max", most]
            siltd.start()
            lib.wait_until("it says so", lambda says=says: says in siltd.log_text())
        siltd.stop()
        siltd.command = command
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        lib.wait_until("it is awake", lambda: comes_back(wire))
        assert wire.settled("s").memory_hash == before


def test_branches_and_forgetting():
    with daemon() as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        fed(wire, "s", "a", texts.text(9000))
        for first, last in ((100, 120), (400, 420), (900, 920)):
            pins(wire, "s", pb.Pins.PIN, first, last)
        fed(wire, "s", "b", texts.text(3000, seed=2))
        wire.call(fork=pb.Fork(stream="s", branch="t"))
        assert [p[:2] for p in pins(wire, "t")] == [(100, 120), (400, 420), (900, 920)]
        wire.call(forget=pb.Forget(stream="s", **{"from": 410, "to": 500}))
        lib.wait_until("it is back", lambda: comes_back(wire))
        wire.settled("s")
        assert [p[:2] for p in pins(wire, "s")] == [(100, 120), (810, 830)]
        assert [p[:2] for p in pins(wire, "t")] == [(100, 120), (400, 420), (900, 920)]
        before = fed(wire, "s", "c", texts.text(3000, seed=3)).memory_hash
        siltd.kill()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        lib.wait_until("it is awake", lambda: comes_back(wire))
        assert wire.settled("s").memory_hash == before
        # What all pins stand behind goes: so do they.
        wire.call(forget=pb.Forget(stream="s", **{"from": 0, "to": 5}))
        lib.wait_until("it is back", lambda: comes_back(wire))
        assert pins(wire, "s") == []


def test_commands():
    with daemon() as siltd:
        path = siltd.home / "text"
        path.write_bytes(texts.text(9000))
        lib.silt(siltd.endpoint, "feed", "s", path, "--wait")
        out = lib.silt(siltd.endpoint, "pin", "s", "--from", 0, "--to", 50).out
        assert b"0 to 50" in out and b"50 of 128 tokens pinned" in out
        listed = json.loads(lib.silt(siltd.endpoint, "pins", "s", "--json").out)
        assert listed["pins"] == [{"from": 0, "to": 50, "held": False}], listed
        assert b"pinned          tokens 0 to 50" in lib.silt(siltd.endpoint, "stat", "s").out
        assert b"A before B" in lib.silt(siltd.endpoint, "pin", "s", "--from", 5, code=2).err
        assert b"already" in lib.silt(siltd.endpoint, "pin", "s", "--from", 5, "--to", 6,
                                      code=1).err
        lib.silt(siltd.endpoint, "unpin", "s", "--from", 0, "--to", 1)
        assert lib.silt(siltd.endpoint, "pins", "s").out == b"0 of 128 tokens pinned\n"


if __name__ == "__main__":
    lib.main(globals())
