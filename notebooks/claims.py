"""The tables in both README.md: methods, the papers' claims and whether they hold, results. From what is kept.

python notebooks/claims.py          writes them anew, in a quarter of a minute
"""

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
LEVEL = -1.0  # "level" is at most so many points below


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
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def points(results: list[dict], what: str = "test_chosen") -> np.ndarray:
    """Percent, one for each seed; of the checkpoint that validated best, unless it says otherwise."""
    return 100 * np.array([x["last"][what] for x in results])


LOOKS = {"chosen": "test_chosen", "last": "test", "no sums": "test_others_chosen", "no sums, last": "test_others"}


def looks(found: dict[Any, list[dict]]) -> list[dict[Any, np.ndarray]]:
    """Of each cell, points of the checkpoints that validated best, and of the last; and both on those problems alone
    that adding all numbers does not solve."""
    return [{cell: points(some, what) for cell, some in found.items()} for what in LOOKS.values()]


def by_size(holds: list[str]) -> str:
    sizes = countdown.SIZES
    return holds[0] if len(set(holds)) == 1 else ", ".join(f"{s}: {h}" for s, h in zip(sizes, holds, strict=True))


def on_sizes() -> Iterator[Claim]:
    found, sizes = countdown.sizes(), list(countdown.SIZES)
    x, last, *_ = every = looks(found)
    added = countdown.always_adding()["test"]

    def row(claim: str, told: str, holds: str, front: bool = False) -> Claim:
        return Claim("UFT", claim, told, holds, 5, "`python notebooks/countdown.py sizes`", front)

    def each(size: str, *arms: str) -> str:
        return ", ".join(f"{arm.upper()} {x[size, arm].mean():.1f}" for arm in arms)

    for size in sizes:
        gaps = [y[size, "uft"] - np.maximum(y[size, "sft"], y[size, "rft"]) for y in every]
        beyond_adding = (y[size, "uft"] - added for y in (x, last))  # where nobody learns more, all are level
        holds = agreed(*gaps, least=LEVEL) if agreed(*beyond_adding) == "holds" else "can't tell"
        claim = f"UFT is level with the better of SFT and RFT, or above it: countdown, {size} parameters"
        yield row(claim, f"{each(size, 'uft', 'sft', 'rft')}: {difference(gaps[0])}", holds, size == "105k")
    for size, claim, a, b in (
        (sizes[0], "Small models: SFT is above RFT", "sft", "rft"),
        (sizes[-1], "Large models: RFT is above SFT", "rft", "sft"),
    ):
        gaps = [y[size, a] - y[size, b] for y in every]
        yield row(f"{claim}: {size}", f"{each(size, a, b)}: {difference(gaps[0])}", agreed(*gaps))
    for other, name in {"sft_rft": "SFT then RFT", "r3": "R3"}.items():
        for size in sizes:
            gaps = [y[size, "uft"] - y[size, other] for y in every]
            told = f"{each(size, 'uft', other)}: {difference(gaps[0])}".replace("SFT_RFT", "SFT then RFT")
            front = other == "sft_rft" and size != "30k"
            yield row(f"UFT is above {name}: countdown, {size} parameters", told, agreed(*gaps), front)

    arms = [found["105k", arm] for arm in ("uft", "rft")]
    early = [100 * np.array([np.mean(r["block_explored_solved"][:4]) for r in some]) for some in arms]
    told = "steps 1 to 100, 105k: UFT {} % right, RFT {}".format(*map(spread, early))
    claim = "UFT explores with more success from the first step on, hints included (figure 6)"
    yield row(claim, told, verdict(early[0] - early[1]))


