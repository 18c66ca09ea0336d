"""Words, tasks, demonstrations in units, and exact rewards. Nothing in here knows of models.

A task draws problems; a problem is a prompt and a demonstration, cut into the units that hints are made of:

    >>> task = TASKS["countdown"]()
    >>> problem = task.parse("3 7 9 5 -> 49")
    >>> task.reward(problem, "9*5=45\\n7-3=4\\n45+4=49")       # one equation (one unit) a line
    1.0
    >>> task.reward(problem, "9*5=45\\n7-3=4\\n45-4=41")       # well-formed, but it misses the target
    0.1
"""

import zlib
from dataclasses import dataclass, field

import numpy as np
import tiktoken


@dataclass
class Problem:
    prompt: str
    demo: list[str] = field(default_factory=list)  # units; joined, they are the whole answer
    numbers: list[int] = field(default_factory=list)
    target: int = 0


class Task:
    """What every task shares: words, and splits that have no problem in common.

    The words are this project's own, in tiktoken's engine: each whole number up to `largest` is one token, each sign is
    another. Two tokens follow that no text contains: <end> closes an answer, so a model must learn to write it; <pad>
    fills rows and is never read.
    """

    SIGNS = ["\n", " ", " -> ", "+", "-", "*", "/", "="]
    SHARES = {"pool": (0, 60), "validation": (60, 70), "test": (70, 100), "unseen": (0, 100)}  # percent of all problems

    def __init__(self, largest: int):
        words = self.SIGNS + [str(n) for n in range(max(largest, 9) + 1)]
        self.end, self.pad, self.vocab, self.alphabet = len(words), len(words) + 1, len(words) + 2, set("".join(words))
        ranks = {word.encode(): i for i, word in enumerate(words)}
        special = {"<end>": self.end, "<pad>": self.pad}
        self.words = tiktoken.Encoding(
            "nanouft", pat_str=r"\d+| -> |.|\n", mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: str) -> list[int]:
        if unknown := sorted(set(text) - self.alphabet):
            raise ValueError(f"no word for {unknown[0]!r} in {text[:60]!r}: expected digits, + - * / = -> and blanks")
        return self.words.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        return self.words.decode(ids)

    def units(self, problem: Problem) -> list[list[int]]:
        """The demonstration's units as ids. <end> belongs to the last: a full hint leaves nothing to write."""
        units = [self.encode(unit) for unit in problem.demo]
        return units[:-1] + [units[-1] + [self.end]] if units else []

    def best(self, problem: Problem) -> float:
        """What counts as solved: a reward as good as the demonstration's."""
        return self.reward(problem, "".join(problem.demo)) if problem.demo else 1.0

    def split(self, name: str, size: int, seed: int) -> list[Problem]:
        """`size` different problems. A problem's key alone decides which split it is in, whatever the seed; 'unseen' is
        what lies outside the training distribution, so it shares nothing with the others anyhow."""
        rng, found, (first, end) = np.random.default_rng([seed, *name.encode()]), {}, self.SHARES[name]
        for _ in range(50 * size + 10_000):
            if len(found) == size:
                return list(found.values())
            problem = self.problem(rng, unseen=name == "unseen")
            if first <= zlib.crc32(repr(self.key(problem)).encode()) % 100 < end:
                found.setdefault(self.key(problem), problem)
        raise ValueError(
            f"about {len(found)} different {name} problems exist, not {size}: ask for less, or widen the task"
        )


