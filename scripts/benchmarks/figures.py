"""A table of figures of several systems, each held against the best peer or a limit of the machine.

Values of one round belong together: they were taken one after the other, so a quotient is formed within each round, and the
median of the quotients counts.
"""

import statistics
import sys

# A measurement that was broken off because it took too long: worse than anything.
TOO_LONG = None


class Figure:
    """What is measured, and what `ours` is held against: `against` is a system's name, a number, or `peer` for the best of them."""

    def __init__(self, key, text, unit, wanted, against="peer", is_more_better=True, digits=0):
        self.key, self.text, self.unit, self.wanted = key, text, unit, wanted
        self.against, self.is_more_better, self.digits = against, is_more_better, digits


class Figures:
    def __init__(self, title, ours, peers):
        self.title, self.ours, self.peers = title, ours, peers
        self.values, self.systems = {}, []

    def add(self, key, system, value):
        if system not in self.systems:
            self.systems.append(system)
        self.values.setdefault(key, {}).setdefault(system, []).append(value)
        print(f"    {system} {key}: {'too long' if value is TOO_LONG else f'{value:.4g}'}", file=sys.stderr, flush=True)

    def is_too_long(self, key, system):
        return TOO_LONG in self.values.get(key, {}).get(system, [])

    def middle(self, key, system):
        values = self.values.get(key, {}).get(system, [])
        return statistics.median(values) if values and TOO_LONG not in values else None

    def best_peer(self, figure):
        known = [(self.middle(figure.key, peer), peer) for peer in self.peers if self.middle(figure.key, peer) is not None]
        if not known:
            return None
        return (max if figure.is_more_better else min)(known)[1]

    def quotient(self, figure):
        """How many times better than what it is held against, and the name of that."""
        ours = self.values.get(figure.key, {}).get(self.ours, [])
        if not ours or TOO_LONG in ours:
            return None, "-"
        if isinstance(figure.against, (int, float)):
            name, theirs = f"{figure.against:g}", [figure.against] * len(ours)
        else:
            name = self.best_peer(figure) if figure.against == "peer" else figure.against
            theirs = self.values.get(figure.key, {}).get(name, []) if name else []
        if not theirs:
            return None, name or "-"
        pairs = zip(ours, theirs if len(theirs) >= len(ours) else [statistics.median(theirs)] * len(ours))
        quotients = [a / b if figure.is_more_better else b / a for a, b in pairs if a and b]
        return (statistics.median(quotients) if quotients else None), name

    def cell(self, figure, system):
        if self.is_too_long(figure.key, system):
            return "too long"
        value = self.middle(figure.key, system)
        return "-" if value is None else f"{value:,.{figure.digits}f}"

    def lines(self, figures):
        others = [system for system in self.systems if system != self.ours]
        yield ["figure", "unit", self.ours, "held against", "quotient", "wanted", "met", *others]
        for figure in figures:
            if figure.key not in self.values:
                continue
            quotient, name = self.quotient(figure)
            is_met = "-" if quotient is None or figure.wanted is None else ("yes" if quotient >= figure.wanted else "NO")
            yield [figure.text, figure.unit, self.cell(figure, self.ours), name, "-" if quotient is None else f"{quotient:.2f}",
                   "-" if figure.wanted is None else f"{figure.wanted:g}", is_met, *(self.cell(figure, system) for system in others)]

    def table(self, figures):
        lines = list(self.lines(figures))
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        texts = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
        texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([self.title, "", *texts])
