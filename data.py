"""Words, tasks, demonstrations in units, and exact rewards. Nothing in here knows of models.

A task draws problems; a problem is a prompt and a demonstration, cut into the units that hints are made of:

    >>> task = make_task("countdown:numbers=4,ops=all")
    >>> problem = task.parse("3 7 9 5 -> 49")
    >>> task.reward(problem, "9*5=45\\n7-3=4\\n45+4=49")       # one equation (one unit) a line
    1.0
    >>> task.reward(problem, "9*5=45\\n7-3=4\\n45-4=41")       # well-formed, but it misses the target
    0.1
"""

import inspect
import re
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import tiktoken


@dataclass(eq=False)  # so that problems can be keys
class Problem:
    prompt: str
    demo: list[str] = field(default_factory=list)  # units; joined, they are the whole answer
    numbers: list[int] = field(default_factory=list)
    target: int = 0
    answers: list[str] = field(default_factory=list)  # in place of a demonstration: answers to be scored


class Task:
    """What every task shares: words, and splits that have no problem in common (but a tree is a single problem).

    The words are this project's own, in tiktoken's engine: a number among them is one token. Two tokens follow that no
    text contains: <end> closes an answer, so a model must learn to write it; <pad> fills rows and is never read.

    A task defines prompt_tokens and answer_tokens (the longest there are; an answer's <end> counts), and

        problem(rng, split="pool") -> Problem     a new one; if draws seldom fall into `split`, it should aim there
        pose(text) -> Problem                     a user's own, which is written as a prompt is and matches `form`
        reward(problem, answer) -> float          for any text at all

    Its constructor's parameters, which all have defaults, are its options.
    """

    WORD = r"\d+| -> |.|\n"

    SPLITS: tuple[str, ...] = ("pool", "validation", "test")  # further ones hold tests of another kind

    form = r".*"  # of a user's own problem
    ends = True  # answers are closed by <end>
    leaves: dict[str, float] = {}  # where they can be listed: the answers that are worth more than all others
    settings = ""  # train.py's, where other defaults suit the task better, as in "width=32,lr=3e-4"
    random_play = None  # where there are rules to learn before any method: rng -> a problem and legal play in it

    def __init__(self, words: list[str]):
        self.end, self.pad, self.vocab, self.alphabet = len(words), len(words) + 1, len(words) + 2, set("".join(words))
        self.writable = self.vocab  # so many words, the first ones, may occur in an answer
        if long := [word for word in words if not re.fullmatch(self.WORD, word)]:
            raise ValueError(f"{long[0]!r} cannot be a word: only numbers, single characters and ' -> ' can")
        ranks = {word.encode(): i for i, word in enumerate(words)}
        special = {"<end>": self.end, "<pad>": self.pad}
        self.words = tiktoken.Encoding("nanouft", pat_str=self.WORD, mergeable_ranks=ranks, special_tokens=special)
        self.decode = self.words.decode  # ids -> text
        self.encode = lru_cache(10_000)(self.encode)  # the same prompts and equations come again and again

    def encode(self, text: str) -> list[int]:
        if unknown := set(text) - self.alphabet:
            raise ValueError(f"no word for {min(unknown)!r} in {text[:60]!r}")
        return self.words.encode_ordinary(text)

    def read(self, ids: list[int]) -> str | None:
        """The text of an answer; None if it was not ended."""
        text = ids[:-1] if self.ends else ids
        return None if self.ends and ids[-1:] != [self.end] else self.decode(text)

    def units(self, problem: Problem) -> list[list[int]]:
        """The demonstration's units as ids. <end> belongs to the last: a full hint leaves nothing to write."""
        units = [self.encode(unit) for unit in problem.demo]
        return units[:-1] + [units[-1] + [self.end]] if units and self.ends else units

    def best(self, problem: Problem) -> float:
        """What counts as solved: a reward as good as the demonstration's."""
        return self.reward(problem, "".join(problem.demo)) if problem.demo else 1.0

    def parse(self, text: str) -> Problem:
        """A user's own problem."""
        if not re.fullmatch(self.form, text, re.ASCII):
            like = self.problem(np.random.default_rng(0)).prompt.strip()
            raise ValueError(f"cannot read {text[:60]!r}: expected a problem like {like!r}")
        return self.pose(text)

    def pose(self, text: str) -> Problem:
        return Problem(text + "\n")

    def key(self, problem: Problem):
        """Problems with the same key never fall into different splits."""
        return problem.prompt

    def prepare(self, pool: list[Problem], base, cfg) -> None:
        """What is left to do once the base model is there, as to let it write answers that are to be scored."""

    def choose(self, pool: list[Problem], n: int, share: float, rng: np.random.Generator) -> list[Problem]:
        """n problems for a step. (`share` is for tasks of which only some problems have a demonstration.)"""
        return [pool[i] for i in rng.choice(len(pool), n, replace=n > len(pool))]

    def place(self, problem: Problem) -> str:
        """The split it belongs to, by its key alone, whatever the seed."""
        percent = zlib.crc32(repr(self.key(problem)).encode()) % 100
        return "pool" if percent < 60 else "validation" if percent < 70 else "test"

    def split(self, name: str, size: int, seed: int) -> list[Problem]:
        """`size` different problems. What is drawn often is found first, so a small set is easier than a large one."""
        rng, found, drawn = np.random.default_rng([seed, *name.encode()]), {}, 0
        while len(found) < size:
            drawn += 1
            if drawn > 50 * len(found) + 1_000:
                raise ValueError(f"some {len(found)} different {name} problems exist, not {size}: ask for less")
            problem = self.problem(rng, name)
            if self.place(problem) == name:
                found.setdefault(problem.prompt, problem)
        return list(found.values())


