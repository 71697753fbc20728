"""Money is Decimal in the service and text with the column's digits at the database: exact on both kinds."""

from __future__ import annotations

from decimal import Decimal

CENT = Decimal("0.01")


def cents(value: object) -> Decimal:
    """What a database returned (text or Decimal), as Decimal with two digits. Raises if there are more."""
    amount = Decimal(str(value))
    exact = amount.quantize(CENT)
    if exact != amount:
        raise ValueError("an amount of money has more than two digits after the point")
    return exact
