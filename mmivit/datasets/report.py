"""What the checks of data sets find, counted by kind, with the first few places of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mmivit.utils.text import printable

EXAMPLES = 3  # kept of each kind; the rest is counted


class Finding(NamedTuple):
    """A problem to mend, or else a note; kinds are counted, so what differs goes into where."""

    kind: str
    where: str
    problem: bool = True


@dataclass
class DataReport:
    """What was found in one data set: how many of each kind, and where the first few are."""

    name: str
    images: int = 0
    facts: list[str] = field(default_factory=list)  # neither problem nor note
    problems: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, findings: Iterable[Finding]) -> None:
        """Count findings and remember where the first few of each kind are."""
        for kind, where, problem in findings:
            (self.problems if problem else self.notes)[kind] += 1
            if len(self.examples[kind]) < EXAMPLES:
                self.examples[kind].append(printable(where))

    def details(self) -> list[str]:
        """Lines on each kind that was found."""
        lines = []
        for title, counts in (('problem', self.problems), ('note', self.notes)):
            for kind, count in counts.items():
                lines.append(f'  {title}: {count} {kind}')
                lines += [f'      {where}' for where in self.examples[kind]]
                if count > EXAMPLES:
                    lines.append('      ...')
        return lines

    def __str__(self) -> str:
        title = f'{self.name}, {self.images} images: {sum(self.problems.values())} problems'
        return '\n'.join([title, *(f'  {fact}' for fact in self.facts), *self.details()])


def first_line(error: Exception) -> str:
    """The first line of an error's message, its type's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
