"""Rows that ask their memory: nearly all of their loss lies on what only far context tells.

In a row of text with questions (data.py) an answer is one token in a hundred, and what a memory
would have to hold is next to nothing of the loss.  Here a row is dense in things said and asked for
again, always further back than the window reaches, and its weights (which sum to one) lie on the
answers alone.  Seven sorts:

    facts     made-up statements, alone and in groups, asked for in other words
    pairs     lists of random words, one for another, asked for one by one
    labels    examples with labels, then texts to label: by meaning, or by names that say nothing
    passages  passages and their questions
    excerpts  text that comes back word for word behind a short cue
    restated  stretches longer than the window, each again right behind itself: what ICAE
              (arXiv 2307.06945) does to make slots hold text, and the easiest thing to ask for
"""
import json
import os

import numpy as np

import data

SORTS = {"facts": 0.20, "pairs": 0.04, "labels": 0.20, "passages": 0.23, "excerpts": 0.03,
         "restated": 0.05, "prompted": 0.25}
NEAREST = 520                       # tokens between what is said and what is asked, at least
BEYOND, BEHIND = 0.30, 3500         # share asked from behind the ring, up to so many tokens
EASY, HARD_FROM = 0.2, 0.4          # share of the ring's reach at first; when all of it is asked
PASSAGE = 1200                      # tokens of one, at most
OWN_NAMES = 0.7                     # of label sets with a meaning: the share that keeps its names
FEW = 0.25                          # of those: the share that shows examples of some labels only
CUE = 6                             # tokens of a restated stretch that carry no loss
AROUND = 75                         # tokens on either side of a fact that is found in its text


