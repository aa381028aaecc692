"""A live transcript: lines go in as they are spoken, questions are answered meanwhile.

    some-recogniser | python live_transcript.py meeting

Reads "SPEAKER: words" lines from stdin and feeds each with the time it was said. A line that starts
with "?" is a question. Without a pipe it is a chat: type lines, ask with "?". Started again under
the same name it goes on with the same stream.
"""

import argparse
import asyncio
import sys
import time

import silt


async def answer(client: silt.AsyncClient, stream: str, question: str) -> None:
    reply = await client.ask(stream, question, wait=True)
    print("> ", end="")
    async for piece in reply:
        print(piece, end="", flush=True)
    if reply.done:
        print(f"\n> (heard {reply.done.position:,} tokens)")


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("stream")
    options.add_argument("-c", "--endpoint")
    options.add_argument("--producer", default="transcript", help="name of this microphone")
    given = options.parse_args()

    async with silt.AsyncClient(given.endpoint) as client:
        await client.open(given.stream)
        async with await client.feed(given.stream, given.producer) as feed:
            while True:
                # Reading blocks, so it goes to a thread: acks and reconnects go on.
                line = await asyncio.to_thread(sys.stdin.readline)
                if not line:
                    break
                if line.startswith("?"):
                    await feed.drain()
                    await answer(client, given.stream, line[1:].strip())
                else:
                    clock = time.strftime("%H:%M:%S")
                    await feed.write(f"[{clock}] {line}", time_us=time.time_ns() // 1000)


if __name__ == "__main__":
    asyncio.run(main())
