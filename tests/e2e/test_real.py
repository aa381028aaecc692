"""The default model and its adapter: little text, the whole way."""

import json

import lib
import raw
import texts

TOKENS_LEAST = 4000


def prose(bytes_count):
    """Text of this repository and of the tests: plain words and hard ones."""
    plain = (lib.ROOT / "LICENSE").read_bytes()
    return (plain + texts.text(bytes_count))[:bytes_count]


def test_same_memory_however_it_is_cut():
    data = prose(16_500)
    hashes = set()
    for threads in (1, 2):
        with lib.Daemon(*lib.real(), ["--streams-max", 2], threads=threads) as siltd:
            wire = raw.Raw(siltd.endpoint)
            ways = {"whole": [data], "cut": [data[i:i + 1] for i in range(1500)] +
                    texts.cuts(data[1500:], seed=threads)}
            for way, pieces in ways.items():
                wire.open(way)
                wire.feed_all(way, "p", pieces)
            for way in ways:
                stat = wire.settled(way, 200)
                assert stat.tokens_acked > TOKENS_LEAST, stat.tokens_acked
                assert stat.segments_ring == 15 and stat.dmc_ratio > 2
                hashes.add((stat.memory_hash, stat.hash_chunk, stat.tokens_acked))
            assert sum(t.bytes_plan for t in stat.tiers) == stat.bytes_plan
            siltd.stop()
    assert len(hashes) == 1, hashes


def test_answers_from_its_memory():
    with lib.Daemon(*lib.real(), ["--streams-max", 1]) as siltd:
        lib.silt(siltd.endpoint, "feed", "s", "--wait", lib.ROOT / "LICENSE")
        answer = json.loads(lib.silt(siltd.endpoint, "ask", "s", "What is this text about?",
                                     "--tokens", 40, "--json").out)
        print(answer["answer"])
        assert answer["position"] == answer["acked"] and answer["answer_tokens"] > 2
        words = ("license", "licence", "copyright", "apache")
        assert any(word in answer["answer"].lower() for word in words), answer["answer"]
        siltd.stop()


if __name__ == "__main__":
    lib.main(globals())