def on_generalisation() -> Iterator[Claim]:
    """On problems that adding all numbers does not solve: the training has more of the others than the test."""
    found, checkpoint = countdown.sizes(), ("_chosen", "")

    def share(size: str, arm: str, where: str, of: str) -> np.ndarray:
        return points(found[size, arm], f"{where}_others{of}")

    def in_points(*cell: str) -> np.ndarray:
        return share(*cell) - share(*cell[:-1], "_base")

    def in_log_odds(*cell: str) -> np.ndarray:
        """So that who gains more may lose more."""
        after, before = share(*cell) / 100, share(*cell[:-1], "_base") / 100
        return np.log(after / (1 - after)) - np.log(before / (1 - before))

    def against_sft(gain, size: str, arm: str, here: str, there: str) -> list[np.ndarray]:
        """What the arm gains there less what it gains here, less the same of SFT."""
        ours, sft = ([gain(size, a, there, of) - gain(size, a, here, of) for of in checkpoint] for a in (arm, "sft"))
        return [x - y for x, y in zip(ours, sft, strict=True)]

    for size in countdown.SIZES:
        for arm in ("rft", "uft"):
            gaps = against_sft(in_points, size, arm, "pool", "test")
            claim = f"SFT memorises: it gains more on its own problems than on the test's, by more than {arm.upper()}"
            told = f"last checkpoints, points: {difference(gaps[1])}"
            yield Claim("UFT", f"{claim}: {size}", told, agreed(*gaps), 5, "`python notebooks/countdown.py sizes`")
    for size in countdown.SIZES:
        for arm in ("rft", "uft"):
            learned = agreed(*(in_points(size, arm, "test", of) for of in checkpoint)) == "holds"
            gaps = against_sft(in_log_odds, size, arm, "test", "unseen") if learned else []
            told = f"last checkpoints, log-odds: {difference(gaps[1], 2)}" if learned else "no gain to carry over"
            claim = f"{arm.upper()} generalises: to an unseen number it carries more of its gain than SFT: {size}"
            holds = agreed(*gaps) if learned else "can't tell"
            yield Claim("UFT", claim, told, holds, 5, "`python notebooks/countdown.py sizes`")


def on_switches() -> Iterator[Claim]:
    others = {
        "sft": "SFT",
        "rft": "RFT (GRPO)",
        "static": "static alternation",
        "mix": "a coin with the same share of SFT (ours: does adapting pay?)",
        "sft_rft": "SFT then RFT",
    }
    found = {arm: results for (_, arm), results in countdown.sizes(("105k",)).items()} | countdown.switches()
    x, *_ = every = looks(found)
    for other, name in others.items():
        gaps = [y["sasr"] - y[other] for y in every]
        told = f"SASR {x['sasr'].mean():.1f}, the other {x[other].mean():.1f}: "
        told, command = told + difference(gaps[0]), "`python notebooks/countdown.py switches`"
        yield Claim("SASR", f"SASR is above {name}", told, agreed(*gaps), 5, command, other in ("mix", "sft_rft"))


def on_hints() -> Iterator[Claim]:
    hinted = countdown.hints()
    without = ["hint_coef 0", "hint_coef 0, lr 0.0003"]
    claims = {
        max(without, key=lambda name: points(hinted[name]).mean()): "The hint's log-likelihood helps",
        "p = 0.5, then 0": "Hints that shrink smoothly beat hints that vanish at once, from p = 0.5",
        "p = 0.95, then 0": "Hints that shrink smoothly beat hints that vanish at once, from p = 0.95",
    }
    uft = "hint_coef 0.3"
    x, *_ = every = looks({name: hinted[name] for name in (uft, *claims)})
    for other, claim in claims.items():
        gaps = [y[uft] - y[other] for y in every]
        told = f"UFT {x[uft].mean():.1f}, {'without' if other in without else other} {x[other].mean():.1f}: "
        told += difference(gaps[0])
        command = "`python notebooks/countdown.py hints`"
        yield Claim("UFT", claim, told, agreed(*gaps), 5, command, other.startswith("hint_coef"))


