"""What others wrote or raised, as a part of one line of ours."""

from __future__ import annotations

import pytest

from bitseam.errors import DataError, first_sentence, printable


@pytest.mark.parametrize(
    ("error", "shown", "named"),
    [
        (
            ValueError("a file is cut off. See the manual. Or not."),
            "a file is cut off",
            "ValueError: a file is cut off",
        ),
        (ValueError(" two\n\tlines: "), "two lines", "ValueError: two lines"),
        (ValueError("layer 3.5 of x.y is odd"), "layer 3.5 of x.y is odd", "ValueError: layer 3.5 of x.y is odd"),
        (DataError("\x1b[2J a\u202e"), "\\x1b[2J a\\u202e", "DataError: \\x1b[2J a\\u202e"),
        (ValueError("x" * 3000), "x" * 300 + "... (3,000 characters)", "ValueError: " + "x" * 300),
        (KeyError("model"), "KeyError: 'model'", "KeyError: 'model'"),
        (AssertionError(), "AssertionError", "AssertionError"),
        (ValueError(" .\n"), "ValueError", "ValueError"),
    ],
)
def test_what_others_code_raises_is_part_of_one_line(error: BaseException, shown: str, named: str) -> None:
    assert first_sentence(error) == shown
    assert first_sentence(error, named=True).startswith(named)


def test_a_length_cuts_what_is_longer_and_nothing_else() -> None:
    assert printable("x" * 5, 5) == "x" * 5
    assert printable("x" * 1001, 5) == "xxxxx... (1,001 characters)"
    assert printable("x" * 1001, None) == "x" * 1001
    assert first_sentence(ValueError("x" * 9), 5) == "xxxxx... (9 characters)"
