"""Words, tasks, demonstrations in units, and exact rewards. Nothing in here knows about models.

A task draws problems. A problem is a prompt and a demonstration, cut into the units that hints are made of:

    >>> task = TASKS["countdown"]()
    >>> problem = task.parse("3 7 9 5 -> 47")
    >>> problem.demo = ["9*5=45\\n", "45-3=42\\n", "42+7=49"]     # one equation a unit; this one misses the target
    >>> task.reward(problem, "".join(problem.demo))
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


class Words:
    """A tokenizer of our own in tiktoken's engine: every whole number up to `largest` is one token, every sign another.

    Two special tokens follow the words: <end> closes an answer (the model must learn to write it) and <pad> fills rows
    (nobody ever reads it).
    """

    SIGNS = ["\n", " ", " -> ", "+", "-", "*", "/", "="]

    def __init__(self, largest: int):
        words = self.SIGNS + [str(n) for n in range(max(largest, 9) + 1)]
        self.end, self.pad, self.size = len(words), len(words) + 1, len(words) + 2
        self.alphabet = set("".join(words))
        self.encoding = tiktoken.Encoding(
            "nanouft",
            pat_str=r"\d+| -> |.|\n",
            mergeable_ranks={w.encode(): i for i, w in enumerate(words)},
            special_tokens={"<end>": self.end, "<pad>": self.pad},
        )

    def encode(self, text: str) -> list[int]:
        unknown = sorted(set(text) - self.alphabet)
        if unknown:
            raise ValueError(
                f"no token for {unknown[0]!r} in {text[:60]!r}: the words are digits, + - * / = -> and blanks"
            )
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids)


class Task:
    """What every task shares: its words, and problems split so that no two splits hold the same problem."""

    # Which hundredths of all problems belong to which split. `unseen` is what lies outside the training distribution.
    SHARES = {"pool": range(0, 60), "validation": range(60, 70), "test": range(70, 100), "unseen": range(0, 100)}

    def __init__(self, largest: int):
        self.words = Words(largest)
        self.encode, self.decode = self.words.encode, self.words.decode

    def split(self, name: str, size: int, seed: int) -> list[Problem]:
        """`size` different problems of one split. A problem's key alone decides where it belongs, whatever the seed."""
        rng, found = np.random.default_rng([seed, *name.encode()]), {}
        for _ in range(200 * size + 10_000):
            problem = self.problem(rng, unseen=name == "unseen")
            if zlib.crc32(repr(self.key(problem)).encode()) % 100 in self.SHARES[name]:
                found.setdefault(self.key(problem), problem)
            if len(found) == size:
                return list(found.values())
        raise ValueError(
            f"only {len(found)} different {name} problems found, {size} wanted: ask for fewer, or widen the task"
        )

    def units(self, problem: Problem) -> list[list[int]]:
        """The demonstration's units as ids. <end> belongs to the last one: a full hint leaves nothing to write."""
        units = [self.encode(unit) for unit in problem.demo]
        return units[:-1] + [units[-1] + [self.words.end]] if units else []

    def best(self, problem: Problem) -> float:
        """What counts as solved: the demonstration's reward. Every gate uses it."""
        return self.reward(problem, "".join(problem.demo)) if problem.demo else 1.0


class Countdown(Task):
    """Reach the target from the numbers with + - * /, each number used exactly once; one equation a line.

    numbers   how many of them           high    they lie in 1..high
    limit     no demonstration passes it; also the largest number with a token of its own
    low       the smallest target        unseen  problems with this number stay out of training ("unseen" split)

    Reward 1.0: right. 0.1: as many equations as it takes, each well-formed, but arithmetic, operands or target wrong.
    0: anything else. Numbers are whole and have no sign, so a division that is not exact is wrong arithmetic.
    """

    LONGEST = 2_000  # characters; what is longer is no answer. Python refuses to read numbers beyond 4,300 digits.

    def __init__(self, numbers: int = 4, high: int = 10, limit: int = 50, low: int = 10, unseen: int = 7):
        if not (2 <= numbers <= 6 and 2 <= high <= limit and 1 <= low <= limit):
            raise ValueError("countdown needs 2 to 6 numbers, 2 <= high <= limit and 1 <= low <= limit")
        super().__init__(limit)
        self.numbers, self.high, self.limit, self.low, self.unseen = numbers, high, limit, low, unseen
        self.prompt_tokens, self.answer_tokens = 2 * numbers + 2, 6 * (numbers - 1)

    def problem(self, rng: np.random.Generator, unseen: bool = False) -> Problem:
        """Numbers, the target that random play happened to reach, and that play as the demonstration."""
        while True:
            numbers = self.draw(rng)
            if (self.unseen in numbers) == unseen:
                play, result = self.play(numbers, rng)
                if result >= self.low:
                    return self.pose(numbers, result, play)

    def random_play(self, rng: np.random.Generator) -> Problem:
        """What the base model learns from: legal play that ignores its target. The rules, not how to aim."""
        numbers = self.draw(rng)
        target = 0
        while target < self.low:
            _, target = self.play(self.draw(rng), rng)
        return self.pose(numbers, target, self.play(numbers, rng)[0])

    def draw(self, rng: np.random.Generator) -> list[int]:
        return rng.integers(1, self.high + 1, self.numbers).tolist()

    def play(self, numbers: list[int], rng: np.random.Generator) -> tuple[list[str], int]:
        """Random legal moves until one number is left: the equations, and that number."""
        left, equations = list(numbers), []
        draws = []
        while len(left) > 1:
            draws = draws or rng.random((8 * len(numbers), 3)).tolist()  # many at once: a call for each costs more
            x, y, z = draws.pop()
            i, j = int(x * len(left)), int(y * len(left))
            if i == j:
                continue
            a, b, op = left[i], left[j], "+-*/"[int(z * 4)]
            result = apply(a, op, b)
            if result is None or not 1 <= result <= self.limit:
                continue
            equations.append(f"{a}{op}{b}={result}")
            left = [n for k, n in enumerate(left) if k not in (i, j)] + [result]
        return equations, left[0]

    def pose(self, numbers: list[int], target: int, equations: list[str] = ()) -> Problem:
        demo = [e + "\n" for e in equations[:-1]] + list(equations[-1:])
        return Problem(f"{' '.join(map(str, numbers))} -> {target}\n", demo, list(numbers), target)

    def parse(self, text: str) -> Problem:
        """A user's problem, "3 7 9 5 -> 47"."""
        left, arrow, right = text.partition("->")
        words = [*left.split(), *right.split()]
        if not arrow or len(right.split()) != 1 or not all(map(is_number, words)) or not 2 <= len(left.split()) <= 6:
            raise ValueError(
                f"cannot read {text[:60]!r}: expected 2 to 6 whole numbers and a target, like '3 7 9 5 -> 47'"
            )
        *numbers, target = map(int, words)
        if max(numbers + [target]) > self.limit:
            raise ValueError(
                f"{max(numbers + [target])} is too large: this model has words for 0..{self.limit} (--limit)"
            )
        return self.pose(numbers, target)

    def key(self, problem: Problem) -> tuple:
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
    """'3+7=10' -> (3, '+', 7, 10); None where the line is not number, sign, number, =, number and nothing else."""
    left, _, result = line.partition("=")
    for op in "+-*/":
        a, _, b = left.partition(op)
        if is_number(a) and is_number(b) and is_number(result):
            return int(a), op, int(b), int(result)
    return None


TASKS = {"countdown": Countdown}
