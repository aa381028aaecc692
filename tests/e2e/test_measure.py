"""What is measured while streams read: the loss meter's share and numbers, and what questions
brought back, in stat, metrics and top."""

import json
import shutil
import subprocess

import lib
import mock
import raw
import texts
from test_top import Terminal

pb = raw.pb


def trickle(siltd, wire, done, most=60):
    """Feeds pieces that never lag until done(stat)."""
    for i in range(most):
        wire.feed_all("live", f"late-{i}", [texts.text(7000, seed=1000 + i)])
        stat = wire.settled("live")
        if done(stat):
            return stat
    raise AssertionError(f"not after {most} pieces: {stat}")


def metrics(siltd):
    """{name{labels}: value} of a gateway to this siltd; None: none was built."""
    if not (lib.BUILD / "silt-gateway").exists() or not shutil.which("curl"):
        return None
    gateway = lib.spawn(lib.BUILD / "silt-gateway", "-l", "127.0.0.1:0", "--state",
                        siltd.home / "gateway", "-c", siltd.endpoint, stdout=subprocess.PIPE)
    url = gateway.stdout.readline().decode().strip()
    out = subprocess.run(["curl", "-s", url + "metrics"], capture_output=True, check=True).stdout
    lib.reap(gateway)
    lines = [line for line in out.decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_loss_meter():
    with lib.Daemon(*lib.tiny(), ["--loss-flag", "-100"]) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("live")
        # What is far behind is not metered, and nothing is before it is paid for.
        wire.feed_all("live", "bulk", [texts.text(400000)])
        wire.settled("live", 300)
        stat = trickle(siltd, wire, lambda stat: stat.loss.chunks >= 1)
        process = wire.call(stat=pb.Stat()).process
        assert 0 < process.meter_us < 0.02 * process.compute_us * 1.5, process
        assert process.passes and process.save_us and process.leave_us < process.compute_us
        assert 0 < process.read_us < process.compute_us, process
        assert 1 < stat.loss.with_memory < 20 and 1 < stat.loss.with_window < 20, stat.loss
        mean = stat.loss.with_memory - stat.loss.with_window
        assert abs(stat.loss.difference - mean) < 1e-6
        seen = lib.stat(siltd.endpoint, "live")["loss"]
        assert seen["chunks"] == stat.loss.chunks and seen["flagged"] is False
        assert b"loss meter" in lib.silt(siltd.endpoint, "stat", "live").out
        exported = metrics(siltd)
        if exported is not None:
            assert exported['silt_stream_loss_chunks_total{stream="live"}'] >= 1
            assert 'silt_stream_loss_nats{stream="live"}' in exported
            assert 0 < exported["silt_loss_meter_seconds_total"] < exported[
                "silt_compute_seconds_total"]
            assert 0 < exported["silt_read_seconds_total"] < exported["silt_compute_seconds_total"]
            assert exported["silt_passes_total"] >= process.passes
            assert exported["silt_loss_flag_nats"] == -100
        # It is a line of the plan, which is there or not.
        plan = json.loads(lib.silt(siltd.endpoint, "stat", "--json").out)["bytes_plan_by_tier"]
        assert plan["loss meter"] > 0
    with lib.Daemon(*lib.tiny(), ["--loss-meter", "no"]) as siltd:
        plan = json.loads(lib.silt(siltd.endpoint, "stat", "--json").out)["bytes_plan_by_tier"]
        assert "loss meter" not in plan


class Lossy(mock.Mock):
    """A siltd whose streams lose more than it was told to flag."""

    def stat(self, name):
        stat = super().stat(name)
        stat.loss.CopyFrom(pb.LossMeter(chunks=9, with_memory=1.5, with_window=1.25,
                                        difference=0.25, low=0.125, high=0.375, flagged=True))
        stat.degraded.append("memory surely loses more nats a token than --loss-flag 0.100")
        return stat


def test_a_flag_is_seen():
    """Nothing is scored, then too much is lost: in stat, ls, top and metrics."""
    plain = mock.Mock()
    lib.silt(plain.endpoint, "feed", "s", stdin=b"text")
    assert b"no chunk scored" in lib.silt(plain.endpoint, "stat", "s").out
    siltd = Lossy()
    lib.silt(siltd.endpoint, "feed", "s", stdin=b"text")
    said = lib.silt(siltd.endpoint, "stat", "s").text()
    assert "+0.250 nats a token" in said and "(95 %: +0.125 to +0.375), 9 chunks" in said, said
    assert "degraded: memory surely loses" in said, said
    assert lib.stat(siltd.endpoint, "s")["loss"]["flagged"] is True
    assert b"degraded" in lib.silt(siltd.endpoint, "ls").out
    top = Terminal(siltd.endpoint, "s")
    top.wait("+0.250 nats a token (+0.125 to +0.375, 9 chunks) FLAGGED")
    assert top.end() == 0
    exported = metrics(siltd)
    if exported is not None:
        assert exported['silt_stream_loss_flagged{stream="s"}'] == 1
        assert exported['silt_stream_loss_low_nats{stream="s"}'] == 0.125
        assert exported['silt_stream_degraded{stream="s",reason="memory surely loses more nats a '
                        'token than --loss-flag 0.100"}'] == 1


def test_recall_hits_are_seen():
    with lib.Daemon(*lib.tiny()) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("log")
        words = texts.text(30000)
        wire.feed_all("log", "p", [b"The zebra crossed the river at noon. " * 8, words])
        wire.settled("log")
        assert wire.stat("log").recall_hits == 0
        top = Terminal(siltd.endpoint, "log")
        top.wait("window")
        lib.wait_until("the text is indexed",
                       lambda: wire.stat("log").indexed_to > wire.stat("log").tokens_acked - 1000)
        wire.ask("log", "Where did the zebra cross the river?", recall=pb.Ask.SEGMENTS,
                 tokens_max=2)
        stat = wire.stat("log")
        assert stat.recall_hits >= 1 and len(stat.recalled) == stat.recall_hits
        assert 0 in stat.recalled and stat.recalled_us
        top.wait("*")
        assert top.end() == 0
        exported = metrics(siltd)
        if exported is not None:
            assert exported['silt_stream_recall_hits_total{stream="log"}'] == stat.recall_hits


if __name__ == "__main__":
    lib.main(globals())
