"""What was published: Golovneva et al. 2024, arXiv 2405.18719v2, Table 1."""

from __future__ import annotations

from cope.probe.prompts import PAPER_WORDS

# What each model said for "Alice" and for "book". The truth is 0 for both.
PAPER_ANSWERS = {
    "GPT-4 (temperature 1, top-p 1)": (1, 1),
    "Llama-2-70B-Chat (temperature 0.6, top-p 0.9)": (2, 2),
}


def paper_figures() -> str:
    """What the paper reports, in a few lines."""
    words = " and ".join(f'"{word}"' for word in PAPER_WORDS)
    lines = [f"{model} said {' and '.join(map(str, said))}" for model, said in PAPER_ANSWERS.items()]
    return "\n".join(
        [f"The paper (arXiv 2405.18719, Table 1), how many times {words} in the last sentence, where the truth is 0 and 0:"]
        + [f"  {line}" for line in lines]
    )
