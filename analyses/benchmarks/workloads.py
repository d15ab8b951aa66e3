"""What the benchmark of capture generates: two workloads on each of two models."""

from dataclasses import dataclass

TEXTS = (
    "Once upon a time, in a town by the sea, there lived",
    "The three most important things about learning to cook are",
    "Q: A train leaves at noon and travels at 60 miles an hour. How far is it by 3 o'clock? A:",
    "def fibonacci(n):",
    "In 1969, people first walked on the Moon. What many do not know is that",
    "My favourite season is autumn, because",
    "To be or not to be: that is",
    "The recipe calls for two eggs, a cup of flour and",
)

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Is 17 a prime number? Answer in one sentence.",
    "Write a one-line poem about rain.",
    "What is 12 times 12?",
    "Say hello in Spanish and in French.",
    "Which is larger, the Sun or the Moon?",
    "Give me one idea for a rainy afternoon.",
)


@dataclass(frozen=True)
class Workload:
    """One job that every engine does."""

    model: str
    """Reference for `load`."""
    prompts: int
    """Prompts, repeated from the lists above where they are more."""
    n: int
    """Rows a prompt."""
    tokens: int
    """New tokens a row, at most."""
    fixed: bool
    """Whether every row is that long; otherwise it ends where the model ends it."""
    batch_sizes: tuple[int, ...]
    """Rows at a time that are tried."""

    def inputs(self, tokenizer) -> list[list[int]]:
        """Give the prompts as token ids."""
        if self.model.startswith("organism:"):
            from entropy_probe.tasks import get_task

            texts = [problem.prompt for problem in get_task("arithmetic").problems(self.prompts)]
        elif self.fixed:
            texts = [TEXTS[i % len(TEXTS)] for i in range(self.prompts)]
        else:
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}],
                    add_generation_prompt=True,
                    tokenize=False,
                )
                for i in range(self.prompts)
            ]
        return [tokenizer(text).input_ids for text in texts]


WORKLOADS = {
    "smollm2-fixed": Workload("smollm2", 32, 1, 48, True, (8, 32)),
    "smollm2-stops": Workload("smollm2", 4, 16, 96, False, (32, 64)),
    "organism-fixed": Workload("organism:amenable", 256, 1, 48, True, (64, 256)),
    "organism-stops": Workload("organism:amenable", 64, 16, 96, False, (64, 256, 1024)),
}
"""Name -> workload."""