def on_trees() -> Iterator[Claim]:
    best, command = {arm: horizon.tuned(arm) for arm in horizon.ARMS}, "`jupyter execute notebooks/horizon.ipynb`"
    near, far = [4, 6, 8, 12, 16], [5, 6, 7, 8, 9, 10]

    def raced(arm: str, horizons: list[int], cap: int) -> tuple[dict, list[int]]:
        found = horizon.race({arm: (arm, best[arm])}, horizons, range(10), cap)[arm]
        return found, [horizon.summary(found[H])[0] for H in horizons]

    def solved(reached: list[int], horizons: list[int]) -> str:
        return f"solved: {', '.join(map(str, reached))} of 10 at H = {', '.join(map(str, horizons))}"

    found, reached = raced("rft", far, 512_000)
    seen = [np.median([x["first_found"] or x["rollouts"] for x in found[H]]) for H in far]
    rise = np.polyfit(far, np.log(seen), 1)[0] / np.log(4)  # 1: by the factor B
    told = f"rollouts to the first leaf worth the teacher's grow by 4^{rise:.2f} for each step of H"
    told += f"; {solved(reached, far)}"
    claim = "RFT needs exploration exponential in the horizon H (theorem 4.2)"
    yield Claim("UFT", claim, told, "holds" if rise > 0.8 and not reached[-1] else "does not hold", 10, command, True)
    for arm, name in {"uft_uniform": "uniform hints", "uft": "annealed hints"}.items():
        found, reached = raced(arm, near, 153_600)
        rise, power = horizon.slope(found, near, power=False) / np.log(4), horizon.slope(found, near, power=True)
        told = f"rollouts to solve the tree grow by 4^{rise:.2f} for each step of H (H^{power:.1f} fits as well)"
        told += f"; {solved(reached, near)}"
        claim = f"UFT needs far fewer rollouts than 4^H, up to H = 16 (theorem 4.3): {name}"
        holds = "holds" if rise < 0.2 and min(reached) > 5 else "does not hold"
        yield Claim("UFT", claim, told, holds, 10, command, arm == "uft_uniform")
    for arm, claim in {
        "sft": "Imitation alone ends where its teacher ends",
        "r3": "(ours) R3, hints without their log-likelihood, fades",
    }.items():
        _, reached = raced(arm, near, 153_600)
        holds = "holds" if reached[-1] < 5 else "does not hold"
        yield Claim("UFT", claim, solved(reached, near), holds, 10, command)


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
    yield row("SFT, then alignment, forgets what SFT taught", told, "does not hold" if kept else "holds", True)
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
    """All methods on countdown, 105k parameters; and what they took on the cores that they were measured with."""
    found = {arm: some for (_, arm), some in countdown.sizes(("105k",)).items()}
    shares = "test_chosen test unseen pass@1_test pass@8 test_adds pool_others test_others unseen_others".split()
    head = ["method", "test: chosen", "test", "unseen", "pass@1", "pass@8", "adds", "no sums: own", "test", "unseen"]
    head += ["rollouts", "demo tokens", "seconds", "tokens/s"]
    base = [spread(points(found["uft"], f"{x.removesuffix('_chosen')}_base")) for x in shares]
    test, unseen = (f"{countdown.always_adding()[x]:.1f}" for x in ("test", "unseen"))
    rows = [
        ["`base`", *base, *[""] * 4],
        ["(always `a+b+c+d`)", test, test, unseen, "", "", "100", *["0"] * 3, *[""] * 4],
    ]
    for arm, some in sorted(found.items(), key=lambda arm: points(arm[1]).mean()):
        cost = {x: np.mean([r["last"][x] for r in some]) for x in countdown.COSTS}
        speed = (cost["sampled_tokens"] + cost["demo_tokens"]) / cost["seconds"]
        costs = [f"{x:,.0f}" for x in (cost["rollouts"], cost["demo_tokens"], cost["seconds"], speed)]
        rows += [[f"`{arm}`", *(spread(points(some, x)) for x in shares), *costs]]
    return markdown(head, rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


CLAIMS = (on_trees, on_sizes, on_hints, on_generalisation, on_switches, on_skills)


@cache
def all_claims() -> list[Claim]:
    return [claim for claims in CLAIMS for claim in claims()]


def claims_table(front: bool = False) -> str:
    """Each of the papers' claims, and whether it holds."""
    every = [claim for claim in all_claims() if claim.front or not front]
    rows = [[c.paper, c.claim, f"**{c.verdict}**", c.number, str(c.seeds), c.command] for c in every]
    head = ["paper", "claim", "verdict", "number (95 % interval)", "seeds", "command"]
    return markdown(head[:4], [row[:4] for row in rows]) if front else markdown(head, rows)


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