class Countdown(Task):
    """Reach the target from the numbers by + - * /, each number used exactly once; one equation a line.

    Reward 1.0: right. 0.1: the right number of equations, each well-formed, but arithmetic, operands or target wrong.
    0: anything else. Numbers are whole and unsigned, so the result of a division that is not exact cannot be written.
    """

    LONGEST = 2_000  # characters; more is no answer (Python refuses to read numbers of over 4,300 digits)

    def __init__(self, numbers: int = 4, high: int = 10, limit: int = 50, low: int = 10, unseen: int = 7):
        """`numbers` of them in 1..high, results up to `limit`, targets from `low`; `unseen`: see Task.split."""
        if not (2 <= numbers <= 6 and 1 <= unseen <= high <= limit and 1 <= low <= limit):
            raise ValueError(
                "countdown needs 2 to 6 --numbers, 1 <= --unseen <= --high <= --limit, 1 <= --low <= --limit"
            )
        super().__init__(limit)
        self.numbers, self.high, self.limit, self.low, self.unseen = numbers, high, limit, low, unseen
        self.prompt_tokens, self.answer_tokens = 2 * numbers + 2, 6 * (numbers - 1)

    def problem(self, rng: np.random.Generator, unseen: bool | None = False) -> Problem:
        """Numbers, the target that random play reached from them, and that play as the demonstration. None: with or
        without the unseen number."""
        for _ in range(10_000):
            numbers = self.draw(rng)
            equations, target = self.play(numbers, rng)
            if target >= self.low and unseen in (None, self.unseen in numbers):
                return self.pose(numbers, target, equations)
        raise ValueError(f"random play hardly ever reaches --low {self.low}: lower it, or raise --high or --numbers")

    def random_play(self, rng: np.random.Generator) -> Problem:
        """What a base model learns from: legal play, and a target that has nothing to do with it."""
        numbers = self.draw(rng)
        target = self.problem(rng, unseen=None).target
        return self.pose(numbers, target, self.play(numbers, rng)[0])

    def draw(self, rng: np.random.Generator) -> list[int]:
        return rng.integers(1, self.high + 1, self.numbers).tolist()

    def play(self, numbers: list[int], rng: np.random.Generator) -> tuple[list[str], int]:
        """Random legal moves until one number is left: the equations, and that number."""
        left, equations, draws = list(numbers), [], []
        while len(left) > 1:
            draws = draws or rng.random((8 * len(numbers), 3)).tolist()  # many at once: each call costs
            x, y, z = draws.pop()
            i, j = int(x * len(left)), int(y * len(left))
            a, b, op = left[i], left[j], "+-*/"[int(z * 4)]
            result = apply(a, op, b)
            if i != j and result is not None and 1 <= result <= self.limit:
                equations.append(f"{a}{op}{b}={result}")
                left = [n for k, n in enumerate(left) if k not in (i, j)] + [result]
        return equations, left[0]

    def pose(self, numbers: list[int], target: int, equations: list[str]) -> Problem:
        demo = [e + "\n" for e in equations[:-1]] + equations[-1:]
        return Problem(f"{' '.join(map(str, numbers))} -> {target}\n", demo, numbers, target)

    def parse(self, text: str) -> Problem:
        """A user's own problem, like "3 7 9 5 -> 49"."""
        left, _, right = text.partition("->")
        numbers, target = left.split(), right.split()
        if not all(map(is_number, numbers + target)) or len(numbers) != self.numbers or len(target) != 1:
            raise ValueError(f"cannot read {text[:60]!r}: expected {self.numbers} whole numbers, -> and a target")
        if too_large := [n for n in numbers + target if len(n) > 9 or int(n) > self.limit]:
            raise ValueError(f"{too_large[0][:60]} is too large: this model's words end at {self.limit} (--limit)")
        return self.pose([int(n) for n in numbers], int(target[0]), [])

    def key(self, problem: Problem) -> tuple:
        """What makes two problems the same."""
        return (*sorted(problem.numbers), problem.target)

    def reward(self, problem: Problem, answer: str) -> float:
        if len(answer) > self.LONGEST:
            return 0.0
        equations = [parse_equation(line) for line in answer.split("\n")]
        if len(equations) != len(problem.numbers) - 1 or None in equations:
            return 0.0
        left = list(problem.numbers)
        for a, op, b, result in equations:
            for n in (a, b):
                if n not in left:
                    return 0.1
                left.remove(n)
            if apply(a, op, b) != result:
                return 0.1
            left.append(result)
        return 1.0 if left == [problem.target] else 0.1


def apply(a: int, op: str, b: int) -> int | None:
    """a op b, or None where that is no whole number."""
    if op == "/":
        return a // b if b and a % b == 0 else None
    return a + b if op == "+" else a - b if op == "-" else a * b


def is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def parse_equation(line: str) -> tuple[int, str, int, int] | None:
    """'3+7=10' -> (3, '+', 7, 10); None unless the line is number, sign, number, =, number and nothing else."""
    left, _, result = line.partition("=")
    for op in "+-*/":
        a, _, b = left.partition(op)
        if is_number(a) and is_number(b) and is_number(result):
            return int(a), op, int(b), int(result)
    return None


TASKS = {"countdown": Countdown}
