"""Where the tokens of a batch stand in the rows that a language model is given.

Questions about one image share it: their common beginning, with the image, stands once, and each continues from there
without seeing the others. Short rows are put end to end until they are as long as the longest (sequence packing, Krell
et al., arXiv 2107.02027). Loss and gradients are those of one padded row a sequence; there is less to compute.

Shapes: B sequences, N text tokens, G groups of sequences that share a beginning, M image tokens, R rows of S columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bitseam.models.language.half import Overlay
from bitseam.text.batch import TextBatch

_PADDING, _SHARED = -1, -1
_MOST = 4  # a group is no longer than so many of the longest rows of its own: attention takes the length squared


@dataclass(frozen=True)
class Layout:
    """text (2, N): row and column of each text token. previous (2, N): of the token before it in its sequence, whose
    state predicts it; column -1 for none. first (N,) bool: false for a shared token after its first copy.
    images (G,): which image stands at image_place (2, G, M). The planes (R, S): position of each token in its sequence,
    its group (-1: padding), its sequence (-1: shared by the group). sequences: B."""

    text: Tensor
    previous: Tensor
    first: Tensor
    images: Tensor
    image_place: Tensor
    position: Tensor
    group: Tensor
    sequence: Tensor
    sequences: int

    def to(self, device: torch.device) -> Layout:
        """The same, on `device`."""
        moved: dict[str, Any] = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def padding_mask(self) -> Tensor:
        """(R, S) int64: 0 where there is no token."""
        return (self.group != _PADDING).long()

    @property
    def mixed(self) -> bool:
        """Whether sequences share rows, so that the causal mask alone is not right."""
        return len(self.group) != self.sequences

    def attention_mask(self, dtype: torch.dtype, overlay: Overlay | None = None) -> Tensor | None:
        """(R, 1, S, S), added to attention scores; None where the causal mask alone is right.

        overlay: which positions see which, where that is not all of those before them.
        """
        if not self.mixed:
            return None
        group, sequence = self.group, self.sequence
        seen = (sequence[:, None, :] == _SHARED) | (sequence[:, None, :] == sequence[:, :, None])
        seen &= (group[:, None, :] == group[:, :, None]).tril()
        if overlay is not None:
            seen &= overlay(0, 0, self.position[:, :, None], self.position[:, None, :])
        blocked = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return blocked.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def packed(text: TextBatch, tokens: int, ids_known: bool = True) -> Layout:
    """For training, where something follows the image in each sequence.

    tokens: of an image; ids_known: sequences share only a beginning known to be the same.
    """
    groups: dict[object, list[int]] = {}
    starts = (text.lengths.cumsum(0) - text.lengths).tolist()
    ids = text.ids.tolist()
    for b, (start, at, image) in enumerate(zip(starts, text.image_at.tolist(), text.image.tolist(), strict=True)):
        groups.setdefault((image, *ids[start : start + at]) if ids_known else b, []).append(b)
    most = _MOST * (tokens + int(text.lengths.max()))
    members = [part for group in groups.values() for part in _cut(text, tokens, group, most)]
    sizes = _sizes(text, tokens, members)
    return _lay_out(text, tokens, members, _first_fit(sizes), max(sizes))


def padded(text: TextBatch, tokens: int) -> Layout:
    """For training where nothing may share a row: a row a sequence, in order, padded on the right."""
    members = [[b] for b in range(len(text.lengths))]
    sizes = _sizes(text, tokens, members)
    return _lay_out(text, tokens, members, [(b, 0) for b in range(len(members))], max(sizes))


def left_padded(text: TextBatch, tokens: int) -> Layout:
    """For generation: a row a sequence, in order."""
    members = [[b] for b in range(len(text.lengths))]
    sizes = _sizes(text, tokens, members)
    return _lay_out(text, tokens, members, [(b, max(sizes) - size) for b, size in enumerate(sizes)], max(sizes))


def _sizes(text: TextBatch, tokens: int, members: Sequence[Sequence[int]]) -> list[int]:
    own = (text.lengths - text.image_at).tolist()
    return [int(text.image_at[group[0]]) + tokens + sum(own[b] for b in group) for group in members]


def _cut(text: TextBatch, tokens: int, group: Sequence[int], most: int) -> list[list[int]]:
    """A group in parts of `most` tokens each, in order."""
    shared = int(text.image_at[group[0]]) + tokens
    parts: list[list[int]] = []
    size = most
    for b in group:
        own = int(text.lengths[b] - text.image_at[b])
        if size + own > most:
            parts.append([])
            size = shared
        parts[-1].append(b)
        size += own
    return parts


def _first_fit(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Row and column at which each group starts; the longest are placed first."""
    filled: list[int] = []
    places = [(0, 0)] * len(sizes)
    for group in sorted(range(len(sizes)), key=lambda g: -sizes[g]):
        row = next((r for r, used in enumerate(filled) if used + sizes[group] <= max(sizes)), len(filled))
        if row == len(filled):
            filled.append(0)
        places[group] = row, filled[row]
        filled[row] += sizes[group]
    return places


def _lay_out(
    text: TextBatch, tokens: int, members: Sequence[Sequence[int]], places: Sequence[tuple[int, int]], size: int
) -> Layout:
    sequences = len(text.lengths)
    row, begin, rest, group_of = torch.zeros(4, sequences, dtype=torch.int64)
    leads = torch.zeros(sequences, dtype=torch.bool)
    for g, (group, (r, start)) in enumerate(zip(members, places, strict=True)):
        row[group], begin[group], group_of[group] = r, start, g
        leads[group[0]] = True
        free = start + int(text.image_at[group[0]]) + tokens
        for b in group:
            rest[b] = free
            free += int(text.lengths[b] - text.image_at[b])

    of = torch.repeat_interleave(torch.arange(sequences), text.lengths)
    within = torch.arange(len(of)) - (text.lengths.cumsum(0) - text.lengths)[of]
    before = within < text.image_at[of]
    column = torch.where(before, begin[of] + within, rest[of] + within - text.image_at[of])
    # Behind the image a sequence goes on from the shared beginning, wherever in the row it stands.
    previous = torch.where(within == text.image_at[of], (begin + text.image_at)[of] + tokens - 1, column - 1)
    previous[(within == 0) & before] = -1

    leaders = torch.tensor([group[0] for group in members])
    step = torch.arange(tokens)
    image_column = (begin + text.image_at)[leaders, None] + step
    image_row = row[leaders, None].expand_as(image_column)

    rows = max(r for r, _ in places) + 1
    position = torch.zeros(rows, size, dtype=torch.int64)
    group_plane, sequence_plane = torch.full_like(position, _PADDING), torch.full_like(position, _SHARED)
    position[row[of], column] = within + tokens * ~before
    position[image_row, image_column] = text.image_at[leaders, None] + step
    group_plane[row[of], column] = group_of[of]
    group_plane[image_row, image_column] = torch.arange(len(members))[:, None]
    sequence_plane[row[of], column] = torch.where(before, _SHARED, of)
    return Layout(
        text=torch.stack([row[of], column]),
        previous=torch.stack([row[of], previous]),
        first=~before | leads[of],
        images=text.image[leaders],
        image_place=torch.stack([image_row, image_column]),
        position=position,
        group=group_plane,
        sequence=sequence_plane,
        sequences=sequences,
    )
