"""Text in pieces as tokens give it: whole characters, up to the first stop string."""

import codecs
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.generate.engine import TextBuffer


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text before the stop string that is complete first; of several that end there, the longest."""
    for end in range(len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - len(max(ending, key=len))], True
    return text, False


def feed(content: bytes, cuts: list[int], stops: tuple[str, ...]) -> tuple[list[str], bool]:
    """Pieces that a TextBuffer gives for `content` in tokens, as the engine feeds them."""
    buffer, pieces = TextBuffer(stops), []
    borders = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    for start, end in itertools.pairwise(borders):
        text, stopped = buffer.add(content[start:end])
        pieces.append(text)
        if stopped:
            return pieces, True
    text, stopped = buffer.add(b"", final=True)
    return [*pieces, text], stopped


ALPHABET = st.sampled_from("abé☃😀")
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3).map(tuple)
CUTS = st.lists(st.integers(0, 1000), max_size=12)


@settings(deadline=None, max_examples=500)
@given(st.text(ALPHABET, max_size=20), CUTS, STOPS)
def test_pieces_of_text_are_whole_characters_up_to_the_first_stop(
    text: str, cuts: list[int], stops: tuple[str, ...]
) -> None:
    pieces, stopped = feed(text.encode(), cuts, stops)
    assert ("".join(pieces), stopped) == cut(text, stops)
    assert "\ufffd" not in "".join(pieces)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=20), CUTS, st.lists(st.text(max_size=3, min_size=1), max_size=2).map(tuple))
def test_pieces_of_any_bytes_are_the_decoded_text_up_to_the_first_stop(
    content: bytes, cuts: list[int], stops: tuple[str, ...]
) -> None:
    pieces, stopped = feed(content, cuts, stops)
    assert ("".join(pieces), stopped) == cut(content.decode("utf-8", "replace"), stops)


@settings(deadline=None, max_examples=100)
@given(st.text(ALPHABET, max_size=20), CUTS)
def test_without_stops_every_whole_character_is_shown_at_once(text: str, cuts: list[int]) -> None:
    buffer, fed, shown = TextBuffer(()), b"", ""
    content = text.encode()
    for start, end in itertools.pairwise([0, *sorted(c % (len(content) + 1) for c in cuts), len(content)]):
        fed += content[start:end]
        shown += buffer.add(content[start:end])[0]
        assert shown == codecs.getincrementaldecoder("utf-8")("replace").decode(fed)
