"""Who has the least error, and where GM-VQ stands: computed, whatever it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from page_rows import OURS, Entry, Experiment
from page_tables import markdown_table, run_command, with_spread

LEAST_USAGE = 0.95
"""Share of the codebook that a contender uses, on average over seeds, to be ranked."""
LEADS_WANTED = 2
"""Data sets that a leader leads on."""


@dataclass(frozen=True)
class Standing:
    """GM-VQ among the ranked of one protocol.

    Attributes:
        protocol: Name of the protocol.
        ranked: The ranked contenders, the least error first.
        left_out: The others, and why.
    """

    protocol: str
    ranked: Sequence[Entry]
    left_out: Sequence[tuple[Entry, str]]

    @property
    def place(self) -> int | None:
        """GM-VQ's place from 1, None if it is not ranked."""
        return next((place for place, entry in enumerate(self.ranked, 1) if entry.contender == OURS), None)

    @property
    def rival(self) -> Entry | None:
        """Whom GM-VQ is compared with: the best, or the second where it leads itself. None without both."""
        if self.place is None or len(self.ranked) < 2:
            return None
        return self.ranked[1] if self.place == 1 else self.ranked[0]

    @property
    def gap(self) -> float | None:
        """GM-VQ's error minus its rival's. None without both."""
        if self.place is None or self.rival is None:
            return None
        return _mse(self.ranked[self.place - 1]) - _mse(self.rival)

    @property
    def within(self) -> bool:
        """Whether GM-VQ leads, or its gap is at most one standard deviation of the best over seeds."""
        if self.place == 1:
            return True
        deviation = self.ranked[0].std("mse") if self.ranked else None
        return self.gap is not None and deviation is not None and self.gap <= deviation


def standing(experiment: Experiment, protocol: str) -> Standing:
    """Ranks the contenders of a protocol."""
    ranked, left_out = [], []
    for entry in experiment.entries(protocol):
        usage = entry.mean("usage")
        if entry.diverged:
            left_out.append((entry, f"{len(entry.diverged)} of {len(entry.rows)} runs diverged"))
        elif usage is None or entry.mean("mse") is None:
            left_out.append((entry, "no codes to count" if usage is None else "no error measured"))
        elif usage < LEAST_USAGE:
            left_out.append((entry, f"{100 * usage:.1f} % in use"))
        else:
            ranked.append(entry)
    return Standing(protocol, ranked, left_out)


def standings_of(experiment: Experiment) -> list[Standing]:
    """GM-VQ under each short protocol that was run."""
    return [standing(experiment, name) for name in experiment.named("-short") if name in experiment.tables]


def outcome(experiment: Experiment) -> str:
    """Who leads, and what that does not say, in a sentence or two."""
    standings = standings_of(experiment)
    missing = sum(
        len(set(experiment.field) - {entry.contender for entry in experiment.entries(each.protocol)})
        for each in standings
    )
    found = sentence(standings, len(experiment.named("-short")), missing, len(experiment.field) * len(standings))
    return found + _reservations(experiment, standings) + _full(experiment)


def verdict(experiment: Experiment) -> str:
    """The top of the page: one sentence that says it, a table, and how it was ranked."""
    protocols, standings = experiment.named("-short"), standings_of(experiment)
    lines = [f"**{outcome(experiment)}**"]
    if standings:
        lines += [_table(experiment, standings), _rule()]
    lines += [line for each in standings if (line := _left_out(experiment, each))]
    absent = [name for name in protocols if name not in experiment.tables]
    lines += [f"{experiment.title(name)}: not run yet. `{run_command(name)}`" for name in absent]
    return "\n\n".join(lines)


def sentence(standings: Sequence[Standing], wanted: int, missing: int = 0, rows: int = 0) -> str:
    """The verdict in one sentence.

    Args:
        standings: Those of the protocols that were run.
        wanted: Number of protocols that there are.
        missing: Contenders that were not run yet, over all of these protocols.
        rows: Contenders that there are, over all of these protocols.
    """
    if not standings:
        return "Not decided: no short protocol has been run yet."
    leads = sum(each.place == 1 for each in standings)
    others = [each for each in standings if each.place != 1]
    near = sum(each.within for each in others)
    found = f"it has the lowest error of hard codes on {leads} of {len(standings)} data sets"
    if len(others) == 1:
        found += f", and is {'' if near else 'not '}within one standard deviation of the best on the other"
    elif others:
        found += f", and is within one standard deviation of the best on {near} of the other {len(others)}"
    if len(standings) < wanted:
        return f"Not decided for GM-VQ: {len(standings)} of {wanted} short protocols have been run; so far {found}."
    if missing:
        return f"Not decided: {missing} of {rows} contenders' lines are not run yet; so far GM-VQ: {found}."
    is_leader = leads >= min(LEADS_WANTED, wanted) and near == len(others)
    return f"GM-VQ at its defaults {'leads' if is_leader else 'does not lead'}: {found}."


