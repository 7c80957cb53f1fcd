"""What checks find. Each check is made whatever the others found, so that all that is wrong is said at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from bitseam.errors import BitseamError, CheckError

T = TypeVar("T")
Verdict = Literal["right", "wrong", "not checked"]


@dataclass(frozen=True)
class Finding:
    """subject: what was looked at, such as "certificates". text: what was found, and what to do where it is wrong."""

    subject: str
    verdict: Verdict
    text: str


class Checks:
    """Makes checks and keeps what they find. tell: called with each finding as it is made."""

    def __init__(self, tell: Callable[[Finding], None] = lambda finding: None) -> None:
        self.findings: list[Finding] = []
        self._tell = tell
        self._errors: list[BitseamError] = []

    def make(
        self,
        subject: str,
        check: Callable[[], T],
        say: Callable[[T], str] = lambda made: "",
        needs: Sequence[object] = (),
    ) -> T | None:
        """What `check` makes, and None where it raises an error of ours: that error is then a finding.

        say: what is told of a thing that is right. needs: what earlier checks made and this one builds on; where one
        of them is None, this check is not made, and the finding says so.
        """
        if any(need is None for need in needs):
            self.note(subject, "not checked", "what it builds on is wrong; see above")
            return None
        try:
            made = check()
        except BitseamError as error:
            self._errors.append(error)
            self.note(subject, "wrong", str(error))
            return None
        self.note(subject, "right", say(made))
        return made

    def note(self, subject: str, verdict: Verdict, text: str) -> None:
        """Keep and tell a finding."""
        finding = Finding(subject, verdict, text)
        self.findings.append(finding)
        self._tell(finding)

    def right(self, subject: str | None = None) -> bool:
        """Whether nothing is wrong so far, or nothing with a subject."""
        looked = [finding for finding in self.findings if subject in (None, finding.subject)]
        return all(finding.verdict == "right" for finding in looked)

    def require(self) -> None:
        """Raise what is wrong: the error itself where it is one, CheckError with all of them where they are several."""
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            listed = "\n".join(f"  {i}. {error}" for i, error in enumerate(self._errors, 1))
            raise CheckError(f"{len(self._errors)} things are wrong, and nothing was begun:\n{listed}")
