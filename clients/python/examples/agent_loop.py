"""An agent whose whole past is one stream: nothing is sent twice, nothing is cut off.

    python agent_loop.py my-agent "How full are the disks?"

A loop of thought and action with one tool. What the tool prints becomes a turn of the stream; the
question and the answer become turns by keep=True. The agent remembers every earlier run.
"""

import argparse
import re
import shutil
import sys

import silt

RULES = ("You work step by step. To see how full a disk is, answer with one line: DISK /path. "
         "When you know enough, answer the question in one sentence.")
STEPS_MAX = 4


def tool(answer: str) -> str:
    """What the agent asked to see; empty: it asked for nothing."""
    call = re.search(r"^DISK (/\S*)", answer, re.M)
    if not call:
        return ""
    try:
        use = shutil.disk_usage(call.group(1))
    except OSError as error:
        return f"{call.group(1)}: {error.strerror}"
    return f"{call.group(1)}: {use.used / use.total:.0%} of {use.total / 1e9:.0f} GB used"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("stream")
    options.add_argument("task")
    options.add_argument("-c", "--endpoint")
    given = options.parse_args()

    with silt.Client(given.endpoint) as client:
        fresh = client.open(given.stream).created
        with client.feed(given.stream, producer="agent") as feed:
            if fresh:
                feed.turn("system", RULES)
            task = given.task
            for _ in range(STEPS_MAX):
                answer = ""
                for piece in client.ask(given.stream, task, keep=True, wait=True, tokens_max=200):
                    print(piece, end="", flush=True)
                    answer += piece
                print()
                seen = tool(answer)
                if not seen:
                    return
                print(f"  [{seen}]", file=sys.stderr)
                feed.turn("tool", seen)
                feed.drain()
                task = "Go on."


if __name__ == "__main__":
    main()
