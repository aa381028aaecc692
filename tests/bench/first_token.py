#!/usr/bin/python3
"""Time to the first token of a question, over streams of different lengths.

    tests/bench/first_token.py [--tokens 4096,65536] [--rounds 15] [--data FOLDER] [--tiny]

Feeds one stream of each length to a siltd, then asks all of them the same questions in turn, each
once a round, and prints what a client waits from its question to the first bytes of the answer:
median, least and worst, the tokens that were read for it (question and what was recalled), and the
median of the ratios to the first stream's.  The text is this repository's own files, over and over.

A million tokens take the default model minutes to an hour.  With --data the streams stay in FOLDER,
and a run that was stopped goes on where it was; `--tiny` takes the tiny model of the tests.
"""
import argparse
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))

import lib  # noqa: E402
import raw  # noqa: E402

PIECE_BYTES = 8 << 10
ANSWER_TOKENS = 4
WARM_UP = 2  # rounds that do not count

# About the README's beginning, which even the shortest stream holds: text is found in all of them.
QUESTIONS = [
    "What does siltd keep in a fixed number of bytes?",
    "Which tier holds the first 8 tokens of a stream?",
    "What becomes of the segments that left the ring?",
    "What does silt pin keep word by word?",
    "Which command feeds a file over rotation and truncation?",
    "What does make demo install?",
    "How many slots does CCM fold a chunk of tokens into?",
    "What is the memory of a stream a function of?",
    "How are captions and transcripts fed?",
    "Who listens on a socket alone?",
    "Where does the model of make demo come from?",
]


def own_text():
    """The README, then the sources that git knows, the generated ones left out."""
    names = subprocess.run(["git", "ls-files", "*.c", "*.h", "*.py"], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.splitlines()
    names = ["README.md"] + [n for n in names if "pb" not in pathlib.Path(n).name]
    return b"".join((ROOT / n).read_bytes() for n in names)


def fill(wire, stream, tokens, text):
    """Feeds the stream until it has so many tokens, all of them computed."""
    wire.open(stream)
    at = wire.call(attach=raw.pb.Attach(stream=stream, producer="text")).bytes_acked
    started, first = time.monotonic(), wire.stat(stream).tokens_acked
    while (have := wire.stat(stream).tokens_acked) < tokens:
        piece = min(PIECE_BYTES, max(1, (tokens - have) * 2))
        offset = at % len(text)
        data = text[offset:offset + piece]
        wire.feed_all(stream, "text", [data], end=False)
        at += len(data)
        print(f"\r# {stream}: {have} tokens", end="", file=sys.stderr, flush=True)
    wire.settled(stream, 3600)
    took = time.monotonic() - started
    fed = wire.stat(stream).tokens_acked - first
    print(f"\r# {stream}: {first + fed} tokens, {fed} of them now at {fed / took:.0f} a second",
          file=sys.stderr)


def first_token(wire, stream, question):
    """Seconds to the first bytes of the answer, and what Done says of it."""
    begin = time.monotonic()
    asked = wire.send(ask=raw.pb.Ask(stream=stream, question=question, tokens_max=ANSWER_TOKENS))
    first = None
    while True:
        reply = wire.reply(120)
        assert reply is not None, "no answer"
        if reply.id != asked:
            continue
        body = reply.WhichOneof("body")
        if body == "error":
            raise raw.Refused(reply.error)
        first = first or time.monotonic() - begin
        if body == "done":
            return first, reply.done


def keep(path, name, values, unit):
    """For report.py, which shows medians."""
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{name} {value:.6g} {unit}\n" for value in values)


def measure(wire, streams, rounds, path):
    times = {stream: [] for stream in streams}
    read = {stream: [] for stream in streams}
    for number in range(rounds + WARM_UP):
        question = QUESTIONS[number % len(QUESTIONS)]
        for stream in streams if number % 2 else reversed(streams):
            seconds, done = first_token(wire, stream, question)
            if number >= WARM_UP:
                times[stream].append(seconds)
                read[stream].append(done.question_tokens)
    print("# first token of a question: stream's tokens, ms (median, least to worst), tokens read,"
          " ratio")
    for stream in streams:
        ratios = [a / b for a, b in zip(times[stream], times[streams[0]])]
        ratio = statistics.median(ratios)
        keep(path, f"first-token-{stream}", [1e3 * t for t in times[stream]], "ms")
        if stream != streams[0]:
            keep(path, f"first-token-{stream}-to-{streams[0]}", ratios, "x")
        print(f"first-token-{stream:<10} {1e3 * statistics.median(times[stream]):8.1f} ms"
              f" ({1e3 * min(times[stream]):.1f} to {1e3 * max(times[stream]):.1f}),"
              f" {statistics.median(read[stream]):.0f} tokens read, {ratio:.2f} x", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", default="4096,65536", help="of each stream")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", help="where the streams stay")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--keep", help="a file that gets a line a figure and round")
    arguments = parser.parse_args()
    sizes = [int(n) for n in arguments.tokens.split(",")]
    model, adapter = lib.tiny() if arguments.tiny else lib.real()
    lib.SLOW = 100  # nobody is in a hurry but the clock that counts
    with lib.Daemon(model, adapter, ["--streams-max", len(sizes)], data=arguments.data,
                    threads=arguments.threads) as siltd:
        wire = raw.Raw(siltd.endpoint)
        text = own_text()
        for size in sizes:
            fill(wire, str(size), size, text)
        for size in sizes:
            wire.ask(str(size), QUESTIONS[0], tokens_max=ANSWER_TOKENS, wait=True)  # is indexed
        measure(wire, [str(size) for size in sizes], arguments.rounds, arguments.keep)
        wire.close()
        siltd.stop()


if __name__ == "__main__":
    try:
        main()
    except lib.Skip as why:
        print(f"skip: {why}")
        sys.exit(lib.EXIT_SKIP)
