"""Who sees which far rows: DESIGN.md §2 as index tables, one batch at a time.

The far rows of a chunk's queries are `sinks | summary | recall and ring`.  For every chunk of every
row this builds the matrix that picks (or averages) segments, the positions at which their keys are
rotated, and an additive mask.  Rows may differ in ring length, and single chunks may see recalled
segments, so one batch trains many settings at one tensor shape.
"""
import numpy as np

HIDDEN = -1e9


class MemoryPlan:
    """numpy arrays for rows B, chunks T, slots 1 + S (summary first, then S segments oldest first).

    select   [B, T*(1+S), T]   weights over the row's own segments
    places   [B, T, (1+S)*m]   position of each far key
    hidden   [B, T, sinks + (1+S)*m]   0 or HIDDEN, sinks first
    sinks    [B, T, sinks]     position of each sink key
    """

    def __init__(self, rings, chunks, slots=15, n=256, m=16, sinks=8, alpha_min=0.0, recall=None,
                 hide_memory=False):
        rows = len(rings)
        width = 1 + slots
        self.select = np.zeros((rows, chunks, width, chunks), np.float32)
        self.places = np.zeros((rows, chunks, width, m), np.int64)
        self.hidden = np.full((rows, chunks, sinks + width * m), HIDDEN, np.float32)
        self.sinks = np.zeros((rows, chunks, sinks), np.int64)
        offsets = (np.arange(m) + 1) * n // m - 1
        averages = summary_weights(chunks, alpha_min)
        for row, ring in enumerate(rings):
            for chunk in range(1, chunks):
                first = max(0, chunk - ring)                # oldest ring segment = summary's count
                chosen = list(recall.get((row, chunk), ())) if recall else []
                newest = list(range(first, chunk))
                start = first * n
                places = [start - (len(chosen) - i) * n for i in range(len(chosen))] \
                    + [segment * n for segment in newest]
                slot = width - len(places)
                for segment, place in zip(chosen + newest, places):
                    self.select[row, chunk, slot, segment] = 1
                    self.places[row, chunk, slot] = place + offsets
                    slot += 1
                shown = sinks + (width - len(places)) * m
                if not hide_memory:
                    self.hidden[row, chunk, shown:] = 0
                base = start - len(chosen) * n
                if first > 0:
                    self.select[row, chunk, 0] = averages[first]
                    self.places[row, chunk, 0] = base - m + np.arange(m)
                    if not hide_memory:
                        self.hidden[row, chunk, sinks:sinks + m] = 0
                if chunk > 1:               # before, the first chunk's own entries are in view
                    self.hidden[row, chunk, :sinks] = 0
                self.sinks[row, chunk] = (base - m - sinks if first > 0 else 0) + np.arange(sinks)
        self.select = self.select.reshape(rows, chunks * width, chunks)
        self.places = self.places.reshape(rows, chunks, width * m)


def summary_weights(chunks, alpha_min):
    """Row c: the weight of each segment in a summary of the first c segments."""
    out = np.zeros((chunks + 1, chunks), np.float64)
    for count in range(1, chunks + 1):
        alpha = max(1.0 / count, alpha_min)
        out[count] = out[count - 1] * (1 - alpha)
        out[count, count - 1] = alpha
    return out
