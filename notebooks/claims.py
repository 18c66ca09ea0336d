"""The README's tables of results, and of the papers' claims and whether they hold: from the kept results, in seconds.

python notebooks/claims.py
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from notebooks import countdown, horizon, one_stage  # noqa: E402
from notebooks.lab import measured  # noqa: E402

T975 = [0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # Student's t, by degrees of freedom
LEVEL = -1.0  # "level" is at most so many points below


class Claim(NamedTuple):
    paper: str
    claim: str
    measured: str
    verdict: str
    seeds: int
    command: str


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


def at_all(*gaps: np.ndarray) -> str:
    return ", ".join(f"{name} {difference(some)}" for name, some in zip(LOOKS, gaps, strict=True))


def by_size(holds: list[str]) -> str:
    sizes = countdown.SIZES
    return holds[0] if len(set(holds)) == 1 else ", ".join(f"{s}: {h}" for s, h in zip(sizes, holds, strict=True))


def on_sizes() -> Iterator[Claim]:
    found, sizes = countdown.sizes(), list(countdown.SIZES)
    x, last, *_ = every = looks(found)
    added = countdown.always_adding()["test"]

    def row(claim: str, told: str, holds: str) -> Claim:
        return Claim("UFT", claim, told, holds, 5, "`python notebooks/countdown.py sizes`")

    def each(size: str, *arms: str) -> str:
        return ", ".join(f"{arm.upper()} {spread(x[size, arm])}" for arm in arms)

    for size in sizes:
        gaps = [y[size, "uft"] - np.maximum(y[size, "sft"], y[size, "rft"]) for y in every]
        beyond_adding = (y[size, "uft"] - added for y in (x, last))  # where nobody learns more, all are level
        holds = agreed(*gaps, least=LEVEL) if agreed(*beyond_adding) == "holds" else "can't tell"
        claim = f"UFT is level with the better of SFT and RFT, or above it: {size} parameters"
        told = f"{each(size, 'uft', 'sft', 'rft')}, always adding {added:.1f}; {at_all(*gaps)}"
        yield row(claim, told, holds)
    for size, claim, a, b in (
        (sizes[0], "Small models: SFT is above RFT", "sft", "rft"),
        (sizes[-1], "Large models: RFT is above SFT", "rft", "sft"),
    ):
        gaps = [y[size, a] - y[size, b] for y in every]
        yield row(f"{claim}: {size} parameters", f"{each(size, a, b)}; {at_all(*gaps)}", agreed(*gaps))
    for other, name in {"sft_rft": "SFT then RFT", "r3": "R3"}.items():
        gaps = {size: [y[size, "uft"] - y[size, other] for y in every] for size in sizes}
        told = "; ".join(f"{size} {at_all(*some)}" for size, some in gaps.items())
        yield row(f"UFT is above {name}", told, by_size([agreed(*some) for some in gaps.values()]))

    arms = [found["105k", arm] for arm in ("uft", "rft")]
    early = [100 * np.array([np.mean(r["block_explored_solved"][:4]) for r in some]) for some in arms]
    told = "of the rollouts in steps 1 to 100 right, hints included: UFT {} %, RFT {} % (105k)".format(
        *map(spread, early)
    )
    yield row("UFT explores with more success from the first step on (figure 6)", told, verdict(early[0] - early[1]))


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

    def row(claim: str, arm: str, where: tuple[str, str], told: dict[str, str], holds: list[str]) -> Claim:
        def solved(size: str, a: str) -> str:
            return f"{a.upper()} {' and '.join(spread(share(size, a, x, '_chosen')) for x in where)}"

        each = "; ".join(f"{size} {solved(size, arm)}, {solved(size, 'sft')}; {text}" for size, text in told.items())
        measured = f"of {' and '.join(where)}, sums left out: {each}".replace("pool", "training")
        return Claim("UFT", claim, measured, by_size(holds), 5, "`python notebooks/countdown.py sizes`")

    for arm in ("rft", "uft"):
        gaps = {size: against_sft(in_points, size, arm, "pool", "test") for size in countdown.SIZES}
        claim = f"SFT memorises: it gains more on its own problems than on the test's, by more than {arm.upper()}"
        told = {size: "chosen {}, last {}".format(*map(difference, some)) for size, some in gaps.items()}
        yield row(claim, arm, ("pool", "test"), told, [agreed(*some) for some in gaps.values()])
    for arm in ("rft", "uft"):
        told, holds = {}, []
        for size in countdown.SIZES:
            learned = agreed(*(in_points(size, arm, "test", of) for of in checkpoint)) == "holds"
            gaps = against_sft(in_log_odds, size, arm, "test", "unseen") if learned else []
            each = [difference(some, 2) for some in gaps]
            told[size] = "chosen {}, last {} in log-odds".format(*each) if learned else f"{arm.upper()} gains nothing"
            holds += [agreed(*gaps) if learned else "can't tell"]
        claim = f"{arm.upper()} generalises: out of distribution it gains more, compared to the test, than SFT"
        yield row(claim, arm, ("test", "unseen"), told, holds)


def on_switches() -> Iterator[Claim]:
    others = {
        "sft": "SFT",
        "rft": "RL alone (GRPO)",
        "static": "static alternation",
        "mix": "a coin with its own share of SFT (ours: does adapting pay?)",
        "sft_rft": "SFT, then RL",
    }
    found = {arm: results for (_, arm), results in countdown.sizes(("105k",)).items()} | countdown.switches()
    x, *_ = every = looks(found)
    for other, name in others.items():
        gaps = [y["sasr"] - y[other] for y in every]
        told = f"{spread(x['sasr'])} against {spread(x[other])}; {at_all(*gaps)}"
        yield Claim("SASR", f"SASR is above {name}", told, agreed(*gaps), 5, "`python notebooks/countdown.py switches`")


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
        told = f"UFT {spread(x[uft])}, {other} {spread(x[other])}; {at_all(*gaps)}"
        yield Claim("UFT", claim, told, agreed(*gaps), 5, "`python notebooks/countdown.py hints`")


def on_trees() -> Iterator[Claim]:
    best, command = {arm: horizon.tuned(arm) for arm in horizon.ARMS}, "`jupyter execute notebooks/horizon.ipynb`"
    near, far = [4, 6, 8, 12, 16], [5, 6, 7, 8, 9, 10]

    def raced(arm: str, horizons: list[int], cap: int) -> tuple[dict, list[int], str]:
        found = horizon.race({arm: (arm, best[arm])}, horizons, range(10), cap)[arm]
        reached = [horizon.summary(found[H])[0] for H in horizons]
        solved, at = (", ".join(map(str, x)) for x in (reached, horizons))
        return found, reached, f"solved within {cap:,} rollouts: {solved} of 10 for H = {at}"

    found, reached, told = raced("rft", far, 512_000)
    seen = [np.median([x["first_found"] or x["rollouts"] for x in found[H]]) for H in far]
    rise = np.polyfit(far, np.log(seen), 1)[0] / np.log(4)  # 1: by the factor B
    told = f"rollouts to the first leaf as good as the demonstration's grow by 4^{rise:.2f} for each step of H; {told}"
    claim = "RFT needs exploration exponential in the horizon (theorem 4.2)"
    yield Claim("UFT", claim, told, "holds" if rise > 0.8 and not reached[-1] else "does not hold", 10, command)
    for arm, name in {
        "uft_uniform": "uniform hints, as in the theorem",
        "uft": "annealed hints, 30 H steps long",
    }.items():
        found, reached, told = raced(arm, near, 153_600)
        rise, power = horizon.slope(found, near, power=False) / np.log(4), horizon.slope(found, near, power=True)
        told = f"median rollouts grow by 4^{rise:.2f} for each step of H, or like H^{power:.1f}; {told}"
        claim = f"UFT breaks the exponential wall (theorem 4.3): {name}"
        yield Claim("UFT", claim, told, "holds" if rise < 0.2 and min(reached) > 5 else "does not hold", 10, command)
    for arm, claim in {
        "sft": "Imitation alone ends where its teacher ends",
        "r3": "(ours) R3, without the log-likelihood, fades",
    }.items():
        _, reached, told = raced(arm, near, 153_600)
        yield Claim("UFT", claim, told, "holds" if reached[-1] < 5 else "does not hold", 10, command)


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

    def row(claim: str, told: str, holds: str) -> Claim:
        return Claim("implicit UFT", claim, told, holds, 3, "`jupyter execute notebooks/one_stage.ipynb`")

    two_stages = [x for arm in ("sft_una", "sft_dpo") for _, x in grid[arm]]
    kept = sum(min(x["demonstrated"], x["scored"]) > 0.5 for x in two_stages)
    told = f"A {spread(A['sft'])} after SFT, {spread(A['learns B'])} once B is learnt ({spread(B['learns B'])})"
    told += f"; {kept} of {len(two_stages)} settings end above 50 in both"
    yield row("SFT, then alignment, forgets what SFT taught", told, "does not hold" if kept else "holds")
    told = f"A {spread(A['implicit'])}, B {spread(B['implicit'])}"
    yield row("One stage keeps both (above 80)", told, verdict(np.minimum(A["implicit"], B["implicit"]), 80))
    gaps = (A["implicit"] + B["implicit"] - A["ce_una"] - B["ce_una"]) / 2
    told = f"cross-entropy on A beside UNA on B: A {spread(A['ce_una'])}, B {spread(B['ce_una'])}; mean of A and B"
    yield row("... because of its loss, not of the mixing", f"{told} {difference(gaps)}", verdict(gaps))
    told = f"A {spread(A['on A alone'])} against {spread(A['sft'])}"
    yield row("On SFT data alone its loss is better than SFT", told, verdict(A["on A alone"] - A["sft"]))


def results_table() -> str:
    """All methods on countdown, 105k parameters; and what they took on the cores that they were measured with."""
    found = {arm: some for (_, arm), some in countdown.sizes(("105k",)).items()}
    shares = "test_chosen test unseen sampled_test pass@8 test_adds pool_others test_others unseen_others".split()
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


def claims_table() -> str:
    """Each of the papers' claims, and whether it holds."""
    every = [
        claim
        for claims in (on_trees, on_sizes, on_generalisation, on_hints, on_switches, on_skills)
        for claim in claims()
    ]
    rows = [[c.paper, c.claim, f"**{c.verdict}**", c.measured, str(c.seeds), c.command] for c in every]
    return markdown(["paper", "claim", "verdict", "measured here", "seeds", "command"], rows)


if __name__ == "__main__":
    print(f"{results_table()}\n\n{claims_table()}")