class Countdown(Task):
    """Reach the target from the numbers by + and - (ops=all: by * and /, too), each number used exactly once; one
    equation a line. The target is never the sum of all numbers, and no set of numbers stands in two splits.

    Each target that twenty random plays reach is as likely as the others; with plays=1 the target is that of one play.
    With minuses=2 two numbers or more must be subtracted; otherwise one is enough in about half of the problems.

    Reward 1.0: right. 0.1: the right number of equations, each well-formed, but arithmetic, operands or target wrong.
    0: anything else. Numbers are whole and unsigned, so the result of a division that is not exact cannot be written.
    """

    SPLITS = (*Task.SPLITS, "unseen")
    UNSEEN = 7  # a number that fine-tuning never gives; only the base has practised it
    SIGNS = {"plusminus": "+-", "all": "+-*/"}

    def __init__(self, numbers=5, ops="plusminus", high=10, limit=50, plays=20, minuses=1):
        """So many numbers in 1..high; results up to `limit`; the target is one that so many random plays reach, and
        for which so many of the numbers, or more, must be subtracted."""
        if not (3 <= numbers <= 9 and 10 <= high <= limit and plays >= 1 and minuses in (1, 2) and ops in self.SIGNS):
            raise ValueError("countdown wants numbers 3..9, high 10..limit, plays > 0, minuses 1/2, ops plusminus/all")
        super().__init__(["\n", " ", " -> ", "=", *self.SIGNS[ops], *map(str, range(limit + 1))])
        self.equation = re.compile(rf"(\d{{1,9}})([{re.escape(self.SIGNS[ops])}])(\d{{1,9}})=(\d{{1,9}})", re.ASCII)
        self.numbers, self.signs, self.high, self.limit, self.minuses = numbers, self.SIGNS[ops], high, limit, minuses
        self.prompt_tokens, self.answer_tokens = 2 * numbers + 2, 6 * (numbers - 1)
        self.chances = (plays, 8 * numbers, 3)  # random numbers for a problem: plays, moves, what a move depends on
        self.form = r"\d{1,9} " * numbers + r"-> \d{1,9}"

    def place(self, problem: Problem) -> str:
        split = super().place(problem)
        # With the unseen number test problems become the split "unseen", and all others are for the base alone.
        return split if self.UNSEEN not in problem.numbers else "unseen" if split == "test" else "base"

    def problem(self, rng: np.random.Generator, split: str = "pool") -> Problem:
        """One of the targets that random plays reach; the play that did is the demonstration."""
        for _ in range(10_000):
            numbers, chances = rng.integers(1, self.high + 1, self.numbers).tolist(), rng.random(self.chances)
            wanted = self.place(Problem("", numbers=numbers)) == split  # asked first, since to play takes longest
            reached = {target: equations for equations, target in (self.play(numbers, x) for x in chances if wanted)}
            # A number that is subtracted counts twice in what the target lacks: it is missing, and taken away.
            tricks = [sum(numbers), *(sum(numbers) - 2 * n for n in numbers * (self.minuses - 1))]
            if found := [self.put(numbers, x, equations) for x, equations in reached.items() if x not in [0, *tricks]]:
                return found[rng.integers(len(found))]
        raise ValueError(f"countdown: random play finds no such problem for {split}: choose a lower high")

    def random_play(self, rng: np.random.Generator) -> Problem:
        """What a base model learns from: legal play, and a target that other play reached. The numbers are never those
        of a validation or test problem; the unseen number is among them, or the base could not count with it."""
        while True:
            numbers = rng.integers(1, self.high + 1, self.numbers).tolist()
            (_, target), (equations, reached) = (self.play(numbers, rng.random(self.chances[1:])) for _ in range(2))
            problem = self.put(numbers, target, equations)
            if target and reached and self.place(problem) in ("pool", "base"):
                return problem

    def play(self, numbers: list[int], chance: np.ndarray) -> tuple[list[str], int]:
        """Random legal moves until one number is left: the equations, and that number. ([], 0): that failed.
        `chance` holds three random numbers for each move that is tried: for two operands and a sign."""
        left, equations = list(numbers), []
        for x, y, z in chance.tolist():
            i, j = int(x * len(left)), int(y * len(left))
            a, b, op = left[i], left[j], self.signs[int(z * len(self.signs))]
            result = apply(a, op, b)
            if i != j and result is not None and 1 <= result <= self.limit:
                equations.append(f"{a}{op}{b}={result}")
                left = [n for k, n in enumerate(left) if k not in (i, j)] + [result]
                if len(left) == 1:
                    return equations, result
        return [], 0

    def put(self, numbers: list[int], target: int, equations: list[str]) -> Problem:
        demo = [e + "\n" for e in equations[:-1]] + equations[-1:]
        return Problem(f"{' '.join(map(str, numbers))} -> {target}\n", demo, numbers, target)

    def pose(self, text: str) -> Problem:
        *numbers, target = map(int, re.findall(r"\d+", text))
        if max(*numbers, target) > self.limit:
            raise ValueError(f"{text}: this model's words end at {self.limit} (the task's limit)")
        return self.put(numbers, target, [])

    def key(self, problem: Problem) -> list[int]:
        return sorted(problem.numbers)

    def reward(self, problem: Problem, answer: str) -> float:
        equations = [self.equation.fullmatch(line) for line in answer.split("\n", len(problem.numbers))]
        if len(equations) != len(problem.numbers) - 1 or None in equations:
            return 0.0
        left = list(problem.numbers)
        for equation in equations:
            (a, op, b, result) = (x if x in self.signs else int(x) for x in equation.groups())
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


