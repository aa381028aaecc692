"""Words near in meaning, for recall: made from WordNet 3.0, carried by an adapter.

    python3 lexicon.py --wordnet FOLDER --text FOLDER --adapter IN.gguf --out OUT.gguf

FOLDER of WordNet is that of Debian's `wordnet-base`, /usr/share/wordnet; that of text holds
KIND.jsonl[.xz|.zst].  Of every word that occurs in the text, in any form, the words that may stand
for it, strongest first: others of one of its first senses, an adjective's cluster, a noun's kinds
and what is of the same kind, words derived from it, words by which WordNet defines it, and all of
that backwards.  FORMAT.md says how the adapter holds them.
"""
import argparse
import collections
import os
import re

import data
import silt_adapter

PARTS = ("noun", "verb", "adj", "adv")
SENSES_MAX = 3
NEAR_MAX = 64
COUNT_MIN, ASKED_MIN = 3, 10        # of a word in the text, and of a form that is asked with
STRENGTH_MIN = 0.2      # below it a word is no sign of another
MEMBERS_MAX = {"kind": 16, "like": 48}      # for them to be near each other
STRENGTH = {"same": 1.0, "derived": 0.9, "like": 0.6, "kind": 0.5, "defined": 0.5, "sibling": 0.35}
POINTERS = {"&": "like", "@": "kind", "+": "derived"}
PART_OF_TAG = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
ENDINGS = {"noun": [("s", ""), ("ses", "s"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"),
                    ("ies", "y"), ("men", "man")],
           "verb": [("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""),
                    ("ing", "e"), ("ing", "")],
           "adj": [("er", ""), ("est", ""), ("er", "e"), ("est", "e")], "adv": []}
STOP = set("""a about an and any are as at be been being but by can do for from had has have he her
his in into is it its made more most not of on one or other person she so some somebody someone
something such than that the their them they thing this those through to up used usually very was
were when where which who whose will with without you""".split())

Sense = collections.namedtuple("Sense", "words pointers gloss")


def content_words(phrase):
    return [w for w in re.findall(r"[a-z]+", phrase.lower()) if w not in STOP and len(w) > 2]


class WordNet:
    """senses[part, offset], index[part][word] -> offsets, exceptions[part][form] -> word."""

    def __init__(self, folder):
        self.senses, self.index, self.exceptions = {}, {}, {}
        self.members = collections.defaultdict(list)        # of a kind or cluster, by its key
        for part in PARTS:
            self._read_senses(folder, part)
            self._read_index(folder, part)
            with open(os.path.join(folder, part + ".exc"), encoding="latin-1") as file:
                self.exceptions[part] = dict(line.split()[:2] for line in file)
        for key, sense in self.senses.items():
            for how, other, _, _ in sense.pointers:
                if how != "derived":
                    self.members[other].append(key)

    def _read_senses(self, folder, part):
        with open(os.path.join(folder, "data." + part), encoding="latin-1") as file:
            for line in file:
                if line.startswith("  "):                   # the licence
                    continue
                left, _, gloss = line.partition(" | ")
                f = left.split()
                count = int(f[3], 16)
                words = [re.sub(r"\(.*\)", "", w).replace("_", " ").lower()
                         for w in f[4:4 + 2 * count:2]]
                at = 5 + 2 * count
                pointers = [(POINTERS[f[i]], (PART_OF_TAG[f[i + 2]], f[i + 1]),
                             int(f[i + 3][:2], 16), int(f[i + 3][2:], 16))
                            for i in range(at, at + 4 * int(f[at - 1]), 4) if f[i] in POINTERS]
                gloss = re.sub(r"\([^)]*\)", "", gloss.split('"')[0]).split(";")[0]
                self.senses[part, f[0]] = Sense(words, pointers, gloss)

    def _read_index(self, folder, part):
        self.index[part] = {}
        with open(os.path.join(folder, "index." + part), encoding="latin-1") as file:
            for line in file:
                if not line.startswith("  "):
                    f = line.split()
                    self.index[part][f[0].replace("_", " ")] = f[-int(f[2]):]

    def base(self, part, form):
        """The word of which `form` may be an inflection, or None."""
        if form in self.index[part]:
            return form
        if self.exceptions[part].get(form) in self.index[part]:
            return self.exceptions[part][form]
        for old, new in ENDINGS[part]:
            if form.endswith(old) and form[:len(form) - len(old)] + new in self.index[part]:
                return form[:len(form) - len(old)] + new
        return None

    def near(self, part, word):
        """(how, phrase, strength) of what one of the word's senses says of others."""
        for rank, offset in enumerate(self.index[part][word][:SENSES_MAX]):
            sense, share = self.senses[part, offset], 1 / (1 + 0.5 * rank)
            for other in sense.words:
                yield "same", other, share
            for how, key, source, target in sense.pointers:
                if source and sense.words[source - 1] != word:
                    continue
                others = self.senses[key].words
                for other in [others[target - 1]] if target else others:
                    yield how, other, share
                if how != "derived" and len(self.members[key]) <= MEMBERS_MAX[how]:
                    for member in self.members[key]:
                        yield "sibling", self.senses[member].words[0], share
            yield "defined", sense.gloss, share


def near_words(wordnet, counts):
    """{form: words that may stand for it, nearest first}, both ways, of the words that occur."""
    known = collections.defaultdict(set)                    # word -> its forms that occur
    for form, count in counts.items():
        for part in PARTS:
            base = wordnet.base(part, form)
            if base and count >= ASKED_MIN and form not in STOP:
                known[base].add(form)
    out = collections.defaultdict(dict)

    def put(form, word, strength):
        if strength >= STRENGTH_MIN and word != form and counts[word] >= COUNT_MIN:
            out[form][word] = max(out[form].get(word, 0), strength)

    for part in PARTS:
        for word in wordnet.index[part]:
            for how, phrase, share in wordnet.near(part, word):
                words = content_words(phrase)
                if phrase == word or not words:
                    continue
                strength = STRENGTH[how] * share / len(words) ** 0.5
                for other in words:
                    for form in known.get(word, ()):
                        put(form, other, strength)
                    if " " not in word:
                        for form in known.get(other, ()):
                            put(form, word, strength)
    return {form: sorted(words, key=lambda word: (-words[word], word))[:NEAR_MAX]
            for form, words in out.items()}


def count_words(folder):
    counts = collections.Counter()
    for path in data.kinds_of(folder).values():
        for document in data.read_documents(path):
            counts.update(re.findall(r"[a-z]{2,24}", document["text"][:60000].lower()))
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wordnet", default="/usr/share/wordnet")
    parser.add_argument("--text", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    if not os.path.exists(os.path.join(options.wordnet, "index.noun")):
        raise SystemExit("%s has no WordNet: apt install wordnet-base" % options.wordnet)
    near = near_words(WordNet(options.wordnet), count_words(options.text))
    adapter = silt_adapter.read(options.adapter)
    adapter.lexicon = [" ".join([form] + words) for form, words in sorted(near.items())]
    silt_adapter.write(options.out, adapter, silt_adapter.name_of(options.adapter))
    print("%d words, %d near them" % (len(near), sum(map(len, near.values()))))


if __name__ == "__main__":
    main()
