"""Samples and how they are printed."""

from collections.abc import Sequence


def percentile(samples: Sequence[float], share: float) -> float:
    """By nearest rank: a value that was really seen."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    return percentile(samples, 0.5), percentile(samples, 0.95), percentile(samples, 0.99)


def in_ms(samples: Sequence[float]) -> str:
    median, p95, p99 = (1000 * value for value in spread(samples))
    return f"{median:8.1f} {p95:8.1f} {p99:8.1f} {1000 * max(samples):8.1f} {len(samples):6}"


HEAD = f"{'ms':38} {'median':>8} {'p95':>8} {'p99':>8} {'most':>8} {'of':>6}"


def line(what: str, samples: Sequence[float]) -> str:
    return f"{what:38} {in_ms(samples)}" if samples else f"{what:38} no samples"


def ratio(what: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    parts = [our / their for our, their in zip(spread(ours), spread(theirs), strict=True)]
    return f"{what:38} " + " ".join(f"{part:7.2f}×" for part in parts)
