"""A task of your own: sort the digits of a number.

python tests/sorting.py --task sorting:digits=6 --method sft rft uft
python notebooks/ask.py --own tests/sorting.py --run out/sorting-digits-6-seed0/uft 314159
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # not needed for a file in the project's own folder
from data import TASKS, Problem, Task  # noqa: E402
from notebooks.compare import main  # noqa: E402


class Sorting(Task):
    settings = "demos=512,validation=128"  # other defaults than train.py's, for this task

    def __init__(self, digits: int = 8):  # its parameters are its options; each has a default
        super().__init__([*"0123456789", "\n"])  # its words: single characters and whole numbers
        self.prompt_tokens, self.answer_tokens = digits + 1, digits + 1  # at most; an answer's <end> counts
        self.writable = self.end + 1  # the first words, which an answer may have: here all but <pad>
        self.form = r"\d" * digits  # what ask.py may be given

    def problem(self, rng, split="pool"):  # split: for tasks whose problems for some splits are hard to find
        return self.pose("".join(map(str, rng.integers(0, 10, self.prompt_tokens - 1))))

    def pose(self, text):
        return Problem(text + "\n", demo=sorted(text))  # units; joined, they are the answer

    def key(self, problem):  # problems with the same key never fall into different splits
        return "".join(problem.demo)

    def reward(self, problem, answer):  # of any text whatsoever
        right = "".join(problem.demo)
        return 1.0 if answer == right else 0.1 if sorted(answer) == problem.demo else 0.0

    def random_play(self, rng):  # what a base model learns from; without it the base is untrained
        problem = self.problem(rng)
        problem.demo = rng.permutation(problem.demo).tolist()
        return problem


TASKS["sorting"] = Sorting
if __name__ == "__main__":  # runs are processes of their own, which import this file
    main()

# Of all problems that a task can draw 60 % may fall into the pool, 10 % into validation and 30 % into the test, by
# their key. Base models and finished runs are kept by their settings, not by your code: after a change delete
# out/base/sorting-* and out/sorting-*.
