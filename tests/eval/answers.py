"""Answers to far facts out of siltd: from what it recalls, and from a prompt that has the fact.

Streams are read side by side, each by a thread that feeds it up to its next stop, waits until it
is computed and indexed, and asks there what is to be asked; several questions at once.
"""
import concurrent.futures
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from streams import BEFORE, CHUNK, ROOT

sys.path.insert(0, str(ROOT / "clients/python"))
import silt  # noqa: E402

ANSWER_TOKENS, AROUND = 24, 300             # AROUND: bytes of text on both sides of a fact
MEANS = ("recall", "around", "line", "best")  # what an answer is from; best: as siltd asks
READY_SECONDS = 120


class Daemon:
    """siltd over a data folder, with a client."""

    def __init__(self, data, adapter, more, streams):
        self.folder = tempfile.mkdtemp(prefix="silt-facts-")
        self.endpoint = f"ipc://{self.folder}/s"
        self.data = data
        self.command = [str(ROOT / "build/siltd"), "--listen", self.endpoint, "--data", str(data),
                        "--streams-max", str(streams),
                        *(["--adapter", adapter] if adapter else []), *more]
        self.process = self.client = None

    def __enter__(self):
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            with open(f"{self.data}.log", "ab") as log:
                self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
            self.wait()
            self.client = silt.Client(self.endpoint, timeout=300)
        except BaseException:
            self.stop()
            raise
        return self

    def wait(self):
        end = time.monotonic() + READY_SECONDS
        while subprocess.run([str(ROOT / "build/silt"), "-c", self.endpoint, "ls"],
                             capture_output=True, check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"siltd does not serve: see {self.data}.log")
            time.sleep(0.1)

    def stop(self):
        """Its exit code; None: it was never there."""
        code = None
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        return code

    def __exit__(self, kind, *_):
        try:
            self.client.close()
        finally:
            code = self.stop()
        if code and kind is None:
            sys.exit(f"siltd ended with {code}: see {self.data}.log")

    def feed(self, stream, text, over):
        """All of text that the stream has not yet; True: it is computed and indexed."""
        self.client.open(stream)
        with self.client.feed(stream, "facts") as feed:
            for at in range(feed.bytes_acked, len(text), 1 << 18):
                if over():
                    return False
                feed.write(text[at:min(at + (1 << 18), len(text))])
            feed.drain()
        while not over():
            stat = self.client.stat(stream)
            if stat.tokens_computed // 32 >= stat.tokens_acked // 32 and \
                    stat.indexed_to >= stat.tokens_acked // CHUNK * CHUNK:
                return True
            time.sleep(0.1)
        return False

    def ask(self, stream, question, recall):
        while True:
            try:
                answer = self.client.ask(stream, question, recall=recall, tokens_max=ANSWER_TOKENS)
                return answer.text(), [source.segment for source in answer.done.sources]
            except silt.Busy as busy:
                time.sleep(busy.retry_after or 0.1)


def is_right(answer, text):
    """Whether the text has the answer; a number is not that of which it is a part."""
    words = re.escape(answer.lower().replace(",", ""))
    return bool(re.search(rf"(?<!\d){words}(?!\d)", text.lower().replace(",", "")))


def ask_fact(daemon, stream, kind, text, fact):
    """-> {stream, distance, right by each of MEANS, what was said, place of the fact's chunk}."""
    around = text[max(0, fact["byte"] - AROUND):fact["byte"] + AROUND].decode(errors="ignore")
    said, sources = daemon.ask(stream, fact["question"], "text")
    answers, line = [said], BEFORE[kind] + fact["text"]
    again = f"\n\n{line}\n\nAnswer with a sentence of the text."
    for passage, behind in ((around, ""), (line, ""), (line, again)):
        prompt = f"Use this text to answer the question.\n\n{passage}\n\n" \
                 f"Question: {fact['question']}{behind}"
        answers.append(daemon.ask(stream, prompt, "none")[0])
    place = next((i for i, chunk in enumerate(sources, 1) if chunk in fact["chunks"]), 0)
    return dict(stream=stream, byte=fact["byte"], distance=fact["distance"], kind=fact["kind"],
                degree=fact["degree"], place=place, answers=answers,
                right=dict(zip(MEANS, (is_right(fact["answer"], a) for a in answers))))


