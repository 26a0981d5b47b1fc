"""How much of a head's attention stays inside the segment (paragraph, section) that the query is in, and whether by chance.

*Share*: the attention that a query gives to the keys from the start of its segment to itself, over all that it gives, averaged
over queries. Left out are queries whose segment began at or before the first token of the window, since all that they can see
is inside, whatever the head does; and queries that the caller does not count: a heading's own tokens stand at the beginning of
every section, so that a head in which they look at themselves would seem to know of sections.

*Excess*: a head that looks a few tokens back has a large share without knowing of segments, and the share is largest far behind
a boundary. So each query's share is compared with what the same head gives, averaged over all windows, from the same place in
the window to as many tokens back. What depends on distance alone has an excess of exactly 0.

*Chance*: the same attention is measured with the boundaries somewhere else. Those of the whole document are shifted around it,
as on a circle, which keeps their number and their distances. The p-value is the fraction of boundary sets, the true one counted
among them, whose excess is at least the true one (Phipson & Smyth 2010). It is exact if the true boundaries are like any shift
of them, which is nearly so, but for a document's beginning and end. The excess is tested and not the share, since the share
varies several times as much with where boundaries happen to fall. Holm's correction (1979) holds the probability of any false
finding among all heads at the level.

What a small p-value does not say is *which* sign the head follows. Paragraphs end with a full stop and sections begin with a
line, so a head that counts full stops has an excess of paragraphs, and one that counts lines an excess of sections. Shifting by
whole sentences or lines instead of tokens settles that: only their beginnings are boundaries then, and the excess by chance is
that of a head which follows all of them alike.

    tokens     a b c d|e f g h        attention of query g: on e f g 0.9, on a to d 0.1: share 0.9
    shifted    a b c d e f|g h                              on g alone 0.3:              share 0.3
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEVEL = 0.05  # of significance
ROUNDING = 1e-9  # excesses that differ by less are equal


class Segments(NamedTuple):
    """The segments that begin inside a window, for each of several sets of boundaries."""

    starts: np.ndarray  # (num,) the first token of each, 1 or more
    ends: np.ndarray  # (num,) the last one
    sets: np.ndarray  # (num,) the set of boundaries that each belongs to, ascending
    num_sets: int

    def num_queries(self, counted: np.ndarray) -> np.ndarray:
        """(num_sets,) queries in these segments, of those that are ``counted``, (window,) bool."""
        before = np.append(0, np.cumsum(counted))
        return np.bincount(self.sets, before[self.ends + 1] - before[self.starts], self.num_sets)


def shifted_segments(
    is_start: np.ndarray, places: np.ndarray, offsets: np.ndarray, window_start: int, window_length: int
) -> Segments:
    """The segments in a window of a document, with the document's boundaries shifted by each of ``offsets``.

    Args:
        is_start: (num_units,) bool: does a segment begin at this unit? A unit is what boundaries are shifted by.
        places: (num_units,) the token at which each unit begins, ascending.
        offsets: (num_sets,) in units; 0 leaves the boundaries where they are.
    """
    inside = np.flatnonzero((places > window_start) & (places < window_start + window_length))
    sets, found = np.nonzero(is_start[(inside - offsets[:, None]) % len(is_start)])
    starts = places[inside[found]] - window_start
    is_last = np.append(sets[1:] != sets[:-1], True)[: len(sets)]
    ends = np.where(is_last, window_length, np.roll(starts, -1)) - 1
    return Segments(starts, ends, sets, len(offsets))


def running_shares(attention: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """What :func:`share_sums` reads the shares of any segment from.

    Args:
        attention: (heads, query, key), each query's adding up to 1, 0 for keys after the query.
        counted: (query,) bool.

    Returns:
        (heads, query, key) float64: at (i, j), what the counted queries j to i give to keys from j on, added up.
    """
    on_keys_from = np.flip(np.cumsum(np.flip(attention, -1), axis=-1, dtype=np.float64), -1)
    return np.cumsum(on_keys_from * counted[:, None], axis=-2)


def share_sums(running: np.ndarray, segments: Segments) -> np.ndarray:
    """(heads, num_sets): the shares of all counted queries in ``segments`` added up, for each set of boundaries."""
    total = np.cumsum(running[:, segments.ends, segments.starts], axis=-1)
    total = np.pad(total, ((0, 0), (1, 0)))
    limits = np.searchsorted(segments.sets, np.arange(segments.num_sets + 1))
    sums: np.ndarray = total[:, limits[1:]] - total[:, limits[:-1]]
    return sums


class ShareTest(NamedTuple):
    """Each head's shares with the true boundaries and with shifted ones; arrays are (heads,)."""

    share: np.ndarray
    shifted_share: np.ndarray  # its mean with the boundaries shifted
    excess: np.ndarray
    shifted_excess: np.ndarray  # its mean with the boundaries shifted, and the limits of 95% of them
    shifted_excess_low: np.ndarray
    shifted_excess_high: np.ndarray
    p_value: np.ndarray  # one-sided: of an excess as large by chance
    p_corrected: np.ndarray  # Holm's, over these heads
    num_queries: int
    num_shifts: int  # those that left a query to be counted

    @property
    def ranking(self) -> np.ndarray:
        """(heads,) indices, the head that is furthest above chance first."""
        return np.argsort(self.shifted_excess - self.excess, kind="stable")


def compare_shares(sums: np.ndarray, expected: np.ndarray, num_queries: np.ndarray) -> ShareTest:
    """Compare the true boundaries, which are the first set, with the others.

    Args:
        sums: (heads, num_sets), the shares of all windows' queries added up.
        expected: (heads, num_sets), the same of the attention that is the mean over the windows.
        num_queries: (num_sets,), of all windows together; not 0 for the first set, nor for all others.
    """
    counted = num_queries > 0
    shares = sums[:, counted] / num_queries[counted]
    excesses = (sums - expected)[:, counted] / num_queries[counted]
    excess, by_chance = excesses[:, 0], excesses[:, 1:]
    p_value = (1 + (by_chance >= excess[:, None] - ROUNDING).sum(-1)) / (1 + by_chance.shape[1])
    low, high = np.quantile(by_chance, [0.025, 0.975], axis=-1)
    return ShareTest(
        share=shares[:, 0],
        shifted_share=shares[:, 1:].mean(-1),
        excess=excess,
        shifted_excess=by_chance.mean(-1),
        shifted_excess_low=low,
        shifted_excess_high=high,
        p_value=p_value,
        p_corrected=holm(p_value),
        num_queries=int(num_queries[0]),
        num_shifts=by_chance.shape[1],
    )


def holm(p_values: np.ndarray) -> np.ndarray:
    """(num,) p-values corrected for their number, so that those below a level hold together at that level (Holm 1979)."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return corrected
