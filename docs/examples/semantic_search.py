"""Find the nearest of some sentences: `python semantic_search.py "how do I pay?"`."""

import sys

from lollms_local.client import connect

SENTENCES = [
    "Invoices are paid within thirty days.",
    "The heron stands in shallow water.",
    "Our office opens at nine in the morning.",
]


def main(query: str) -> list[tuple[float, str]]:
    client = connect(chat=True)
    wanted, *known = client.llm.embed([query, *SENTENCES])
    scores = [sum(a * b for a, b in zip(wanted, vector, strict=True)) for vector in known]  # unit vectors: the cosine
    ranked = sorted(zip(scores, SENTENCES, strict=True), reverse=True)
    for score, sentence in ranked:
        print(f"{score:.3f}  {sentence}")
    return ranked


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
