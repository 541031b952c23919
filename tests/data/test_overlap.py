"""Passages that two texts share, against a count by brute force."""

import random

from gptcli.data.overlap import PASSAGE_WORDS, find_overlap, groups, words_of
from gptcli.data.text import Piece

DRAW = random.Random(1)
VOCABULARY = ["".join(DRAW.choice("abcdefghijklmnop") for _ in range(DRAW.randint(1, 9))) for _ in range(3000)]


def words(number: int) -> list[str]:
    return [DRAW.choice(VOCABULARY) for _ in range(number)]


def shared_words(held_out: list[list[str]], training: list[list[str]]) -> int:
    def windows(document: list[str]) -> list[tuple[str, ...]]:
        return [tuple(document[at : at + PASSAGE_WORDS]) for at in range(len(document) - PASSAGE_WORDS + 1)]

    known = {window for document in training for window in windows(document)}
    total = 0
    for document in held_out:
        covered = set()
        for at, window in enumerate(windows(document)):
            if window in known:
                covered |= set(range(at, at + PASSAGE_WORDS))
        total += len(covered)
    return total


def test_shared_words_are_those_that_brute_force_finds() -> None:
    for _ in range(5):
        held_out, training = [words(DRAW.randint(10, 300)) for _ in range(12)], [words(900) for _ in range(9)]
        for length in (49, 50, 51, 80):
            source, target = DRAW.choice(held_out), DRAW.choice(training)
            at = DRAW.randint(0, 800)
            target[at:at] = source[:length]
        found = find_overlap(
            (Piece(" ".join(document), True, 0) for document in held_out),
            (Piece(",\n  ".join(document).upper(), True, 0) for document in training),
        )
        assert found.shared_words == shared_words(held_out, training)
        assert found.held_out_words == sum(map(len, held_out))


def test_a_passage_across_pieces_and_blocks_is_found() -> None:
    passage = words(60)
    text = " ".join([*words(20_000), *passage, *words(20_000)])
    for cut in range(text.index(" ".join(passage)) - 300, text.index(" ".join(passage)) + 600, 150):
        pieces = [Piece(text[:cut], True, 0), Piece(text[cut:], False, 0)]
        assert find_overlap([Piece(" ".join(passage), True, 0)], pieces).shared_words >= PASSAGE_WORDS


def test_characters_of_a_script_without_spaces_are_words() -> None:
    assert words_of("日本 ab") == ["日", "本", "ab"]
    text = "".join(chr(DRAW.randint(0x4E00, 0x9000)) for _ in range(300))
    assert find_overlap([Piece(text[100:200], True, 0)], [Piece(text, True, 0)]).shared_words == 100


def test_texts_that_share_a_passage_are_in_one_group() -> None:
    one, two = words(60), words(60)
    texts = [" ".join(part) for part in (words(99), [*one, *words(9)], words(80), [*two, *one], [*words(9), *two])]
    assert groups(texts) == [[0], [1, 3, 4], [2]]