def _reservations(experiment: Experiment, standings: Sequence[Standing]) -> str:
    """What a lead does not say: that it is smaller than the spread over seeds, or of a single one."""
    said = ""
    for each in standings:
        deviation = each.ranked[0].std("mse") if each.ranked else None
        if each.place == 1 and each.gap is not None and deviation is not None and abs(each.gap) <= deviation:
            said += f" The lead on {experiment.data_title(each.protocol)} is less than a standard deviation over seeds."
        if each.place == 1 and deviation is None:
            said += f" The lead on {experiment.data_title(each.protocol)} is of one seed."
    return said


def _full(experiment: Experiment) -> str:
    """Where GM-VQ stands after the full trainings that were run, which may be elsewhere."""
    said = ""
    for name in experiment.named("-full"):
        each = standing(experiment, name)
        if each.place is None or each.rival is None or each.gap is None:
            continue
        leads, rival = each.place == 1, each.rival
        seeds = min(len(entry.rows) for entry in (rival, each.ranked[each.place - 1]))
        said += (
            f" After full training on {experiment.data_title(name)}, run for {len(each.ranked)} contenders and "
            f"{'one seed' if seeds == 1 else f'{seeds} seeds'}, GM-VQ's error is "
            f"{100 * abs(each.gap) / _mse(rival):.1f} % {'below that of the second' if leads else 'above the lowest'}: "
            f"{rival.title}."
        )
    return said


def _table(experiment: Experiment, standings: Sequence[Standing]) -> str:
    header = ["Data", "Lowest error", "its MSE (1e-3)", "GM-VQ's place", "its MSE (1e-3)", "Gap", "Within one std"]
    return markdown_table(header, [_cells(experiment, each) for each in standings], words=2)


def _cells(experiment: Experiment, each: Standing) -> list[str]:
    best = each.ranked[0] if each.ranked else None
    ours = next((entry for entry in experiment.entries(each.protocol) if entry.contender == OURS), None)
    place = "not run yet" if ours is None else "not ranked" if each.place is None else _of(each.place, each.ranked)
    return [
        experiment.data_title(each.protocol),
        best.title if best else "",
        with_spread(best, "mse") if best else "",
        place,
        with_spread(ours, "mse") if ours else "",
        _gap(each),
        "" if each.place is None else "leads" if each.place == 1 else "yes" if each.within else "no",
    ]


def _of(place: int, ranked: Sequence[Entry]) -> str:
    return f"{place} of {len(ranked)}"


def _gap(each: Standing) -> str:
    """The gap in 1e-3 and per cent, to the best, or to the second where GM-VQ leads."""
    if each.gap is None or each.rival is None:
        return ""
    size = f"{1e3 * each.gap:+.3f} ({100 * each.gap / _mse(each.rival):+.1f} %)"
    return f"{size} to the second, {each.rival.title}" if each.place == 1 else size


def _rule() -> str:
    return (
        f"Ranked are the contenders that use at least {100 * LEAST_USAGE:.0f} % of the codebook on average over seeds "
        "and of which no run diverged. Errors are of hard codes on held-out images, mean ± standard deviation over "
        "seeds; the last column compares the gap with the standard deviation of the best. To lead is to have the "
        f"lowest error on {LEADS_WANTED} data sets and to be within one standard deviation on the rest."
    )


def _left_out(experiment: Experiment, each: Standing) -> str:
    if not each.left_out:
        return ""
    reasons = "; ".join(f"{entry.title} ({reason})" for entry, reason in each.left_out)
    return f"Not ranked on {experiment.data_title(each.protocol)}: {reasons}."


def _mse(entry: Entry) -> float:
    return entry.figures["mse"].mean
