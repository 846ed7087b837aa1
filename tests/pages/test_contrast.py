"""The six status labels are readable in both schemes: WCAG contrast, computed from the tokens the pages use."""

import re
from pathlib import Path

import pytest

from agents.models import AgentStatus

TOKENS = (Path(__file__).resolve().parents[2] / "static/css/tokens.css").read_text()
PARTS = (Path(__file__).resolve().parents[2] / "static/css/parts.css").read_text()
ENOUGH = 4.5
SCHEMES = {"light": 0, "dark": 1}


def read_token(name: str, scheme: str) -> str:
    found = re.search(rf"--{name}: light-dark\((#[0-9a-f]{{6}}), (#[0-9a-f]{{6}})\)", TOKENS)
    assert found, f"--{name} is not a pair of colours in tokens.css"
    return found.groups()[SCHEMES[scheme]]


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def colours_of(status: str, scheme: str) -> tuple[str, str]:
    """As `.is-<status>` sets them: the label's text, and its tint."""
    rule = re.search(rf"\.is-{status}\b[^{{]*{{ --state: var\(--([a-z]+)\); --tint: var\(--([a-z-]+)\); }}", PARTS)
    assert rule, f".is-{status} is not in parts.css"
    return read_token(rule[1], scheme), read_token(rule[2], scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("status", AgentStatus.values)
def test_a_status_label_has_enough_contrast(status: str, scheme: str) -> None:
    assert contrast(*colours_of(status, scheme)) >= ENOUGH


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ground", ["page", "panel", "sunk"])
@pytest.mark.parametrize("ink", ["text", "muted", "accent"])
def test_what_must_be_read_has_enough_contrast_everywhere(ink: str, ground: str, scheme: str) -> None:
    assert contrast(read_token(ink, scheme), read_token(ground, scheme)) >= ENOUGH


def test_the_contrast_is_computed_as_the_standard_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