class Tree(Task):
    """The theorem's own object: H steps with B choices each, and one good leaf, drawn once, from the run's seed.

    Reward 1.0: the good leaf; 0.1: another; 0: no leaf at all, which no policy can write: B words are its choice, its
    answers are H steps long, without an <end>. So nothing tells one wrong answer from another, and a policy that never
    sees the right one has nothing to learn from: that is the exponential wall, B^H answers high.

    With `fork` = k the demonstration leaves the best path k steps before its end, for a leaf worth 0.5: who only
    imitates it stays there, who only explores meets B^H.
    """

    WRONG, ends = 0.1, False
    settings = "validation=1,test=1,demos=8,problems=8,group=32,layers=1,width=32,steps=400,eval_every=10,"
    settings += "hint_steps=240,warmup=30,lr=1e-3,hint_coef=0.1,entropy_coef=0.1"

    def __init__(self, horizon: int = 8, B: int = 4, fork: int = 0, seed: int = 0):
        if not (1 <= horizon <= 64 and 2 <= B <= 10 and 0 <= fork <= horizon):
            raise ValueError("tree: expected 1 <= horizon <= 64, 2 <= B <= 10, 0 <= fork <= horizon")
        super().__init__([*"0123456789"[:B], "\n"])
        rng = np.random.default_rng([seed, horizon, B])
        best = rng.integers(0, B, horizon)
        demo = best.copy()
        if fork:
            demo[-fork:] = rng.integers(0, B, fork)
            demo[-fork] = (best[-fork] + rng.integers(1, B)) % B  # away from the best path
        self.prompt_tokens, self.answer_tokens, self.writable, self.form = 1, horizon, B, ""
        self.leaf, self.only = f"[0-{B - 1}]{{{horizon}}}", Problem("\n", [*map(str, demo)])
        self.leaves = {"".join(map(str, demo)): 0.5, "".join(map(str, best)): 1.0}  # one leaf without a fork

    def problem(self, rng: np.random.Generator, split: str = "pool") -> Problem:
        return self.only

    def split(self, name: str, size: int, seed: int) -> list[Problem]:
        return [self.only] * size

    def reward(self, problem: Problem, answer: str) -> float:
        return self.leaves.get(answer, self.WRONG if re.fullmatch(self.leaf, answer) else 0.0)


TASKS = {"countdown": Countdown, "tree": Tree}


def read_options(text: str, defaults: dict) -> dict:
    """Settings as text, like "horizon=8,fork=2", in the place of their defaults, each of its default's type."""
    found = dict(defaults)
    for option in text.split(",") if text else []:
        name, _, value = option.partition("=")
        if name not in defaults:
            raise ValueError(f"there is no option {name!r}: expected some of {', '.join(defaults)}")
        try:
            found[name] = type(defaults[name])(re.fullmatch(r"[\w.-]+", value)[0])
        except (ValueError, TypeError):
            raise ValueError(f"{option}: expected {type(defaults[name]).__name__} of letters, digits, . -") from None
    return found


def options(name: str, seed: int = 0) -> dict:
    """A task's options and their values, by a name like "tree:horizon=8,fork=2". The seed is the run's, for tasks that
    draw something of their own, as a tree its leaf."""
    kind, _, text = name.partition(":")
    if kind not in TASKS:
        raise ValueError(f"--task {name}: expected one of {', '.join(TASKS)}")
    defaults = {n: seed if n == "seed" else p.default for n, p in inspect.signature(TASKS[kind]).parameters.items()}
    return read_options(text, defaults)


def make_task(name: str, seed: int = 0) -> Task:
    settings = options(name, seed)
    return TASKS[name.partition(":")[0]](**settings)
