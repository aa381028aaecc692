#!/usr/bin/env python3
"""churn: streams that are opened, fed, left idle, parked, woken, forked, asked and removed.

More streams than can be live come and go in a seeded order, and siltd ends and starts again now and
then. Every so often the text of a stream, and of all at the end, is fed to a fresh one in one go:
both must have the same memory, to the bit. Memory, open files and disk of siltd must stay level.
"""

import random
import sys
import time

import rig
from rig import patient

import silt

NAMES, LIVE = 24, 5
TEXT_MAX = 60_000  # then a stream has lived long enough
CHECK_EVERY, RESTART_EVERY = 40, 200  # operations
WORDS = ("slow river carries fine silt past 42 gates; gate 7 closed at 09:30 ERROR naïve x=1\n"
         "Ann said yes. Bob said no.").split(" ")


def text(rng):
    return " ".join(rng.choice(WORDS) for _ in range(rng.choice((1, 20, 200, 800)))) + " "


class Churn:
    def __init__(self, options, siltd, record):
        self.rng = random.Random(options.seed)
        self.siltd, self.record = siltd, record
        self.client = silt.Client(siltd.endpoint)
        self.texts = {}  # stream -> all that was acked
        verbs = ("feed", "ask", "fork", "remove", "idle", "restart", "check")
        self.counts = dict.fromkeys(verbs, 0)
        self.wrong, self.serial = [], 0
        self.rate = 0.0

    def feed(self):
        name = f"s{self.rng.randrange(NAMES)}"
        if name not in self.texts:
            patient(lambda: self.client.open(name))
            self.texts[name] = ""
        fresh = text(self.rng)
        with patient(lambda: self.client.feed(name, "churn")) as feed:
            for at in range(0, len(fresh), 900):
                feed.write(fresh[at:at + 900])
        self.texts[name] += fresh

    def some(self):
        return self.rng.choice(sorted(self.texts))

    def ask(self):
        name = self.some()
        patient(lambda: self.client.ask(name, "Which gate?", tokens_max=4).text())

    def fork(self):
        name, self.serial = self.some(), self.serial + 1
        branch = f"f{self.serial}"
        patient(lambda: self.client.fork(name, branch))
        self.texts[branch] = self.texts[name]

    def remove(self):
        if len(self.texts) > NAMES // 2:
            old = [n for n in self.texts if len(self.texts[n]) > TEXT_MAX or n[0] == "f"]
            name = self.rng.choice(sorted(old or self.texts))
            patient(lambda: self.client.remove(name))
            del self.texts[name]

    def idle(self):
        time.sleep(self.rng.uniform(0, 0.1))

    def restart(self):
        self.siltd.stop()
        self.siltd.start()

    def settled(self, name):
        """Its stat once it has computed all it can: what is left waits for more text."""
        patient(lambda: self.client.feed(name, "look")).close()  # wakes it
        last, since = None, time.monotonic()
        while time.monotonic() < since + 60:
            stat = self.client.stat(name)
            if stat.tokens_acked - stat.tokens_computed < 32 and stat.tokens_computed == last:
                return stat
            last = stat.tokens_computed
            time.sleep(0.03)
        raise SystemExit(f"churn: {name} is not computed within 60 s")

    def check(self):
        name = self.some()
        begin = time.monotonic()
        patient(lambda: self.client.open("fresh"))
        with patient(lambda: self.client.feed("fresh", "churn")) as feed:
            feed.write(self.texts[name])
        fresh = self.settled("fresh")
        self.rate = fresh.tokens_computed / (time.monotonic() - begin)
        found = self.settled(name)
        if ((found.tokens_acked, found.memory_hash, found.bytes_text) !=
                (fresh.tokens_acked, fresh.memory_hash, fresh.bytes_text)):
            self.wrong.append(f"{name}: {found} is not {fresh}")
        patient(lambda: self.client.remove("fresh"))

    def run(self):
        weights = {"feed": 10, "ask": 2, "fork": 1, "remove": 3, "idle": 3}
        turn = 0
        while self.record.going():
            turn += 1
            verb = self.rng.choices(list(weights), weights.values())[0] if self.texts else "feed"
            verb = "check" if not turn % CHECK_EVERY else verb
            verb = "restart" if not turn % RESTART_EVERY else verb
            getattr(self, verb)()
            self.counts[verb] += 1
            if turn % 10 == 0:
                self.sample()

    def sample(self):
        said = ", ".join(f"{count} {verb}" for verb, count in self.counts.items())
        begin = time.monotonic()
        self.client.process()
        self.record.sample(f"{len(self.texts)} streams; {said}", sum(self.counts.values()),
                           len(self.texts), self.siltd.resident(), self.siltd.handles(),
                           self.siltd.disk(), round((time.monotonic() - begin) * 1e3, 2),
                           round(self.rate))


def main():
    options = rig.arguments(__doc__.splitlines()[0], 5).parse_args()
    siltd = rig.Siltd([*rig.model(options.model), "--streams-max", LIVE])
    record = rig.Record("churn", options, ("operations", "streams", "resident_bytes", "handles",
                                           "disk_bytes", "stat_ms", "tokens_per_second"))
    churn = Churn(options, siltd, record)
    churn.run()
    streams = sorted(churn.texts)
    for name in streams:
        churn.some = lambda name=name: name
        churn.check()
    counts = churn.counts
    print(f"churn: {', '.join(f'{count} {verb}' for verb, count in counts.items())}")
    record.held(f"{counts['check'] + len(streams)} streams fed anew, {len(streams)} of them at the "
                f"end, {len(churn.wrong)} with another memory", streams and not churn.wrong)
    for wrong in churn.wrong[:3]:
        print(wrong)
    record.flat("resident_bytes", 1e6, 0.05, 4e6)
    record.flat("handles", 1, 0.0, 4)
    record.flat("disk_bytes", 1e6, 0.5, 20e6)
    churn.client.close()
    siltd.stop()
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
