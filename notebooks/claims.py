"""The tables in both README.md: methods, the papers' claims and whether they hold, results. From what is kept.

python notebooks/claims.py          writes them anew, in a quarter of a minute
"""

import itertools
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from nanouft import METHODS  # noqa: E402
from notebooks import countdown, horizon, one_stage  # noqa: E402
from notebooks.lab import measured  # noqa: E402
from notebooks.report import CORE, equations_table, methods_table  # noqa: E402

T975 = [0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # Student's t, by degrees of freedom
LEVEL = -8.0  # how many points UFT may be below RFT


class Claim(NamedTuple):
    paper: str
    claim: str
    number: str  # with its interval
    verdict: str
    seeds: int
    command: str
    front: bool = False  # on the front page, too


def interval(gaps: np.ndarray) -> tuple[float, float, float]:
    """Mean of paired differences, and the ends of its 95 % t-interval."""
    half = T975[len(gaps) - 1] * gaps.std(ddof=1) / len(gaps) ** 0.5
    return gaps.mean(), gaps.mean() - half, gaps.mean() + half


def difference(gaps: np.ndarray, digits: int = 1) -> str:
    return "{} ({} .. {})".format(*(f"{x:+.{digits}f}" for x in interval(gaps)))


def verdict(gaps: np.ndarray, least: float = 0.0) -> str:
    _, low, high = interval(gaps)
    return "holds" if low > least else "does not hold" if high < least else "can't tell"


def agreed(*gaps: np.ndarray, least: float = 0.0) -> str:
    """What must not hang on how it is looked at."""
    verdicts = {verdict(some, least) for some in gaps}
    return verdicts.pop() if len(verdicts) == 1 else "can't tell"


def spread(values: np.ndarray) -> str:
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def points(results: list[dict], what: str = "test_chosen") -> np.ndarray:
    """Percent, one for each seed; of the checkpoint that validated best, unless it says otherwise."""
    return 100 * np.array([x["last"][what] for x in results])


COMMAND = "`python notebooks/countdown.py {}`"
NAMES = {"sft_rft": "SFT then RFT", "static": "static alternation", "mix": "a coin with SASR's share of SFT"}
NAMES |= {"frontier": "frontier"}


def named(arm: str) -> str:
    return NAMES.get(arm, arm if " " in arm else arm.upper())


def compared(
    paper: str, claim: str, found: dict[Any, list[dict]], ours: Any, other: Any, least: float = 0.0, **more
) -> Claim:
    """One arm less another, seed by seed. The numbers are of the checkpoints that validated best; a claim must hold for
    the last ones, too."""
    x, last = ([points(found[arm], what) for arm in (ours, other)] for what in ("test_chosen", "test"))
    gaps = [a - b for a, b in (x, last)]
    means = ", ".join(f"{named(arm)} {y.mean():.1f}" for arm, y in zip((ours, other), x, strict=True))
    number = f"{means}: {difference(gaps[0])}"
    return Claim(paper, claim, number, agreed(*gaps, least=least), len(gaps[0]), **more)


def on_six() -> Iterator[Claim]:
    found = countdown.six()
    more = dict(found=found, ours="uft", command=COMMAND.format("six"))
    for other in ("rft", "sft_rft"):
        yield compared("UFT", f"UFT is above {named(other)}", other=other, front=True, **more)
    better = max(("sft", "rft"), key=lambda arm: points(found[arm]).mean())
    claim = f"UFT is 20 points or more above {named(better)}, the better of SFT and RFT"
    yield compared("UFT", claim, other=better, least=20, **more)


def on_numbers() -> Iterator[Claim]:
    found = countdown.numbers()
    for n, other in itertools.product(countdown.NUMBERS, ("rft", "sft_rft")):
        ours, theirs = (np.array([x["step"][-1] for x in found[n, arm]]) for arm in ("uft", other))
        gaps = np.log(theirs / ours)
        middle, low, high = np.exp(interval(gaps))
        number = f"{named(other)} takes {middle:.1f} ({low:.1f} .. {high:.1f}) times as many"
        claim = f"UFT needs fewer steps than {named(other)} until half of the problems are solved, N = {n}"
        yield Claim("UFT", claim, number, verdict(gaps), len(gaps), COMMAND.format("numbers"))


def on_demo() -> Iterator[Claim]:
    found, command = countdown.demo(), COMMAND.format("demo")
    for ours, other in (("uft", "rft"), ("uft", "sft_rft"), ("rft", "sft")):
        claim = f"{named(ours)} is above {named(other)}: default settings, 400 steps"
        yield compared("UFT", claim, found, ours, other, command=command)


def on_arms() -> Iterator[Claim]:
    found, command = countdown.arms(), COMMAND.format("arms")
    more = dict(found=found, command=command)
    yield compared("UFT", "RFT is above SFT", ours="rft", other="sft", front=True, **more)
    claim = f"UFT is level with RFT: at most {-LEVEL:.0f} points below it (our margin)"
    yield compared("UFT", claim, ours="uft", other="rft", least=LEVEL, front=True, **more)
    for other in ("sft_rft", "r3", "sft"):
        claim = f"UFT is above {named(other)}"
        yield compared("UFT", claim, ours="uft", other=other, front=other == "sft_rft", **more)
    for other in ("sft_rft", "rft", "sft"):
        claim = f"SASR is above {named(other)}"
        yield compared("SASR", claim, ours="sasr", other=other, front=other == "sft_rft", **more)
    early = [100 * np.array([np.mean(x["block_explored_solved"][:4]) for x in found[arm]]) for arm in ("uft", "rft")]
    number = "steps 1 to 100: UFT {} % right, RFT {}".format(*map(spread, early))
    claim = "UFT explores with more success in the first 100 steps, hints included (figure 6)"
    gaps = early[0] - early[1]
    yield Claim("UFT", claim, number, verdict(gaps), len(gaps), command)


def on_generalisation() -> Iterator[Claim]:
    """What an arm gains over its base on its own problems, on the test's, and on those with an unseen number."""
    found, command = countdown.arms(), COMMAND.format("arms")

    def gain(arm: str, where: str) -> np.ndarray:
        return points(found[arm], where) - points(found["base"], where)

    for arm in ("rft", "uft"):
        lost = {a: gain(a, "pool") - gain(a, "test") for a in ("sft", arm)}
        shares = {a: 100 * x / gain(a, "pool") for a, x in lost.items()}
        claim = f"SFT memorises: more of its gain on its own problems is missing on the test than of {named(arm)}'s"
        for how, x in {"percent of the gain": shares, "points": lost}.items():
            gaps = x["sft"] - x[arm]
            number = f"SFT {x['sft'].mean():.1f} {how}, {named(arm)} {x[arm].mean():.1f}: {difference(gaps)}"
            yield Claim("UFT", f"{claim}: {how}", number, verdict(gaps), len(gaps), command)
    for arm in ("sft", "rft", "uft"):
        here, there = gain(arm, "test"), gain(arm, "unseen")
        claim = f"{arm.upper()} generalises: to an unseen number it carries four fifths of its gain"
        number = f"gain {here.mean():.1f} on the test, {there.mean():.1f} there"
        holds = verdict(there - 0.8 * here) if verdict(here) == "holds" else "can't tell"
        yield Claim("UFT", claim, number, holds, len(here), command)


def on_dial() -> Iterator[Claim]:
    found = countdown.dial()
    for n in countdown.DIAL[:-1]:
        some = {arm: found[n, arm] for arm in ("rft", "sft_rft", "uft")}
        for other in ("rft", "sft_rft"):
            claim = f"UFT is above {named(other)}: from a base of {n} steps instead of {countdown.DIAL[-1]}"
            yield compared("UFT", claim, some, "uft", other, command=COMMAND.format("dial"))


def on_longer() -> Iterator[Claim]:
    found = countdown.longer()
    for other in ("rft", "sft_rft"):
        claim = f"UFT is above {named(other)}: with {found['uft'][0]['step'][-1]:,} steps"
        yield compared("UFT", claim, found, "uft", other, command=COMMAND.format("longer"))


def on_switches() -> Iterator[Claim]:
    found, command = countdown.switches(), COMMAND.format("switches")
    for other in ("static", "mix"):
        claim = f"SASR is above {named(other)}" + " (ours: does adapting pay?)" * (other == "mix")
        yield compared("SASR", claim, found, "sasr", other, command=command)


def on_hints() -> Iterator[Claim]:
    found = countdown.hints()
    for other, claim in {
        "c = 0": "The hint's log-likelihood helps",
        "p = 0.5, then 0": "Hints that shrink smoothly beat hints that vanish at once, from p = 0.5",
        "p = 0.95, then 0": "Hints that shrink smoothly beat hints that vanish at once, from p = 0.95",
    }.items():
        yield compared("UFT", claim, found, "uft", other, command=COMMAND.format("hints"))
    claim = "Hints from which half of a group succeeds (frontier) beat the cosine"
    yield compared("ours", claim, found, "frontier", "uft", command=COMMAND.format("hints"))


def on_trees() -> Iterator[Claim]:
    found, command, n = horizon.forked(), "`python notebooks/horizon.py forked`", len(horizon.SEEDS)
    reached = {arm: [horizon.summary(x)[0] for x in some.values()] for arm, some in found.items()}

    def solved(arm: str) -> str:
        return f"solved: {', '.join(map(str, reached[arm]))} of {n} at H = {', '.join(map(str, found[arm]))}"

    far = list(found["rft"])
    seen = [np.median([x["first_found"] or x["rollouts"] for x in found["rft"][H]]) for H in far]
    rise = np.polyfit(far, np.log(seen), 1)[0] / np.log(4)  # 1: by the factor B
    number = f"rollouts to the first leaf worth at least the demonstration's grow by 4^{rise:.2f} for each step of H; "
    number += solved("rft")
    claim = "RFT needs exploration exponential in the horizon H (theorem 4.2)"
    holds = "holds" if rise > 0.8 and not reached["rft"][-1] else "does not hold"
    yield Claim("UFT", claim, number, holds, n, command, True)
    for arm, name in {
        "uft_uniform": "With UFT's uniform hints (theorem 4.3)",
        "uft": "With UFT's annealed hints (theorem 4.3)",
        "frontier": "With hints from which half of a group succeeds (frontier)",
    }.items():
        near = list(found[arm])
        rise, power = (horizon.slope(found[arm], near, power=x) for x in (False, True))
        number = f"rollouts to solve the tree grow by 4^{rise / np.log(4):.2f} for each step of H"
        number += f" (about H^{power:.1f}); {solved(arm)}"
        claim = f"{name} rollouts grow far more slowly than 4^H, up to H = 16"
        holds = "holds" if rise / np.log(4) < 0.2 and min(reached[arm]) > 5 else "does not hold"
        yield Claim("ours" if arm == "frontier" else "UFT", claim, number, holds, n, command, arm == "uft_uniform")
    for arm, claim in {
        "sft": "Imitation alone ends where its teacher ends",
        "r3": "Hints without their log-likelihood (R3) fade",
        "superrl": "Prefixes are needed: superrl, which copies the demonstration where all tries failed, fades",
        "luffy": "Prefixes are needed: luffy, whose groups have the demonstration as one answer, fades",
    }.items():
        holds = "holds" if reached[arm][-1] < 5 else "does not hold"
        yield Claim("ours", claim, solved(arm), holds, n, command, arm == "superrl")


def on_farther_trees() -> Iterator[Claim]:
    *_, (arm, some) = horizon.far().items()
    ((H, found),) = some.items()
    reached, median, _ = horizon.summary(found)
    number = f"solved: {reached} of {len(found)}, median {median:,.0f} rollouts"
    bonus = arm.split(", ")[1]
    claim = f"UFT's uniform hints solve H = {H}, too, within 614,400 rollouts ({bonus})"
    holds = "holds" if 2 * reached > len(found) else "does not hold"
    yield Claim("ours", claim, number, holds, len(found), "`python notebooks/horizon.py far`")


def on_depths() -> Iterator[Claim]:
    some, n = horizon.depths()["uft_uniform"], len(horizon.FIVE)
    reached = [horizon.summary(x)[0] for x in some.values()]
    number = f"solved: {', '.join(map(str, reached))} of {n} at k = {', '.join(map(str, some))}"
    claim = "UFT's uniform hints pass a demonstration that turns off k steps before its end"
    holds = "holds" if 2 * min(reached) > n else "does not hold"
    yield Claim("ours", claim, number, holds, n, "`python notebooks/horizon.py depths`")


def on_skills() -> Iterator[Claim]:
    grid = {arm: one_stage.trials(arm) for arm in one_stage.ARMS}
    cells = {arm: (arm, some[0][0]) for arm, some in grid.items()}
    cells["learns B"] = ("sft_una", max(grid["sft_una"], key=lambda trial: trial[1]["scored"])[0])
    cells["on A alone"] = ("implicit", grid["implicit"][0][0] | dict(share=1.0, beta=0.01))
    runs = [one_stage.skills(arm, seed, test=2048, **cell) for arm, cell in cells.values() for seed in range(3)]
    found = iter(measured("one_stage", runs, points=True))
    results = {name: [next(found) for _ in range(3)] for name in cells}
    A = {name: 100 * np.array([x["demonstrated_test"] for x in some]) for name, some in results.items()}
    B = {name: 100 * np.array([x["scored_test"] for x in some]) for name, some in results.items()}

    skills = {"A": A, "B": B}

    def row(claim: str, told: str, holds: str, front: bool = False) -> Claim:
        return Claim("implicit UFT", claim, told, holds, 3, "`jupyter execute notebooks/one_stage.ipynb`", front)

    two_stages = [x for arm in ("sft_una", "sft_dpo") for _, x in grid[arm]]
    kept = sum(min(x["demonstrated"], x["scored"]) > 0.5 for x in two_stages)
    told = f"A {A['sft'].mean():.0f} % after SFT, {A['learns B'].mean():.0f} once B is learnt; above 50 in both: "
    told += f"{kept} of {len(two_stages)} settings"
    yield row("SFT, then training on scores, forgets what SFT taught", told, "does not hold" if kept else "holds", True)
    ends = {x: np.minimum(interval(y["implicit"]), 100) for x, y in skills.items()}
    told = ", ".join("{} {:.1f} ({:.1f} .. {:.1f})".format(x, *y) for x, y in ends.items())
    holds = verdict(np.minimum(A["implicit"], B["implicit"]), 80)
    yield row("One stage keeps both skills (above 80 %)", told, holds, True)
    gaps = (A["implicit"] + B["implicit"] - A["ce_una"] - B["ce_una"]) / 2
    claim = "... because of its loss, not of the mixing (against cross-entropy beside the scored loss)"
    yield row(claim, f"mean of A and B {difference(gaps)}", verdict(gaps), True)
    told = f"A {spread(A['on A alone'])} against {spread(A['sft'])}"
    yield row("On SFT data alone its loss is better than SFT", told, verdict(A["on A alone"] - A["sft"]))


def results_table() -> str:
    """All methods; and what they took on the cores that they were measured with."""
    shares = "test_chosen test unseen pool pass@1_test pass@8_test legal".split()
    head = ["method", "settings", "test: chosen", "test", "unseen", "own", "pass@1", "pass@8", "legal"]
    head += ["rollouts", "demo tokens", "seconds", "tokens/s"]
    rows = [["(best fixed rule)", "", *[f"{100 * countdown.best_rule():.1f}"] * 2, *[""] * 9]]
    for arm, some in sorted(countdown.arms().items(), key=lambda arm: points(arm[1]).mean()):
        cost = {x: np.mean([r["last"][x] for r in some]) for x in countdown.COSTS}
        speed = (cost["sampled_tokens"] + cost["demo_tokens"]) / max(cost["seconds"], 1)
        costs = [f"{x:,.0f}" for x in (cost["rollouts"], cost["demo_tokens"], cost["seconds"], speed)]
        costs = [""] * 4 if arm == "base" else costs
        own = {name: x for name, x in countdown.tuned().get(arm, {}).items() if name != "method" and x}
        rows += [[f"`{arm}`", countdown.said(own), *(spread(points(some, x)) for x in shares), *costs]]
    return markdown(head, rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


CLAIMS = {  # by the task on which they are measured
    "tree:fork=2": (on_trees, on_farther_trees),
    "tree:horizon=12,fork=k": (on_depths,),
    "countdown:numbers=6": (on_six,),
    "countdown:numbers=N": (on_numbers,),
    "countdown": (on_demo,),
    "countdown:plays=1,minuses=2": (on_arms, on_longer, on_hints, on_switches, on_dial, on_generalisation),
    "skills": (on_skills,),
}


@cache
def all_claims() -> list[tuple[str, Claim]]:
    return [(task, claim) for task, some in CLAIMS.items() for claims in some for claim in claims()]


def claims_table(front: bool = False) -> str:
    """Each of the papers' claims, and whether it holds."""
    every = [(task, claim) for task, claim in all_claims() if claim.front or not front]
    rows = [[c.paper, f"`{task}`", c.claim, f"**{c.verdict}**", c.number, str(c.seeds), c.command] for task, c in every]
    head = ["paper", "task", "claim", "verdict", "number (95 % interval)", "seeds", "command"]
    return markdown(head[:5], [row[:5] for row in rows]) if front else markdown(head, rows)


def write(page: Path, tables: dict[str, str]) -> None:
    """Puts each table between its two marks in a page."""
    text = page.read_text()
    for name, table in tables.items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    page.write_text(text)


def pages() -> dict[Path, dict[str, str]]:
    """All tables that the two README.md show, by their marks."""
    others = [name for name in METHODS if name not in CORE]
    results = {"claims": claims_table(), "countdown": results_table(), "relatives": methods_table(others)}
    front = {"methods": methods_table(CORE), "claims": claims_table(front=True)}
    return {ROOT / "README.md": front, ROOT / "notebooks/README.md": results | {"equations": equations_table()}}


if __name__ == "__main__":
    for page, tables in pages().items():
        write(page, tables)