def ask_answers(options, streams, results, save):
    """streams: {name: (kind, text, facts, stops)}; `results` gets a row for every fact that has
    none, options.answers of each distance."""
    asked = [(name, i) for name in streams for i in range(len(streams[name][2]))]
    random.Random(2).shuffle(asked)
    have = {(row["stream"], row["byte"]) for row in results}
    count, wanted = {}, set()
    for name, index in asked:
        fact = streams[name][2][index]
        count[fact["distance"]] = count.get(fact["distance"], 0) + 1
        if count[fact["distance"]] <= options.answers and (name, fact["byte"]) not in have:
            wanted.add((name, index))
    if not wanted:
        return
    end = time.monotonic() + options.seconds
    lock = threading.Lock()

    def over():
        return time.monotonic() > end

    def one(daemon, name, fact):
        if over():
            return
        kind, text = streams[name][:2]
        row = ask_fact(daemon, name, kind, text, fact)
        with lock:
            results.append(row)
            if len(results) % 10 == 0:
                save()

    def read(daemon, pool, name):
        _, text, facts, stops = streams[name]
        for stop, at in enumerate(stops):
            here = [f for i, f in enumerate(facts) if (name, i) in wanted and f["stop"] == stop]
            if here or stop == len(stops) - 1:
                if not daemon.feed(name, text[:at], over):
                    return
                for done in [pool.submit(one, daemon, name, fact) for fact in here]:
                    done.result()

    names = sorted({name for name, _ in wanted})
    with Daemon(options.data / "streams", options.adapter, options.siltd.split(),
                len(streams)) as daemon, \
            concurrent.futures.ThreadPoolExecutor(options.at_once) as pool, \
            concurrent.futures.ThreadPoolExecutor(len(names)) as readers:
        for done in [readers.submit(read, daemon, pool, name) for name in names]:
            done.result()
    save()
    if over():
        print(f"cut off after {options.seconds:g} s: {len(results) - len(have)} of {len(wanted)} "
              "questions asked")


# ---- figures ----

def share(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def interval(pairs, rounds=2000):
    """Bootstrap over facts: 95 % interval of right from memory / right from the prompt."""
    rng, ratios = random.Random(1), []
    for _ in range(rounds):
        drawn = rng.choices(pairs, k=len(pairs))
        below = sum(b for _, b in drawn)
        if below:
            ratios.append(sum(a for a, _ in drawn) / below)
    ratios.sort()
    return (ratios[int(len(ratios) * 0.025)], ratios[int(len(ratios) * 0.975) - 1]) if ratios \
        else (math.nan, math.nan)


def print_ratio(rows, means, what):
    low, high = interval([(row["right"]["recall"], row["right"][means]) for row in rows])
    below = share(row["right"][means] for row in rows)
    ratio = share(row["right"]["recall"] for row in rows) / below if below else math.nan
    print(f"    with {what} in the prompt {100 * below:.1f} %: ratio {ratio:.2f}, "
          f"95 % in {low:.2f} to {high:.2f}")


def print_answers(results):
    for distance in sorted({row["distance"] for row in results}):
        rows = [row for row in results if row["distance"] == distance]
        print(f"answers: {len(rows)} facts {distance:,} tokens back, right "
              f"{100 * share(row['right']['recall'] for row in rows):.1f} %; the fact's chunk "
              f"among the sources {100 * share(row['place'] > 0 for row in rows):.1f} %, the first "
              f"of them {100 * share(row['place'] == 1 for row in rows):.1f} %")
        print_ratio(rows, "around", f"the fact and {AROUND} bytes on both sides")
        print_ratio(rows, "line", "its line alone")
        print_ratio(rows, "best", "its line alone as siltd puts what it finds")
