"""Numbers and vectors as text.

Official: rounded to 4 decimals and printed the way numpy prints small arrays: columns padded to one width, scientific
notation when the magnitudes differ by more than 1000 or reach 1e8, "-0." kept. Angles are printed as fractions of
np.pi from a fixed table in which two thirds of pi are missing, else with 6 decimals.

Source: OpenECAD version 2, text of its published converter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

DECIMALS = 4
"""Decimals of every length in official text."""
_PRECISION = 8
"""Digits after the point at which scientific notation is cut."""

FRACTIONS = ((1, 1), (1, 2), (1, 3), (1, 4), (1, 6), (2, 1), (3, 2), (3, 4), (5, 6), (5, 3), (7, 6), (4, 3))
"""Multiples of pi that have a name, numerator and denominator."""


def rounded(value: float, decimals: int = DECIMALS) -> float:
    """Nearest multiple of 10^-decimals, computed as a product with 10^decimals; the sign of zero stays.

    Example:
        >>> rounded(-0.00004)
        -0.0
    """
    scale = 10.0**decimals
    product = value * scale
    if abs(product) >= 2.0**52:  # no fraction left to round
        return value
    return math.copysign(round(product) / scale, value)


def vector_text(values: Sequence[float]) -> str:
    """A vector in official style.

    Example:
        >>> vector_text((-50.8, 0.0))
        '[-50.8,   0. ]'
        >>> vector_text((1234.5678, 0.001))
        '[1.2345678e+03, 1.0000000e-03]'
    """
    return f"[{', '.join(_columns([rounded(value) for value in values]))}]"


def scalar_text(value: float) -> str:
    """A number in official style.

    Example:
        >>> scalar_text(0.0), scalar_text(25.4)
        ('0.', '25.4')
    """
    return _columns([rounded(value)])[0]


def _columns(values: list[float]) -> list[str]:
    sizes = [abs(value) for value in values if value]
    if sizes and (max(sizes) >= 1e8 or min(sizes) < 1e-4 or max(sizes) / min(sizes) > 1000.0):
        return _scientific(values)
    parts = [_positional(value).split(".") for value in values]
    before = max(len(whole) for whole, _ in parts)
    after = max(len(fraction) for _, fraction in parts)
    return [f"{whole:>{before}}.{fraction:<{after}}" for whole, fraction in parts]


def _positional(value: float) -> str:
    """Shortest text that reads back as `value`, at most 8 decimals, without zeros at the end of the fraction."""
    text = repr(value)
    if "e" in text or len(text.partition(".")[2]) > _PRECISION:
        text = f"{value:.{_PRECISION}f}"
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction.rstrip('0')}"


def _scientific(values: list[float]) -> list[str]:
    shortest = [_mantissa(value) for value in values]
    digits = max(len(mantissa.partition(".")[2]) for mantissa, _ in shortest)
    texts = []
    for mantissa, exponent in shortest:
        whole, _, fraction = mantissa.partition(".")
        texts.append((whole, f"{fraction:0<{digits}}e{exponent}"))
    before = max(len(whole) for whole, _ in texts)
    return [f"{whole:>{before}}.{rest}" for whole, rest in texts]


def _mantissa(value: float) -> tuple[str, str]:
    """Mantissa without zeros at its end, and exponent, of the shortest scientific text (8 digits after the point)."""
    digits = len(repr(abs(value)).partition("e")[0].replace(".", "").strip("0"))
    mantissa, _, exponent = f"{value:.{min(max(digits - 1, 0), _PRECISION)}e}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    return f"{whole}.{fraction.rstrip('0')}", exponent


def angle_text(angle: float) -> str | None:
    """An angle in official style; None for an angle that is not printed at all (0 to 1e-10).

    Example:
        >>> import math
        >>> angle_text(-math.pi / 2), angle_text(2 * math.pi / 3)
        ('-np.pi/2', '2.094395')
    """
    if abs(angle) <= 1e-10:
        return None
    for top, bottom in FRACTIONS:
        if abs(abs(angle) - math.pi * top / bottom) < 1e-10:
            sign = "-" if angle < 0 else ""
            return f"{sign}{f'{top}*' if top > 1 else ''}np.pi{f'/{bottom}' if bottom > 1 else ''}"
    return str(rounded(angle, 6))


def short_number(value: float, decimals: int | None) -> str:
    """The shortest text of a number: no zeros that say nothing, no "-0".

    Args:
        value: Any finite number.
        decimals: Round to so many decimals; None keeps every digit, so that the text reads back as the same number.

    Example:
        >>> short_number(-0.0, 4), short_number(50.80001, 4), short_number(1e-7, None)
        ('0', '50.8', '1e-07')
    """
    if decimals is not None:
        value = rounded(value, decimals)
    text = repr(value + 0.0)
    if "e" in text and decimals is not None:
        text = f"{value:.{decimals}f}"
    if "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return text


def short_angle(angle: float, decimals: int | None) -> str | None:
    """An angle as a fraction of pi or the shortest number; None for 0. Without `decimals` no digit is lost."""
    if decimals is not None:
        named = angle_text(angle)
        return named if named is None or "pi" in named else short_number(angle, max(decimals, 6))
    if angle == 0:
        return None
    for top, bottom in FRACTIONS:
        if abs(angle) == math.pi * top / bottom:
            return angle_text(angle)
    return short_number(angle, None)