class AskMaker:
    def __init__(self, maker, folder):
        self.maker, self.random, self.words = maker, maker.random, maker.words
        self.length = maker.length
        self.pieces = np.load(os.path.join(folder, "labels.npy"), mmap_mode="r")
        self.ends = np.load(os.path.join(folder, "labels_ends.npy"))
        self.singles = np.load(os.path.join(folder, "singles.npy"))
        with open(os.path.join(folder, "labels.json")) as file:
            found = json.load(file)
        self.spaced = np.load(os.path.join(folder, "spaced.npy"))
        self.sets, self.forms, self.styles = found["sets"], found["forms"], found["styles"]

    def sort(self):
        return self.random.choice(list(SORTS), p=list(SORTS.values()))

    def row(self, sort, reach, progress=1.0):
        """tokens int64, weight f32 (sum one), raw bool, link int32: all [length].  reach: tokens
        that the row's ring reaches back; progress of the training, 0 to 1: near things are asked
        for first.  link: k > 0 where something is said, -k where it is asked for, 0 in text."""
        self.reach = max(reach, NEAREST + 200)
        self.share = min(1.0, EASY + (1 - EASY) * progress / HARD_FROM)
        while True:
            events = [(place, parts + (np.full(len(parts[0]), link, np.int32),))
                      for place, parts, link in getattr(self, "_" + sort)()]
            if not events:
                continue
            kind = self.random.choice(self.maker.names, p=self.maker.shares)
            tokens, weight, raw, link = self.maker.laid_over(kind, events, 0.0)
            if weight.sum() > 0:
                return tokens, weight / weight.sum(), raw, link

    def _scaled(self, count):
        """Of rows that are shorter than training's, for checks, distances are shorter too."""
        return int(min(1.0, self.length / 8192) * count)

    def _gap(self):
        """Within the ring's reach, or behind it, where only the summary has it; never within the
        window's."""
        if self.random.rand() < BEYOND:
            return self._scaled(self.reach + BEHIND * self.random.rand())
        return self._scaled(NEAREST + (self.reach - NEAREST) * self.share * self.random.rand())

    def _spot(self):
        """Where something is said, and how many tokens later it is asked for: within the row."""
        gap = self._gap()
        return self.random.randint(0, max(1, int(0.96 * self.length) - gap)), gap

    def _said(self, *parts):
        tokens = np.concatenate([np.asarray(part, np.int64) for part in parts])
        return tokens, np.zeros(len(tokens), np.float32), np.zeros(len(tokens), bool)

    def _asked(self, parts, raw=False):
        """parts: (tokens, weight of each)."""
        tokens = np.concatenate([np.asarray(part, np.int64) for part, _ in parts])
        weight = np.concatenate([np.full(len(part), value, np.float32) for part, value in parts])
        return tokens, weight, np.full(len(tokens), raw)

    def _turn(self, question, answer, chat=False):
        tokens, weight, raw = self.maker.turns(question, answer, chat)
        weight[weight > 0] = 1 / np.sqrt(len(answer))       # a long answer is not worth its length
        return tokens, weight, raw

    def _facts(self):
        events, newline = [], self.words["newline"]
        for link in range(1, self.random.randint(15, 37)):
            group = self.random.choice((1, 1, 2, 3, 5))
            at, gap = self._spot()
            items = [self.maker.item("facts") for _ in range(group)]
            events.append((at, self._said(newline, *[part for statement, _, _ in items
                                                     for part in (statement, newline)]), link))
            for _, question, answer in items:
                events.append((at + 16 * group + gap, self._turn(question, answer), -link))
                gap = self._gap()
        return events

    def _word(self, count=1):
        return self.singles[self.random.randint(0, len(self.singles), count)].tolist()

    def _value(self):
        if self.random.rand() < 0.25:
            return [self.words["space"]] + [self.words["digits"][i] for i in
                                            self.random.randint(0, 10, self.random.randint(2, 5))]
        return self._word(self.random.choice((1, 1, 2)))

    def _pairs(self):
        events = []
        for link in range(1, self.random.randint(7, 14)):
            mark, end = self.styles[self.random.randint(len(self.styles))]
            names = self._word(self.random.randint(8, 33))
            pairs = [([name], self._value()) for name in dict.fromkeys(names)]
            at, gap = self._spot()
            said = [part for name, value in pairs for part in (name, mark, value, end)]
            events.append((at, self._said(self.words["blank"], *said), link))
            for _ in range(self.random.randint(1, 4)):
                self.random.shuffle(pairs)
                asked = [(self.words["blank"], 0)]
                for name, value in pairs[:self.random.randint(4, 17)]:
                    asked += [(name + mark, 0), (value, 1), (end, 0)]
                events.append((at + 5 * len(pairs) + gap,
                               self._asked(asked, self.random.rand() < 0.4), -link))
                gap = self._gap()
        return events

    def _piece(self, index):
        return self.pieces[self.ends[index - 1] if index else 0:self.ends[index]].tolist()

    def _lines(self):
        """Lines of one stretch of a kind of text, or None: its topic is what they share."""
        kind = self.random.choice(self.maker.names, p=self.maker.shares)
        text = self.maker.text(kind, min(3000, self.length))
        ends = np.flatnonzero(np.isin(text, self.words["line_ends"]))
        lines = [text[a + 1:b].tolist() for a, b in zip(ends[:-1], ends[1:]) if 9 < b - a < 50]
        self.random.shuffle(lines)
        return lines if len(lines) >= 6 else None

    def _groups(self, count):
        """[(label's tokens, texts)]: count labels, five texts or more each; do their names say what
        they are for?"""
        if self.random.rand() < 0.75:
            common = len(self.sets) == 1 or self.random.rand() < 0.6      # the requests
            found = self.sets[0 if common else self.random.randint(1, len(self.sets))]
            picked = self.random.choice(len(found), min(count, len(found)), replace=False)
            groups = []
            for label, first, size in (found[i] for i in picked):
                texts = first + self.random.permutation(size)[:14]
                groups.append((self._piece(label), [self._piece(i) for i in texts]))
            if self.random.rand() < OWN_NAMES:
                return groups, True
            return [(self._word(), texts) for _, texts in groups], False
        groups = []
        for _ in range(4 * count):
            lines = self._lines()
            if lines and len(groups) < count:
                groups.append((self._word(), lines[:14]))
        return groups, False

    def _labels(self):
        events = []
        for link in range(1, self.random.randint(6, 10)):
            groups, named = self._groups(self.random.choice((2, 3, 4, 4, 4, 5, 6)))
            if len(groups) < 2:
                continue
            head, mark, end = self.forms[self.random.randint(len(self.forms))]
            shots = self.random.randint(1, 5)
            shown = [(texts[i], label) for label, texts in groups for i in range(shots)
                     if i < len(texts) - 1]
            self.random.shuffle(shown)
            if named and self.random.rand() < FEW:
                shown = shown[:self.random.randint(1, len(shown) + 1)]
            said = [part for text, label in shown for part in (head, text, mark, label, end)]
            at, gap = self._spot()
            events.append((at, self._said(self.words["blank"], *said), link))
            later = at + sum(map(len, said)) + gap
            asked = [(text, label) for label, texts in groups for text in texts[shots:][:3]]
            self.random.shuffle(asked)
            raw = self.random.rand() < 0.5
            for text, label in asked[:6]:       # apart: few are examples for the next
                events.append((later, self._asked([(self.words["blank"], 0), (head + text + mark, 0),
                                                   (label, 1), (end[:1], 1), (end[1:], 0)], raw),
                               -link))
                later += self._scaled(self.random.randint(250, NEAREST))
        return events

    def _passages(self):
        events, blank = [], self.words["blank"]
        for link in range(1, self.random.randint(9, 18)):
            passage, question, answer = self.maker.item()
            if len(passage) > min(PASSAGE, self.length // 4):
                continue
            at, gap = self._spot()
            events.append((at, self._said(blank, passage, blank), link))
            events.append((at + len(passage) + gap, self._turn(question, answer[:100]), -link))
        return events

    def _excerpts(self):
        """Nothing but events: stretches of text, each of which comes back in parts."""
        events, blank = [], self.words["blank"]
        for link in range(1, self.random.randint(7, 13)):
            kind = self.random.choice(self.maker.names, p=self.maker.shares)
            size = min(self.random.randint(120, 500), self.length // 8)
            text, (at, gap) = self.maker.text(kind, size), self._spot()
            events.append((at, self._said(blank, text, blank), link))
            for _ in range(self.random.randint(1, 4)):
                count, cue = self.random.randint(24, 100), self.random.randint(5, 11)
                start = self.random.randint(0, max(1, size - count))
                part = text[start:start + count]
                events.append((at + size + gap, self._asked(
                    [(blank, 0), (part[:cue], 0), (part[cue:], 1), (blank, 0)]), -link))
                gap = self._gap()
        return events

    def _restated(self):
        events, count, link = [], 0, 0
        while count < self.length:
            link += 1
            kind = self.random.choice(self.maker.names, p=self.maker.shares)
            text = self.maker.text(kind, self._scaled(self.random.randint(NEAREST, 900)))
            events += [(count, self._said(text), link),
                       (count, self._asked([(text[:CUE], 0), (text[CUE:], 1)]), -link)]
            count += 2 * len(text)
        return events

    def _sentence(self, passage, answer):
        """The sentence of a passage that has the answer in it, or None."""
        for head in (answer[0], self.spaced[answer[0]]):
            for at in np.flatnonzero(passage[:len(passage) - len(answer) + 1] == head):
                if np.array_equal(passage[at + 1:at + len(answer)], answer[1:]):
                    ends = np.flatnonzero(np.isin(passage, self.words["sentence_ends"]))
                    first, last = np.searchsorted(ends, (at, at + len(answer) - 1))
                    return passage[ends[first - 1] + 1 if first else 0:
                                   ends[last] + 1 if last < len(ends) else len(passage)]
        return None

    def _told(self):
        """-> (what is said in the stream, the sentence that tells, question, answer)."""
        if self.random.rand() < 0.4:
            passage, question, answer = self.maker.item()
            sentence = self._sentence(passage, answer) if len(passage) <= PASSAGE else None
            if sentence is not None and len(answer) < 60 and len(sentence) < 100:
                return passage, sentence, question, answer
        statement, question, answer = self.maker.item("facts")
        return statement, statement, question, answer

    def _found(self, text, question, again):
        """siltd's turn: the text before the question and, again, behind it (ask_recall.c)."""
        words = self.words
        first = np.concatenate([self.spaced[question[:1]], question[1:]])
        parts = [words["use"], text, words["asks"], first]
        if again:
            parts += [words["apart"], text, words["wish"]]
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    def _prompted(self):
        """Nearly half of the answers are in the text before the question and again behind it, which
        wishes for a sentence of it; a third are in a longer text, once; some are not in the text
        found."""
        events, newline = [], np.array(self.words["newline"], np.int64)
        told = [self._told() for _ in range(self.random.randint(12, 28))]
        for link, (said, sentence, question, answer) in enumerate(told, 1):
            at, gap = self._spot()
            draw, found, again = self.random.rand(), sentence, self.random.rand() < 0.8
            if draw < 0.35:
                kind = self.random.choice(self.maker.names, p=self.maker.shares)
                text = self.maker.text(kind, 2 * AROUND)
                found = np.concatenate([text[:AROUND], newline, sentence, newline, text[AROUND:]])
                said, again = found, self.random.rand() < 0.2
            elif draw < 0.55:
                found = told[self.random.randint(len(told))][1]
                again = self.random.rand() < 0.5
            prompt = self._found(found, question, again)
            events.append((at, self._said(newline, said, newline), link))
            events.append((at + len(said) + gap,
                           self._turn(prompt, sentence if again else answer, True), -link))
        return events
