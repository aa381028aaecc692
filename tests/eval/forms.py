"""What may stand around a question of what the search has found: forms of siltd's prompt.

siltd's own is SHIPPED (daemon/ask_recall.c); the others are what it was chosen from.  A form puts
whole chunks or the text around the found line before the question, or the line, or both, and the
line once more behind it; or reads the text again in front of the question's turn.
"""
import dataclasses
import re

import grid     # which knows where gguf is
import gguf

CHUNK, MOVED = 256, 32
USE = "Use this text to answer the question."
WISH = "Answer with a sentence of the text."


@dataclasses.dataclass(frozen=True)
class Form:
    chunks: int = 0         # the best found, whole, in the stream's order
    around: int = 0         # neighbours of the best one on each side, which come before others
    window: int = 0         # instead of chunks, so many tokens with the line in their middle
    line: bool = True       # the line, next to the question
    again: str = "about"    # the line behind the question: if it is "about" it, "never", "always"
    vague: bool = False     # chunks only where the line is not about the question
    apart: bool = False     # chunks as text of the stream, read again in front of the turn
    use: str = USE
    ask: str = "Question: "
    wish: str = WISH
    first: bool = False     # the question before the text, too


WINDOWS = (256, 384, 512, 768, 1024)
FORMS = {
    "line": Form(),
    "line once": Form(again="never"),
    "bare": Form(line=False, again="never"),
    **{f"{n} chunks": Form(n, line=False) for n in (1, 2, 3, 4, 5)},
    **{f"{n} chunks, once": Form(n, line=False, again="never") for n in (1, 2, 3, 4, 5)},
    **{f"{n} chunks, line": Form(n) for n in (1, 2, 3, 4, 5)},
    **{f"{n} around": Form(n, around=1, line=False) for n in (3, 4, 5)},
    **{f"{n} around, once": Form(n, around=1, line=False, again="never") for n in (3, 4, 5)},
    **{f"{n} around, line": Form(n, around=1) for n in (3, 4, 5)},
    **{f"{n} wide, once": Form(n, around=2, line=False, again="never") for n in (5,)},
    **{f"{n} vague": Form(n, line=False, vague=True) for n in (3, 4, 5)},
    **{f"{n} vague around": Form(n, around=1, line=False, vague=True) for n in (3, 4, 5)},
    **{f"window {n}": Form(window=n, line=False) for n in WINDOWS},
    **{f"window {n}, once": Form(window=n, line=False, again="never") for n in WINDOWS},
    **{f"window {n}, vague": Form(window=n, line=False, vague=True) for n in WINDOWS},
    **{f"window {n}, line": Form(window=n) for n in WINDOWS},
    **{f"window {n} apart": Form(window=n, apart=True) for n in WINDOWS},
    **{f"window {n} apart, vague": Form(window=n, apart=True, vague=True) for n in WINDOWS},
    **{f"window {n} apart, once": Form(window=n, apart=True, again="never") for n in WINDOWS},
    **{f"window {n} apart, bare": Form(window=n, line=False, apart=True, again="never")
       for n in WINDOWS},
    **{f"{n} chunks apart": Form(n, apart=True) for n in (2, 3, 4, 5)},
    **{f"{n} around apart": Form(n, around=1, apart=True) for n in (3, 4, 5)},
    "4 chunks, plain": Form(4, line=False, again="never", use="", ask=""),
    "4 around, plain": Form(4, around=1, line=False, again="never", use="", ask=""),
    "4 chunks, asked first": Form(4, line=False, again="never", first=True),
    "4 around, asked first": Form(4, around=1, line=False, again="never", first=True),
}
SHIPPED = "window 768 apart, vague"


class Vocabulary:
    """Tokens as bytes."""

    def __init__(self, model=grid.MODEL):
        letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in letters]
        byte_of = {chr(byte): byte for byte in letters}
        byte_of.update({chr(256 + i): byte for i, byte in enumerate(others)})
        names = gguf.Reader(str(model)).meta["tokenizer.ggml.tokens"]
        self.bytes = [bytes(byte_of[c] for c in name if c in byte_of) for name in names]

    def text(self, tokens):
        return b"".join(self.bytes[token] for token in tokens).decode(errors="ignore")


def chosen(form, found, chunks):
    """Numbers of the chunks that a form puts, of `chunks` that can be found."""
    best = found["all"][:1]
    places = [best[0] + i for i in range(-form.around, form.around + 1)] if best else []
    places = [chunk for chunk in places if 0 <= chunk < chunks]
    places += [chunk for chunk in found["all"] if chunk not in places]
    return sorted(places[:form.chunks])


def passage(numbers, tokens, vocabulary):
    """Text of chunks; those that follow each other are one text."""
    parts = []
    for number in numbers:
        if parts and parts[-1][1] == number:
            parts[-1][1] += 1
        else:
            parts.append([number, number + 1])
    return "\n\n".join(vocabulary.text(tokens[low * CHUNK:high * CHUNK]).strip()
                       for low, high in parts)


def window(form, found, tokens, vocabulary):
    """Text around the found line, which is in the best chunk."""
    if not found["all"]:
        return ""
    # Passages put into a text have moved its tokens a little.
    first, place = max(0, found["all"][0] * CHUNK - MOVED), CHUNK // 2
    part = tokens[first:first + CHUNK + 2 * MOVED]
    text = re.sub("[\0-\x1f]", " ", vocabulary.text(part))
    at = text.find(found["excerpt"])
    if at >= 0:
        size, middle = 0, len(text[:at + len(found["excerpt"]) // 2].encode())
        for place, token in enumerate(part):
            size += len(vocabulary.bytes[token])
            if size > middle:
                break
    end = len(tokens) // CHUNK * CHUNK - CHUNK      # the newest chunk is there word by word
    low = max(0, min(first + place - form.window // 2, end - form.window))
    return vocabulary.text(tokens[low:min(low + form.window, end)]).strip()


def wide(form, found, tokens, vocabulary):
    """What a form puts beside the line."""
    if form.vague and found["about"]:
        return ""
    if form.window:
        return window(form, found, tokens, vocabulary)
    numbers = chosen(form, found, len(tokens) // CHUNK - 1)
    return passage(numbers, tokens, vocabulary) if form.chunks else ""


def before(form, found, tokens, vocabulary):
    """What is read again in front of the user's turn, no turn itself."""
    return wide(form, found, tokens, vocabulary) if form.apart else ""


def prompt(form, question, found, tokens, vocabulary):
    """The user's turn."""
    line, texts = found["excerpt"], []
    if not form.apart:
        texts.append(wide(form, found, tokens, vocabulary))
    if form.line or (form.vague and found["about"]):
        texts.append(line)
    texts = [text for text in texts if text]
    if not texts:
        return question
    words = [question] * form.first + [form.use] + texts + [form.ask + question]
    if line and form.again != "never" and (found["about"] or form.again == "always"):
        words += [line, form.wish]
    return "\n\n".join(word for word in words if word)
